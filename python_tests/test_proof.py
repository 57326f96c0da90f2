"""What bench.proof proves, a few hundred cases of it; and that its questions can be answered with no."""

import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cases import CASES
from bench.proof import arguments, cases, emulate, errors, faults, mutants, numerics, sanitize, threads
from bench.proof.cases import Example
from bench.proof.equivalent import EQUIVALENT

ROOT = Path(__file__).resolve().parents[1]
HEADERS = {path.name: path.read_text() for path in sorted((ROOT / "csrc" / "math").glob("*.h"))}


@pytest.mark.parametrize("name", CASES)
def test_some_random_cases_of_every_row_hold(name, device):
    dice = random.Random(name)
    edits = list(cases.EDITS)
    for kind in ("agrees", "agrees", "keeps_to_its_ray", "takes_views"):
        example = Example(
            dice.choice((0, 1, 5, 31, 33)), dice.randrange(2**31), kind, tuple(dice.sample(edits, 1))
        )
        assert not cases.asked(name, example, device.type), f"{name}: {example}"


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_random_cases_hold(name, device):
    assert cases.of_row(name, -(-cases.WANTED // len(CASES)), device.type, cases.today())[1] == ""


def test_every_kernel_is_run_by_a_row_or_named():
    assert not cases.uncovered()
    assert set(cases.COUPLED) | set(cases.HOLDS) | set(cases.ALWAYS) | cases.EMPTY_MEANS <= set(CASES)


@pytest.fixture
def broken(monkeypatch):
    """Replaces a row's op, and says what its cases then answer."""

    def answers(name, op, kind, edits=()):
        monkeypatch.setitem(CASES, name, replace(CASES[name], op=op))
        arguments.rows_per_ray.cache_clear()
        return " ".join(cases.asked(name, Example(33, seed, kind, edits), "cpu") for seed in range(6))

    yield answers
    monkeypatch.undo()
    arguments.rows_per_ray.cache_clear()


def test_a_row_that_is_off_is_found(broken):
    right = CASES["contract"].op
    assert "off by" in broken(
        "contract", lambda x, n: right(x, n) * (1 + 1e-4 * (x.dtype == torch.float32)), "agrees"
    )


def test_a_gradient_that_is_off_is_found(broken):
    right = CASES["contract"].op

    def op(x, norm):
        return right(x, norm) + (0 if x.dtype == torch.float64 else 1e-4 * (x - x.detach()))

    assert "gradients by" in broken("contract", op, "agrees")


def test_an_output_that_is_not_finite_is_found(broken):
    right = CASES["density"].op
    assert "not finite" in broken("density", lambda *a: right(*a) / (a[0][:, 0] != 0), "agrees", ("zeros",))


def test_a_promise_that_is_broken_is_found(broken):
    right = CASES["weights"].op
    assert "more than 1" in broken("weights", lambda a, b: right(a, b) * 2, "agrees")


def test_a_broken_ray_that_spoils_another_is_found(broken):
    right = CASES["contract"].op
    assert "of another" in broken("contract", lambda x, n: right(x, n) + 0 * x.sum(), "keeps_to_its_ray")


def test_a_view_that_is_misread_is_found(broken):
    right = CASES["contract"].op

    def op(x, norm):
        return right(x if x.is_contiguous() else x.flip(0), norm)

    assert "other numbers" in broken("contract", op, "takes_views")


def test_a_threshold_is_no_fault_and_a_shift_is(monkeypatch):
    """A step function may fall on either side of its step, and nowhere else."""
    x = torch.linspace(0, 1, 33)[:, None]

    def step(shift, slack):
        def op(x):
            edge = 0.5 + (slack if x.dtype == torch.float32 else 0)
            return (x >= edge).to(x) + (shift if x.dtype == torch.float32 else 0)

        return op

    for shift, slack, wrong in ((0, 1e-7, False), (0, 0.1, True), (1e-3, 0, True)):
        row = replace(
            CASES["density"], op=step(shift, slack), inputs=lambda n: (x.clone(),), differentiable=()
        )
        monkeypatch.setitem(CASES, "step", row)
        assert bool(cases.agrees("step", Example(33, 0, "agrees", ()), "cpu")) is wrong


def test_errors_tell_size_and_bias():
    want = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = errors.of(want + torch.tensor([0.1, 0.1, 0.0, 0.0]), want)
    assert found.largest == pytest.approx(0.1) and found.bias == pytest.approx(0.05) and found.peak == 1
    assert errors.worse(found, errors.Errors(0.01, -0.2, 3.0)) == (found.largest, -0.2, 3.0)
    assert errors.worse(found, errors.Errors(float("nan"))).largest != found.largest


def test_payloads_are_rounded_where_they_are_stored():
    for name, place in errors.PAYLOADS.items():
        target = place if isinstance(place, int) else place[0]
        torch.manual_seed(0)
        args = errors.rounded(name, list(CASES[name].inputs(3)), torch.bfloat16)
        assert args[target].dtype is torch.bfloat16, name


def test_the_page_is_the_record():
    page = numerics.PAGE.read_text()
    assert numerics.filled(page, numerics.proof()) == page, "run python -m bench.proof docs"
    assert set(numerics.TABLES) <= set(numerics.proof())


# ---- Planted faults ----


def test_every_header_has_tests_that_watch_it():
    assert set(HEADERS) == set(mutants.WATCHES)
    for watch in mutants.WATCHES.values():
        for name in (*watch.tests, *watch.more):
            assert (ROOT / "python_tests" / f"test_{name}.py").exists(), name


def test_every_derivative_gets_faults():
    for name, text in HEADERS.items():
        defined = set(re.findall(r"^RM_HD \w+ (\w+_vjp)\(", text, re.M))
        found = {group.function: group for group in faults.groups(faults.faults(name, text))}
        assert defined <= set(found)
        for function in defined:
            assert found[function].wanted >= 3 or len(found[function].faults) < 3


def test_a_fault_changes_one_line_and_nothing_a_gpu_alone_compiles():
    lines = (
        "#if defined(__CUDA_ARCH__)",
        "RM_HD real f(real x) { return x + x; }",
        "#else",
        "RM_HD real f(real x) { return 2 * x - x; }  // a - b",
        "#endif",
        "constexpr real kTen = real(10);",
    )
    source = "\n".join(lines)
    found = faults.faults("a.h", source)
    assert {fault.line for fault in found} == {3, 5}
    for fault in found:
        before, after = source.splitlines(), fault.planted(source).splitlines()
        assert [i for i in range(6) if before[i] != after[i]] == [fault.line]
        assert "a - b" in after[3]
    changed = " ".join(fault.changed for fault in found)
    assert all(
        word in changed for word in ("2 * x + x", "2 / x - x", "3 * x - x", "{ return 2 * x; }", "real(11)")
    )


def test_the_record_of_faults_is_whole():
    rows = mutants.read()
    summary = mutants.summary(rows)["all"]
    assert summary["ok"] and summary["faults"] > 100
    assert set(EQUIVALENT) <= {key for key, row in rows.items() if row["result"] == "survived"}


def test_faults_that_survive_lower_the_share(monkeypatch):
    killed = {"header": "a.h", "function": "f", "result": "killed"}
    rows = {f"k{i}": killed for i in range(18)}
    rows |= {"s": killed | {"result": "survived"}, "n": killed | {"result": "does not compile"}}
    counts = {"faults": 19, "killed": 18, "by_tests_added_since": 0, "equivalent": 0, "survived": 1}
    assert mutants.summary(rows)["all"] == counts | {"share_killed": 0.9474, "ok": False}
    monkeypatch.setitem(EQUIVALENT, "s", "because")
    assert mutants.summary(rows)["a.h"]["share_killed"] == 1 and mutants.summary(rows)["all"]["ok"]


# ---- Sanitizers ----


def test_reports_of_sanitizers_are_counted_once():
    text = (
        "a.cpp:3:5: runtime error: load of misaligned address 0x7f01\n"
        "a.cpp:3:5: runtime error: load of misaligned address 0x7f02\n"
        "==12==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6\n"
    )
    assert len(sanitize.reports(text)) == 2 and not sanitize.reports("12 passed in 3 s")


# ---- Emulator ----


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_the_emulator_tells_faulty_kernels_from_right_ones(tmp_path):
    assert emulate.planted(tmp_path) == dict.fromkeys(emulate.PLANTED, True)


@pytest.mark.nightly
def test_the_thread_pool_is_free_of_races():
    assert threads.run()["ok"]
