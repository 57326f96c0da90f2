"""`raymarch profile`: what it counts, what it times, what it writes, and that nothing is left of it."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.cases import CASES
from raymarch import _C
from raymarch.apps import profiling
from raymarch.apps.profiling import Request, profile_run
from raymarch.config import override, preset
from raymarch.ops import _op
from raymarch.profiling import kernels
from raymarch.profiling.arithmetic import FLOPS
from raymarch.profiling.counting import Work, torch_work, work
from raymarch.profiling.kernel_names import resources
from raymarch.profiling.kernels import kernel_rows
from raymarch.profiling.launches import launches_of
from raymarch.profiling.ranges import BY_NAME, PHASES, STAGES, listening, nvtx_ranges, place
from raymarch.train.runs import start

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"copy_gbs": 10.0, "matmul_tflops": 0.05}
SETTINGS = (
    "train.trainer.rays=64",
    "model.fields.feature.width=32",
    "model.fields.radiance.predicted_normals=true",
)


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    monkeypatch.setattr(profiling, "ceilings", lambda device: LIMITS)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Folder, JSON and lines of a profile of six small steps, of which one trains proposals."""
    folder = tmp_path_factory.mktemp("profile") / "out"
    asked = Request(preset="tiny", settings=SETTINGS, out=folder, steps=6, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "ceilings", lambda device: LIMITS)
        lines = list(profile_run(asked))
    return folder, json.loads((folder / "profile.json").read_text()), lines


def untouched() -> bool:
    """Whether no stage is being listened to and nothing stands in for launches."""
    functions = (vars(holder)[name] for holder, name in (place(p) for s in STAGES for p in s.places))
    return _op._instead is None and not any(getattr(f, "__name__", "") == "ranged" for f in functions)


# ---- counting ----


def counted(body) -> tuple[Work, list[str]]:
    """Of the kernels that `body` would launch; none of them runs."""
    total, names = Work(), []

    def count(core, kernel, args):
        nonlocal total
        if kernel == "hashgrid_layout":
            return _op.call(core, kernel, args)
        total, _ = total + work(core, kernel, args), names.append(kernel)

    with torch.no_grad(), _op.launches_through(count):
        body()
    return total, names


# Rows that state something else than what their op touches, and why.
OTHERWISE = {
    "density": "counts the 32 bytes that memory moves for one column of a wide row",
    "march": "leaves lookups in the baked grid out",
    "samples_to_density": "leaves lookups out",
    "samples_to_pixels": "leaves lookups out",
    "samples_to_pixels_over_colour": "leaves lookups out",
    "proposal_loss": "counts the fused way back, and runs three ops forward",
}
LARGE = ("hashgrid", "encode")  # rows of large tables, which take a while to make
COUNTED = sorted(
    name
    for name in set(CASES) - set(OTHERWISE)
    if name in LARGE or not name.startswith(("hashgrid", "encode"))
)


def per_ray(name: str) -> Work:
    case = CASES[name]
    few, many = (1001, 2003) if name in (*LARGE, "weights_packed", "transmittance") else (3, 9)
    found = []
    for n in (few, many):
        torch.manual_seed(0)
        args = case.inputs(n)
        found.append(counted(lambda args=args: case.op(*args))[0])
    scale = 1 / (many - few)
    return Work((found[1].bytes - found[0].bytes) * scale, (found[1].flops - found[0].flops) * scale)


@pytest.mark.parametrize("name", COUNTED)
def test_counts_from_shapes_are_those_that_the_rows_of_the_benchmark_state(name):
    case, found = CASES[name], per_ray(name)
    assert found.bytes == pytest.approx(case.bytes_per_ray, rel=0.03)
    if case.flops_per_ray:
        assert found.flops == pytest.approx(case.flops_per_ray, rel=0.1)


