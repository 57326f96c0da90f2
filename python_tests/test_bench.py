"""The tooling of `python -m bench`: fits, pictures, sweeps that stop, and timings with their spread."""

import io
import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from bench import scaling
from bench.__main__ import run
from bench.build import BuildError, build
from bench.curves import Curve, drawn, png, svg
from bench.growth import fitted
from bench.scaling import Point, curve
from bench.timing import quantile, spread, wall_laps


def test_a_power_law_is_found_with_its_confidence():
    fit = fitted([1, 2, 4, 8, 16], [3.0 * n**1.5 for n in (1, 2, 4, 8, 16)])
    assert fit.slope == pytest.approx(1.5) and fit.confidence == pytest.approx(0, abs=1e-6)
    noisy = fitted([1, 2, 4, 8], [1.0, 2.4, 3.6, 8.8])
    assert noisy.confidence is not None and noisy.confidence > 0.1
    assert abs(noisy.slope - 1) < noisy.confidence


def test_a_fixed_cost_and_one_per_unit_are_told_apart():
    sizes = [1, 10, 100, 1000]
    fit = fitted(sizes, [5 + 0.25 * n for n in sizes])
    assert fit.fixed == pytest.approx(5) and fit.each == pytest.approx(0.25) and fit.worst < 1e-9
    assert fitted(sizes, [n**1.5 for n in sizes]).fixed == 0  # never below


@pytest.mark.parametrize("sizes, costs", [([1, 1], [1.0, 2.0]), ([1, 2], [0.0, 1.0]), ([1], [1.0])])
def test_what_cannot_be_fitted_is_refused(sizes, costs):
    with pytest.raises(ValueError, match="positive costs at two sizes"):
        fitted(sizes, costs)


def test_a_sweep_stops_before_it_would_take_too_long_and_says_so():
    points, why = curve(lambda n: Point(n, [n * 0.01] * 5, n), (1, 10, 100, 1000), 2.0, 1.0, calls=1)
    assert [p.size for p in points] == [1, 10, 100] and "stopped before 1000" in why and "10 s" in why
    points, why = curve(lambda n: Point(n, [1e-6] * 5, n * 10**7), (1, 10, 100, 1000), 2.0, 1.5, calls=1)
    assert [p.size for p in points] == [1, 10, 100] and "10.0 GB" in why


def test_a_picture_holds_every_curve_in_both_formats(tmp_path):
    points = [Point(n, [0.001 * n] * 5, 1000 * n) for n in (1000, 4000, 16000)]
    found = {"tiny": (points, "all sizes"), "short": (points[:1], "stopped before 4000: too long")}
    scaling.pictures("rays", scaling.AXES["rays"], found, tmp_path, "a <test> & machine")
    root = ElementTree.fromstring((tmp_path / "rays_time.svg").read_text())
    words = " ".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "tiny: ms = 0 + 1 per ray" in words and "short: one point; stopped before 4000" in words
    assert "a <test> & machine" in words
    assert Image.open(tmp_path / "rays_memory.png").size[0] > 1000


def test_both_formats_come_from_one_drawing():
    picture = drawn("t", "x", "y", [Curve("a", [(1, 1), (10, 5)], [(0.9, 1.1), (4, 6)], [(1, 1), (10, 5)])])
    assert svg(picture, "n").count("<circle") == 2
    image = Image.open(io.BytesIO(png(picture, 1)))
    assert image.size == (int(picture.width), int(picture.height)) and len(image.getcolors(1 << 20)) > 3
    with pytest.raises(ValueError, match="no points"):
        drawn("t", "x", "y", [])


def test_laps_are_at_least_five_and_their_spread_is_in_order():
    count = []
    laps = wall_laps(lambda: count.append(1), torch.device("cpu"), seconds=0.0)
    assert len(laps) == 5 and len(count) > 5  # a short call is repeated within a lap
    row = spread("t", [3.0, 1.0, 2.0, 10.0, 2.5], 2.0)
    assert row["t"] == 5.0 and row["t_low"] < row["t"] < row["t_high"]
    assert quantile([1.0, 2.0], 0.5) == 1.5 and quantile([4.0], 0.9) == 4.0


def test_a_build_that_fails_says_how(tmp_path):
    with pytest.raises(BuildError, match=r"build_ext failed: .*AUTO, ON or OFF"):
        build(tmp_path, "MAYBE")


def test_the_command_measures_a_section_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMARCH_RECORD", "set by --out, put back after the test")
    file = tmp_path / "record.json"
    assert run(["--device", "cpu", "--only", "overhead", "--rows", "native", "--out", str(file)]) == 0
    found = json.loads(file.read_text())
    row = found["overhead"]["native"]
    assert 0 < row["call_us_low"] <= row["call_us"] <= row["call_us_high"] and "load" in row
    assert row["command"].endswith("python -m bench --device cpu --only overhead")
    assert found["gpu"]["cpu"] and found["versions"]["torch"] == torch.__version__
    text = file.with_suffix(".md").read_text()
    assert "| native |" in text and "call_us_low" not in text and " to " in text


def test_a_row_that_fails_costs_no_other_and_the_exit_status_says_so(monkeypatch, capsys):
    rows = {"bad": lambda: 1 / 0, "good": lambda: None}
    monkeypatch.setattr("bench.overhead.calls", lambda device: rows)
    assert run(["--device", "cpu", "--only", "overhead", "--dry"]) == 1
    said = capsys.readouterr()
    assert "bad" in said.out and "ZeroDivisionError" in said.out and "good" in said.out
    assert "failed: overhead.bad" in said.err


def test_unknown_sections_and_axes_are_refused(capsys):
    for command, words in ((run, ["--only", "speed"]), (scaling.main, ["--only", "speed"])):
        with pytest.raises(SystemExit):
            command(["--device", "cpu", *words])
        assert "speed; there are" in capsys.readouterr().err
