"""Comparing two records: a planted slowdown is found, noise and small changes are not."""

import json
import random

import pytest

from bench import record as record_module
from bench.compare import compare, main, read
from bench.timing import spread


def record(factor: float = 1.0, noise: float = 0.01, seed: int = 0) -> dict:
    """A made-up record: forty rows of twenty laps each, lap times varying by `noise`, one row slowed."""
    draw = random.Random(seed)
    rows = {}
    for i in range(40):
        base = 10.0 * 1.3**i * (factor if i == 7 else 1.0)
        laps = [base * draw.gauss(1.0, noise) for _ in range(20)]
        rows[f"row{i}"] = spread("forward_us", laps) | {"forward_gbs": 1 / base, "command": "x"}
    return {"ops": rows, "steps": {"tiny": {"kernels": 31, "command": "x"}}}


def verdicts(before: dict, after: dict) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for change in compare(before, after):
        found.setdefault(change.verdict, []).append(change.name)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_slowdown_of_five_per_cent_is_found_and_no_other(seed):
    found = verdicts(record(seed=seed), record(1.05, seed=seed + 100))
    assert found["worse"] == ["ops.row7.forward_us"] and "better" not in found


@pytest.mark.parametrize("seed", range(5))
def test_a_speedup_is_called_better(seed):
    found = verdicts(record(1.05, seed=seed), record(seed=seed + 100))
    assert found["better"] == ["ops.row7.forward_us"] and "worse" not in found


@pytest.mark.parametrize("seed", range(5))
def test_one_per_cent_is_no_change(seed):
    found = verdicts(record(seed=seed), record(1.01, seed=seed + 100))
    assert set(found) == {"same"}


@pytest.mark.parametrize("seed", range(5))
def test_what_lies_within_the_noise_is_not_called_worse(seed):
    found = verdicts(record(noise=0.1, seed=seed), record(1.05, noise=0.1, seed=seed + 100))
    assert "worse" not in found and "better" not in found


def test_a_figure_without_a_spread_is_unclear_unless_it_is_a_count():
    before = {"steps": {"a": {"wall_ms": 1.0, "kernels": 31, "peak_gb": 1.0}}}
    after = {"steps": {"a": {"wall_ms": 1.5, "kernels": 38, "peak_gb": 1.01}}}
    found = verdicts(before, after)
    assert found == {
        "unclear": ["steps.a.wall_ms"],
        "worse": ["steps.a.kernels"],
        "same": ["steps.a.peak_gb"],
    }


def test_a_lower_ceiling_is_worse_and_rates_that_follow_from_times_are_left_out():
    before = {"ceilings": {"copy_gbs": 10.0, "copy_gbs_low": 9.9, "copy_gbs_high": 10.1}}
    after = {"ceilings": {"copy_gbs": 9.0, "copy_gbs_low": 8.9, "copy_gbs_high": 9.1}}
    assert verdicts(before, after) == {"worse": ["ceilings.copy_gbs"]}
    assert not compare({"ops": {"a": {"forward_gbs": 1.0}}}, {"ops": {"a": {"forward_gbs": 2.0}}})


def test_the_command_says_it_in_a_table_and_in_its_exit_status(tmp_path, capsys):
    a, b, table = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "table.md"
    a.write_text(json.dumps(record() | {"gpu": {"name": "one"}}))
    b.write_text(json.dumps(record(1.05, seed=9) | {"gpu": {"name": "other"}}))
    assert main([str(a), str(b), "--check", "--markdown", str(table)]) == 1
    said = capsys.readouterr().out
    assert "ops.row7.forward_us" in said and "worse" in said and "different name: one, other" in said
    assert "| ops.row7.forward_us |" in table.read_text() and "row8" not in table.read_text()
    assert main([str(a), str(a), "--check"]) == 0 and main([str(a), str(b)]) == 0


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    assert "is no record" in capsys.readouterr().err
    assert main(["git:0000000", str(tmp_path / "a.json")]) == 2
    assert "failed" in capsys.readouterr().err


def test_a_record_is_read_from_a_commit():
    known = record_module.commit()
    if known == "unknown":
        pytest.skip("no git here")
    assert "ops" in read("git:HEAD:bench/results/h200.json")