def test_every_kernel_has_its_arithmetic_counted():
    kernels = {n for n in dir(_C) if callable(getattr(_C, n)) and n[0] != "_"} - {"hashgrid_layout"}
    assert kernels == set(FLOPS)


def test_a_network_is_counted_as_its_matrix_products():
    x, y = torch.zeros(10, 32), torch.zeros(10, 16)
    params = torch.zeros(32 * 64 + 64 * 16)
    found = work(_C, "mlp_forward", (x, params, 64, 1, 0, 0.0, y))
    assert found == Work(4 * (320 + 3072 + 160), 2 * 10 * 3072)
    given = (x, params, 64, 1, 0, 0.0, None, y, None, None, torch.zeros_like(params), None)
    assert work(_C, "mlp_backward", given).flops == 2 * (2 * 10 * 3072)  # hidden layers, and their gradient


def test_a_table_counts_as_often_as_it_is_looked_up_and_at_most_once_whole():
    def forward(points, entries):
        x, y = torch.zeros(points, 3), torch.zeros(points, 8)
        table = torch.zeros(entries, 2, dtype=torch.float16)
        return work(_C, "hashgrid_forward", (x, table, 4, 4, 16, 10, 0, 0, 0, 0, y)).bytes

    assert forward(5, 4096) == 5 * (12 + 32) + 5 * 4 * 8 * 2 * 2
    assert forward(5000, 4096) == 5000 * (12 + 32) + 4096 * 2 * 2


def test_adam_reads_and_writes_what_it_updates():
    p, g, m, v = (torch.zeros(100) for _ in range(4))
    stored, one = torch.zeros(100, dtype=torch.float16), torch.ones(1)
    steps, healthy = torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)

    def moved(clear):
        many = ([p], [g], [m], [v], [stored], [one], [steps], [1e-15], [0.0], [clear], healthy, 0.9, 0.999)
        return work(_C, "adam", many).bytes

    assert moved(False) == 100 * (8 + 8 + 8 + 4 + 2) + 4 + 8 + 2  # and rate, step count, health twice
    assert moved(True) - moved(False) == 400


def test_torch_products_and_pointwise_ops():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert torch_work("mm", (a, b), a @ b) == Work(4 * (15 + 35 + 21), 2 * 3 * 5 * 7)
    assert torch_work("mul", (a, a), a * a) == Work(4 * 30, 15)
    assert torch_work("clone", (a,), a.clone()).flops == 0


# ---- the profile ----


def test_the_record_says_what_ran_on_what(profiled):
    _, record, _ = profiled
    assert {"title", "command", "date", "machine", "versions", "ceilings", "what", "ran", "step"} <= set(
        record
    )
    assert {"stages", "ops", "kernels", "notes"} <= set(record)
    assert (
        record["ceilings"] == LIMITS and record["ran"]["pipeline"] == "fused" and not record["ran"]["graph"]
    )
    step = record["step"]
    assert step["proposals_learn_in"] == 1 and step["host_syncs"] == 0
    assert step["quickest_ms"] <= step["median_ms"] <= step["slowest_ms"]
    assert step["peak_memory_bytes"] > 1e7 and "CUDA kernels" in record["notes"][0]
    for setting in SETTINGS:
        assert f"--set {setting}" in record["command"]


def test_shares_add_up_to_one(profiled):
    _, record, _ = profiled
    assert sum(r["share"] for r in record["stages"]) == pytest.approx(1)
    in_ops = sum(r["share"] for r in record["ops"])
    assert in_ops + record["step"]["outside_ops_share"] == pytest.approx(1)
    assert sum(r["ms"] for r in record["stages"]) == pytest.approx(record["step"]["eager_ms"])


