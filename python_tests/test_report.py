"""Numbers -> pictures, files and the report page."""

import base64
import io
import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from raymarch.apps import images, palette
from raymarch.apps.charts import Series, before_after_chart, line_chart
from raymarch.apps.report import write_report
from raymarch.apps.sections import (
    Curve,
    Metric,
    Metrics,
    Picture,
    Pictures,
    PoseErrors,
    Text,
    depth_legend,
    heat_legend,
)

VOID = {"meta", "img", "br", "hr", "input", "link"}
SVG_LEAVES = {"line", "circle", "polyline", "path", "rect"}


class Page(HTMLParser):
    """Checks that every tag closes where it should; collects what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in SVG_LEAVES
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag


def sections():
    noise = torch.rand(12, 16, 3)
    row = [
        Picture("photo", (noise * 255).byte()),
        Picture("depth", palette.depth(noise[..., 0] + 0.5)),
        Picture("normals", palette.normals(noise * 2 - 1)),
        Picture('query "a <b> & c"', palette.heat(noise[..., 1], noise)),
    ]
    steps = list(range(0, 500, 10))
    return [
        Metrics(
            "Metrics",
            [
                Metric("psnr", "PSNR", 26.314159, "Ratio <peak> & noise.", "dB", (">=", 24)),
                Metric("error", "Depth error", 0.05, "Relative.", goal=("<=", 0.03)),
                Metric("lost", "Lost", float("nan"), "Nothing came out.", goal=(">=", 1)),
                Metric("steps", "Steps", 1500, "Optimiser steps."),
            ],
        ),
        Pictures("Views", [("view 0", row), ("view 1", row)], [depth_legend(0.5, 1.5), heat_legend()]),
        PoseErrors([2.0] * 8, [0.1 * i for i in range(8)], [0.03] * 8, [0.002] * 8),
        Curve("Losses", [Series("rgb", steps, [0.1 / (1 + s) for s in steps]), Series("gone", [], [])]),
        Text("Record", ["Plain <words>."], [("torch", torch.__version__)]),
    ]


@pytest.fixture
def report(tmp_path):
    path = write_report(
        tmp_path / "out", "A <title>", sections(), "In short.", {"seed": 3, "x": float("inf")}
    )
    return path, path.read_text("utf-8")


def test_page_is_well_formed_html(report):
    page = Page()
    page.feed(report[1])
    page.close()
    assert page.open == [] and report[1].startswith("<!doctype html>")
    assert {"html", "head", "body", "main", "svg", "table", "img"} <= set(page.tags)
    assert "script" not in page.tags and "A &lt;title&gt;" in report[1]


def test_page_needs_nothing_from_outside(report):
    page = Page()
    page.feed(report[1])
    assert len(page.references) == 8 and all(r.startswith("data:image/png;base64,") for r in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", report[1]))


def test_embedded_pictures_are_the_png_files_beside_it(report):
    path, text = report
    embedded = [base64.b64decode(x) for x in re.findall(r'base64,([^"]+)"', text)]
    files = sorted(path.parent.glob("*.png"))
    assert len(files) == 8 and {f.read_bytes() for f in files} == set(embedded)
    for data in embedded:
        assert Image.open(io.BytesIO(data)).size == (16, 12)


def test_metrics_json_says_what_each_number_means(report):
    stored = json.loads((report[0].parent / "metrics.json").read_text())
    psnr = stored["metrics"]["psnr"]
    assert psnr == {
        "value": 26.314159,
        "unit": "dB",
        "definition": "Ratio <peak> & noise.",
        "goal": ">= 24",
        "met": True,
    }
    assert stored["metrics"]["error"]["met"] is False and "goal" not in stored["metrics"]["steps"]
    assert stored["metrics"]["lost"]["value"] is None and stored["metrics"]["lost"]["met"] is False
    assert stored["record"] == {"seed": 3, "x": None} and stored["title"] == "A <title>"


def test_goals_are_judged_on_the_page(report):
    assert "✓ ≥ 24 dB" in report[1] and "✗ ≤ 0.03" in report[1] and "26.3 dB" in report[1]


def test_an_empty_report_is_still_a_page(tmp_path):
    path = write_report(tmp_path, "Nothing", [])
    assert "<h1>Nothing</h1>" in path.read_text("utf-8") and (tmp_path / "metrics.json").exists()


def test_log_axis_skips_what_has_no_logarithm():
    chart = line_chart([Series("a", range(5), [1, 0, -1, float("nan"), 100])], "step", "loss")
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    assert len(points) == 2 and float(points[0].split(",")[1]) > float(points[1].split(",")[1])
    assert "no data" in line_chart([Series("a", [0], [-1])], "step", "loss")


def test_a_flat_curve_and_one_point_can_be_drawn():
    for log in (True, False):
        for y in ([0.5, 0.5], [0.5]):
            assert "polyline" in line_chart([Series("a", range(len(y)), y)], "step", "loss", log)
    assert "circle" in before_after_chart([0.0], [0.0], "camera", "degrees")


def test_long_curves_are_thinned():
    chart = line_chart([Series("a", range(30000), np.linspace(1, 2, 30000))], "step", "loss")
    assert len(chart) < 20000


def test_colours_of_depth_run_from_light_to_dark():
    t = np.geomspace(0.5, 20, 100)[None]
    for scale in palette.SCALES:
        light = palette.depth(t, 0.5, 20, scale).astype(int) @ [30, 59, 11]
        assert (np.diff(light[0]) <= 0).all() and light[0, 0] > 3 * light[0, -1]
    assert (palette.depth(np.array([[np.nan, np.inf, 0, -1]]), 1, 2) == 128).all()
    assert palette.depth_at(0, 0.5, 20) == 0.5 and abs(palette.depth_at(1, 0.5, 20) - 20) < 1e-9


def test_legend_and_picture_agree():
    middle = palette.depth_at(0.5, 0.5, 20)
    want = palette.table(palette.DEPTH)[128]
    assert np.abs(palette.depth(np.array([[middle]]), 0.5, 20)[0, 0].astype(int) - want).max() <= 2


def test_normals_and_similarity_have_known_colours():
    axes = torch.eye(3)[None]
    assert palette.normals(axes)[0].tolist() == [[255, 128, 128], [128, 255, 128], [128, 128, 255]]
    assert palette.normals(torch.zeros(1, 1, 3))[0, 0].tolist() == [128, 128, 128]
    picture = torch.full((1, 3, 3), 0.5)
    warm = palette.heat(torch.tensor([[0.0, 1.0, torch.nan]]), picture)[0].astype(int)
    assert np.ptp(warm[0]) == 0 and warm[1, 0] > warm[1, 2] + 80 and (warm[2] == warm[0]).all()


def test_pictures_round_trip_through_png(tmp_path, device):
    picture = torch.rand(5, 7, 3, device=device)
    images.save_rgb(tmp_path / "a.png", picture)
    got = np.array(Image.open(tmp_path / "a.png"))
    np.testing.assert_allclose(got / 255, picture.cpu().numpy(), atol=0.51 / 255)
    images.save_rgb(tmp_path / "b.png", torch.rand(5, 7, 4, device=device))
    assert Image.open(tmp_path / "b.png").mode == "RGBA"
    images.save_depth(tmp_path / "d.png", picture[..., 0])
    assert Image.open(tmp_path / "d.png").size == (7, 5)
    with pytest.raises(ValueError, match=r"\[h, w, 3 or 4\], got \[5, 7\]"):
        images.save_rgb(tmp_path / "c.png", picture[..., 0])


def test_npz_holds_the_arrays(tmp_path):
    images.save_npz(tmp_path / "x.npz", {"depth": torch.arange(6.0).reshape(2, 3)})
    assert np.load(tmp_path / "x.npz", allow_pickle=False)["depth"].tolist() == [[0, 1, 2], [3, 4, 5]]


def read_exr(path):
    """A reader for uncompressed scan lines, from the format's description, not from our writer."""
    data = path.read_bytes()
    assert struct.unpack("<ii", data[:8]) == (20000630, 2)
    place, header = 8, {}
    while data[place] != 0:
        name, kind, _ = data[place:].split(b"\0", 2)
        start = place + len(name) + len(kind) + 2
        size = struct.unpack("<i", data[start : start + 4])[0]
        header[name.decode()] = (kind.decode(), data[start + 4 : start + 4 + size])
        place = start + 4 + size
    names, listed = [], header["channels"][1]
    while listed[0] != 0:
        name, listed = listed.split(b"\0", 1)
        assert struct.unpack("<iiii", listed[:16]) == (2, 0, 1, 1)
        names, listed = [*names, name.decode()], listed[16:]
    low_x, low_y, high_x, high_y = struct.unpack("<iiii", header["dataWindow"][1])
    width, height = high_x - low_x + 1, high_y - low_y + 1
    offsets = struct.unpack(f"<{height}Q", data[place + 1 : place + 1 + 8 * height])
    planes = {name: np.zeros((height, width), np.float32) for name in names}
    for offset in offsets:
        y, size = struct.unpack("<ii", data[offset : offset + 8])
        assert size == 4 * width * len(names)
        line = np.frombuffer(data, "<f4", width * len(names), offset + 8).reshape(len(names), width)
        for name, values in zip(names, line, strict=True):
            planes[name][y - low_y] = values
    assert names == sorted(names) and header["compression"] == ("compression", b"\0")
    return planes


def test_exr_keeps_every_float(tmp_path, device):
    picture = torch.randn(5, 7, 3, device=device) * 100
    images.save_exr(tmp_path / "a.exr", picture)
    planes = read_exr(tmp_path / "a.exr")
    assert np.array_equal(np.stack([planes[c] for c in "RGB"], axis=-1), picture.cpu().numpy())
    images.save_exr(tmp_path / "b.exr", picture[..., 0])
    assert np.array_equal(read_exr(tmp_path / "b.exr")["Y"], picture[..., 0].cpu().numpy())
    images.save_exr(tmp_path / "c.exr", picture[..., :2], channels=("v", "u"))
    assert np.array_equal(read_exr(tmp_path / "c.exr")["u"], picture[..., 1].cpu().numpy())
    with pytest.raises(ValueError, match="5 channels need 5 different names"):
        images.save_exr(tmp_path / "d.exr", torch.zeros(2, 2, 5))
