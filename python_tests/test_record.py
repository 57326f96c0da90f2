"""The record of measurements: merged, stamped, never half written."""

import json

import pytest

from bench import checks, record


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMARCH_RECORD", str(tmp_path / "gpu.json"))
    monkeypatch.setenv("RAYMARCH_COMMIT", "abc123")
    monkeypatch.delenv("OUT", raising=False)
    return tmp_path / "gpu.json"


def test_every_key_is_there_from_the_first_merge(file):
    record.merge("ceilings", {"copy_gbs": 4200.0}, "measure")
    found = json.loads(file.read_text())
    assert tuple(found) == record.KEYS
    assert found["ceilings"]["command"] == "measure" and found["ceilings"]["commit"] == "abc123"


def test_a_measurement_is_stamped_where_its_numbers_are(file):
    marks = {"1000": {"psnr": 23.9}, "5000": {"psnr": 25.4}, "protocol": "every 8th"}
    record.merge("quality", {"fox_full": {"nerfacto_off": marks}}, "python -m bench.quality")
    record.merge("quality", {"fox_full": {"f3rm": marks}}, "python -m bench.quality")
    found = json.loads(file.read_text())["quality"]["fox_full"]
    assert found["nerfacto_off"]["5000"]["psnr"] == 25.4 and set(found) == {"nerfacto_off", "f3rm"}
    assert found["f3rm"]["commit"] == "abc123" and "commit" not in found["f3rm"]["5000"]


def test_measuring_again_leaves_nothing_of_the_old_figure(file):
    record.merge("ops", {"rays": {"forward_us": 3.0, "backward_us": 4.0}}, "one")
    record.merge("ops", {"rays": {"forward_us": 2.0}}, "two")
    found = json.loads(file.read_text())["ops"]["rays"]
    assert found["forward_us"] == 2.0 and "backward_us" not in found and found["command"] == "two"


def test_numbers_that_json_has_no_word_for_become_null(file):
    record.merge("checks", {"equal": {"worst": float("inf"), "mean": float("nan")}}, "check")
    assert json.loads(file.read_text())["checks"]["equal"]["worst"] is None


def test_out_gets_a_copy(file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    record.merge("memory", {"step_gb": 1.5}, "measure")
    assert (out / "gpu.json").read_text() == file.read_text()
    assert (out / "gpu.md").read_text() == file.with_suffix(".md").read_text()


def test_markdown_says_every_number_and_its_command(file):
    record.merge("steps", {"f3rm_4096": {"wall_ms": 2.25, "kernels": 61}}, "python -m bench.render")
    text = file.with_suffix(".md").read_text()
    assert "| f3rm_4096 | 2.25 | 61 |" in text and "`python -m bench.render`" in text and "abc123" in text


def test_unknown_sections_are_refused(file):
    with pytest.raises(ValueError, match="'speed' is no section"):
        record.merge("speed", {}, "measure")


def test_failures_are_counted_wherever_they_hide():
    assert not checks.failed({"graphs": {"failed": 0, "failures": []}})
    assert checks.failed({"graphs": {"failed": 2, "failures": ["rays", "mlp"]}})
    assert checks.failed({"equal": {"all": {"failed": 0}, "rays": {"ok": False}}})


def test_junit_counts_what_pytest_said(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t.test_a" name="x"/>'
        '<testcase classname="t.test_a" name="y"><failure message="no"/></testcase>'
        '<testcase classname="t.test_a" name="z"><skipped/></testcase></testsuite></testsuites>'
    )
    assert checks.junit(report) == {"passed": 1, "failed": 1, "skipped": 1, "failures": ["test_a::y"]}