def test_every_stage_of_a_fused_step_is_there_and_ops_lie_in_them(profiled):
    _, record, _ = profiled
    names = [r["stage"] for r in record["stages"]]
    fused = {"pixels", "rays_to_samples", "samples_to_field", "field_to_pixels", "losses", "optim"}
    assert fused <= set(names) and set(names) <= {*BY_NAME, "between stages"}
    assert {r["phase"] for r in record["stages"]} >= set(PHASES)
    assert {r["stage"] for r in record["ops"]} <= set(names)
    by_stage = {
        r["stage"]: sum(o["launches"] for o in record["ops"] if o["stage"] == r["stage"])
        for r in record["stages"]
    }
    assert all(by_stage[r["stage"]] == pytest.approx(r["launches"]) for r in record["stages"])


def test_launches_of_known_ops_are_exact(profiled):
    _, record, _ = profiled
    rows = {(r["op"], r["module"]): r for r in record["ops"]}
    colour = rows["mlp_backward", "fields.radiance.colour"]
    assert (colour["calls"], colour["launches"], colour["head"]) == (
        pytest.approx(1),
        pytest.approx(2),
        "rgb",
    )
    learnt = rows["hashgrid_backward", "fields.proposals.0.grid"]
    assert learnt["launches"] == pytest.approx(1 / 6) and learnt["head"] == "shared"
    assert rows["hashgrid_backward", "fields.feature.grid"]["head"] == "feature"
    assert rows["mlp_forward", "fields.radiance.normals"]["head"] == "predicted_normals"
    x, y, table = torch.zeros(2, 3), torch.zeros(2, 8), torch.zeros(64, 2)
    for exact, launches in ((None, 1), (torch.zeros(8, dtype=torch.int64), 3)):
        assert launches_of(_C, "hashgrid_backward", (x, 4, 4, 16, 10, 0, 0, y, exact, table)) == launches


