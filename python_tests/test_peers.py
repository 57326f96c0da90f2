"""The race against other libraries: every way computes the same, and what does not is found out."""

import importlib.util
import subprocess
import sys
import tarfile
from unittest import mock

import pytest
import torch

from bench import carry_peers, peers
from bench.carry_peers import CarryError, Source
from bench.libraries import Bound, without_viewer
from bench.peer_rows import ROWS, Row, grid

CPU = torch.device("cpu")
SMALL_GRIDS = {f"grid_{layout}": grid((3, 4, 24, 10), 2, layout) for layout in ("tcnn", "nerfstudio")}
SMALLER = SMALL_GRIDS | {name: row for name, row in ROWS.items() if not name.startswith("grid")}


@pytest.mark.parametrize("name", SMALLER)
def test_raymarch_and_plain_torch_agree_on_every_row(name):
    row = SMALLER[name]
    torch.manual_seed(0)
    args = row.inputs(4 if name == "composite_features" else 96)
    for way in {"raymarch", "torch_bmm", "torch_fused"} & set(row.ways):
        bound = row.ways[way](*args)
        assert peers.agree(row, way, bound, args, row.tolerance) <= row.tolerance


def rows_of(wrong) -> Row:
    """Doubling, by way of something that is not quite that."""
    return Row(
        lambda n: (torch.rand(n) + 1,),
        {
            "raymarch": lambda x: Bound(lambda x: 2 * x),
            "torch": lambda x: Bound(lambda x: x + x),
            "wrong": wrong,
        },
        compiled=False,
        differentiable=(0,),
        cpu_size=100,
    )


def missing(x):
    raise ImportError("not installed")


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda x: Bound(lambda x: 2.01 * x), "FAILED wrong: Disagreement: wrong is off by 5.0e-03"),
        (lambda x: Bound(lambda x: 2 * x.detach() + 0 * x), "FAILED wrong: Disagreement: wrong's gradient"),
        (lambda x: Bound(lambda x: x / "a"), "FAILED wrong: TypeError"),
        (lambda x: Bound(lambda x: (x, x)), "FAILED wrong: Disagreement: wrong gives 2 outputs, expected 1"),
        (missing, "wrong absent: not installed"),
    ],
)
def test_a_way_that_computes_something_else_is_not_timed(wrong, said):
    found, words = peers.measure(rows_of(wrong), CPU, 5, None, False)
    assert any(line.startswith(said) for line in words), words
    assert set(found) == {"forward", "train"} and "wrong_us" not in found["forward"]
    assert found["forward"]["best_peer"] == "torch"


def test_ways_take_turns_and_ratios_are_taken_within_rounds():
    order: list[str] = []
    cost = {"raymarch": 1.0, "a": 2.0, "b": 4.0}

    def take(call, count):
        call()
        slow = 1 + len(order) // 3  # the machine gets busier from round to round
        return cost[order[-1]] * slow

    calls = {name: (lambda name=name: order.append(name)) for name in cost}
    laps = peers.race(calls, take, 5)
    rounds = order[3:]
    assert [rounds[i] for i in (0, 3, 6)] == ["raymarch", "a", "b"] and len(laps["a"]) == 5
    found = peers.summary(laps)
    assert found["best_peer"] == "a" and 1 < found["ratio"] < 3 and found["fastest"] == "yes"


@pytest.mark.parametrize("against, said", [([1.1, 1.2], "yes"), ([0.8, 0.9], "no"), ([0.9, 1.2], "tie")])
def test_a_verdict_needs_the_whole_spread_on_one_side(against, said):
    assert peers.verdict(against) == said


def test_without_a_gpu_the_race_says_one_sentence(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert peers.main(["--device", "cuda"]) == 2
    assert "needs a GPU and none was found" in capsys.readouterr().err


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with one file, pinned as if it were nerfacc."""
    folder = tmp_path / "clones" / "thing"
    folder.mkdir(parents=True)
    (folder / "scan_cub.cu").write_text("use(cub::Equality());\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    place = "nerfacc_source/nerfacc/cuda/csrc"
    monkeypatch.setitem(
        carry_peers.SOURCES,
        "nerfacc",
        Source("https://x/a/thing", head.stdout.strip(), ("scan_cub.cu",), place),
    )
    return tmp_path


def test_the_archive_holds_pinned_sources_with_what_cuda_13_needs(clone):
    archive = clone / "peers" / "peers.tar.xz"
    unpacked, packed = carry_peers.carry(clone / "clones", archive, ("nerfacc",))
    assert unpacked > 0 and packed == archive.stat().st_size
    with tarfile.open(archive) as tar:
        text = tar.extractfile("nerfacc_source/nerfacc/cuda/csrc/scan_cub.cu").read().decode()
    assert "use(cuda::std::equal_to<>());" in text and text.startswith("#include <cuda/std/functional>")


def test_a_missing_clone_is_named(clone):
    (clone / "empty").mkdir()
    with pytest.raises(CarryError, match=r"no clone of a/thing with commit .* git clone https://x/a/thing"):
        carry_peers.carry(clone / "empty", clone / "a.tar.xz", ("nerfacc",))


def test_packages_that_nobody_needs_stand_in_and_leave_nothing():
    with mock.patch("bench.libraries.UNUSED", ("no_such_package",)), without_viewer():
        from no_such_package.transforms import SO3

        assert isinstance(SO3, type)
    assert not [name for name in sys.modules if name.startswith("no_such_package")]
    assert importlib.util.find_spec("no_such_package") is None