def test_rates_follow_from_time_bytes_and_ceilings(profiled):
    _, record, _ = profiled
    row = next(r for r in record["ops"] if r["op"] == "mlp_backward")
    assert row["gbs"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
    assert row["tflops"] == pytest.approx(row["flops"] / row["ms"] / 1e9)
    floor = max(row["bytes"] / 10e9, row["flops"] / 0.05e12)
    assert row["percent_of_floor"] == pytest.approx(100 * floor / (row["ms"] / 1e3))
    assert row["bound"] == "arithmetic"


def test_the_page_stands_alone_and_shows_roof_and_pipeline(profiled):
    folder, _, lines = profiled
    page = (folder / "index.html").read_text()
    HTMLParser().feed(page)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "http" not in page and "<script" not in page
    assert "Roofline" in page and 'class="roof"' in page and "samples_to_field_backward" in page
    assert lines[-1] == str(folder / "index.html") and "launched op by op" in lines[0]


def test_the_timeline_holds_stages_around_their_ops(profiled):
    folder, _, _ = profiled
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    stages = {e["name"]: e for e in events if e["cat"] == "stage"}
    op = next(e for e in events if e["name"] == "cast_rays")
    around = stages["rays_to_samples"]
    assert around["ts"] <= op["ts"] and op["ts"] + op["dur"] <= around["ts"] + around["dur"]
    assert stages["step"]["ts"] == 0


def test_nothing_is_left_of_a_profile(profiled):
    assert untouched()


def test_a_run_is_profiled_and_left_as_it_was(tmp_path):
    scene = profiling.built_in(0, 4)
    config = preset("tiny")
    for setting in ("train.trainer.rays=32", "train.trainer.steps=2", "train.trainer.fused=false"):
        config = override(config, setting)
    run = tmp_path / "run"
    start(scene, config, run, "cpu").train()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    list(profile_run(Request(run=run, steps=2, device="cpu")))
    record = json.loads((run / "profile" / "profile.json").read_text())
    assert record["ran"]["pipeline"] == "composed" and "fused is false" in record["ran"]["why_composed"]
    assert record["ran"]["first_step"] == 2
    names = {r["stage"] for r in record["stages"]}
    assert {
        "poses",
        "rays",
        "sampler",
        "fields.proposals",
        "fields.radiance",
        "renderer",
        "backward",
    } <= names
    assert {p: p.read_bytes() for p in before} == before


def test_frames_and_single_ops(tmp_path):
    small = ("train.trainer.rays=32",)
    asked = Request(
        preset="tiny", what="render", settings=small, out=tmp_path / "a", steps=1, side=16, device="cpu"
    )
    list(profile_run(asked))
    frame = json.loads((tmp_path / "a" / "profile.json").read_text())
    assert frame["ran"]["size"] == [16, 16] and frame["what"] == "render"
    assert {"rays", "sampler", "fields.radiance", "renderer"} <= {r["stage"] for r in frame["stages"]}
    asked = Request(
        preset="tiny", what="op", op="proposal_backward", settings=small, out=tmp_path / "b", device="cpu"
    )
    list(profile_run(asked))  # in a step in which proposals learn
    rows = json.loads((tmp_path / "b" / "profile.json").read_text())["ops"]
    assert [r["op"] for r in rows] == ["proposal_backward"] and rows[0]["ms"] > 0


def test_kernels_are_read_from_a_timeline_of_cupti(monkeypatch):
    # An installed package has no table of spills; the checkout that these tests are in has.
    table = Path(__file__).parents[1] / "bench" / "resources.txt"
    monkeypatch.setattr(kernels, "resources", lambda: resources(table))
    facts = {
        "registers per thread": 60,
        "block": [128, 1, 1],
        "shared memory": 28,
        "est. achieved occupancy %": 50,
    }
    events = [
        {
            "cat": "kernel",
            "name": "void raymarch::(anonymous namespace)::adam_kernel(int)",
            "dur": 30,
            "args": facts,
        },
        {
            "cat": "kernel",
            "name": "void raymarch::(anonymous namespace)::adam_kernel(int)",
            "dur": 50,
            "args": facts,
        },
        {"cat": "gpu_memset", "name": "Memset (Device)", "dur": 20, "args": {}},
        {"cat": "cpu_op", "name": "aten::mul", "dur": 1000},
    ]
    first, second = kernel_rows(events, steps=2)
    assert (first.kernel, first.launches) == ("adam_kernel", 1.0)
    assert first.ms == pytest.approx(0.04) and first.share == pytest.approx(0.8)
    assert (first.registers, first.block, first.occupancy, first.spills) == (60, 128, 50, 0)
    assert second.kernel == "Memset (Device)" and second.registers is None
    monkeypatch.setattr(kernels, "resources", dict)
    assert kernel_rows(events, steps=2)[0].spills is None


# ---- ranges ----


def test_stages_are_told_of_and_forgotten_even_after_an_error():
    heard = []
    listener = SimpleNamespace(begin=lambda s: heard.append(f"+{s}"), end=lambda s: heard.append(f"-{s}"))
    with pytest.raises(RuntimeError), listening(listener):
        (torch.ones(1, requires_grad=True) * 2).backward()
        torch.ones(1).backward()  # has no graph
    assert heard == ["+backward", "-backward"] * 2 and untouched()


def test_nvtx_ranges_are_balanced_in_one_domain_and_off_by_default(monkeypatch):
    assert untouched()
    heard = []
    fake = SimpleNamespace(
        push_range=lambda message, domain: heard.append((message, domain)),
        pop_range=lambda domain: heard.append((None, domain)),
    )
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    with nvtx_ranges():
        torch.ops.raymarch.weights_forward(torch.rand(2, 3), torch.rand(2, 3))
    assert heard == [("weights_forward", "raymarch"), (None, "raymarch")] and untouched()
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(ImportError, match="pip install nvtx"), nvtx_ranges():
        pass


# ---- what is refused ----


def refused(capsys, *words) -> str:
    pytest.importorskip("tyro", reason="the command line needs tyro")
    from raymarch.apps.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["profile", *map(str, words)])
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("raymarch: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "either a run folder or --preset"),
        (("--preset", "tyni"), "did you mean 'tiny'"),
        (("--preset", "tiny", "--what", "op"), "--op NAME go together"),
        (("--preset", "tiny", "--op", "adam"), "--op NAME go together"),
        (("--preset", "tiny", "--steps", "0"), "--steps is 0"),
        (("--preset", "tiny", "--side", "-3", "--what", "render"), "--side is -3"),
        (("--preset", "tiny", "--set", "model.fields.oops=1"), "unknown setting"),
        (("nowhere", "--set", "model.fields.oops=1"), "--set changes a preset"),
        (("nowhere",), "no run at nowhere"),
        (("--preset", "tiny", "--scene", "nowhere"), "nowhere does not exist"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_one_sentence(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, *words, "--device", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_op_is_told_with_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--preset", "tiny", "--set", "train.trainer.rays=32", "--what", "op", "--op", "hashgrd_forward")
    assert "did you mean hashgrid_forward?" in refused(capsys, *words, "--device", "cpu")


def test_a_page_that_is_no_profile_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    assert "index.html" in refused(capsys, "--preset", "tiny", "--out", tmp_path, "--device", "cpu")
    assert (tmp_path / "index.html").read_text() == "mine"


def test_an_interrupt_writes_nothing_and_leaves_nothing(tmp_path):
    def interrupt(words):
        if words == "1 of 1":
            raise KeyboardInterrupt

    asked = Request(
        preset="tiny", settings=("train.trainer.rays=32",), out=tmp_path / "out", steps=1, device="cpu"
    )
    with pytest.raises(KeyboardInterrupt):
        list(profile_run(asked, interrupt))
    assert not (tmp_path / "out").exists() and untouched()


# ---- on a GPU ----


@pytest.mark.skipif(
    not (torch.cuda.is_available() and _C.has_cuda), reason="no CUDA GPU, or a build without CUDA"
)
def test_a_gpu_has_kernels_with_registers_and_a_graph(tmp_path):
    asked = Request(preset="tiny", settings=("train.trainer.rays=256",), out=tmp_path, steps=6, device="cuda")
    list(profile_run(asked))
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["ran"]["graph"] and not record["step"]["real_step_waits"]
    assert any(r["kernel"].startswith("adam_kernel") and r["registers"] for r in record["kernels"])
    assert sum(r["share"] for r in record["stages"]) == pytest.approx(1)


# ---- docs/profiling.md ----

PAGE = (ROOT / "docs" / "profiling.md").read_text("utf-8")


def test_kernels_and_ops_that_the_page_names_exist():
    sources = "".join(p.read_text() for p in (ROOT / "csrc" / "cuda").iterdir())
    kernels = set(re.findall(r"(\w+_kernel)\(", sources))
    named = set(re.findall(r"\b(\w+_kernel)\b", PAGE))
    assert len(named) > 15 and named <= kernels
    ops = set(re.findall(r"--op (\w+)", PAGE))
    assert ops and all(hasattr(_C, name) for name in ops)
    assert all(f"{name}_kernel" in kernels for name in ops)


def test_stages_files_and_presets_that_the_page_names_exist():
    table = PAGE.split("## A run on a CPU")[1].split(" op  ")[0]
    stages = re.findall(r"^ (\w[\w.]*) {3,}[a-z-]+ {2,}shared", table, re.M)
    listed = PAGE.split("- **Stages**")[1].split("- **Heads.**")[0]
    stages += re.findall(r"`([a-z_.]+)`", listed)
    assert len(stages) > 15 and set(stages) <= set(BY_NAME)
    assert all((ROOT / f).exists() for f in re.findall(r"`((?:raymarch|bench)/[\w./]+)`", PAGE))
    for name in re.findall(r"--preset (\w+)", PAGE):
        preset(name)


def test_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/profiling.md", "exec"), {})
