"""What a report page can hold: metrics, pictures, curves, pose errors, text. report.py draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymarch.apps import palette
from raymarch.apps.charts import Series


@dataclass(frozen=True)
class Metric:
    """One number, what it means, and what it should be."""

    key: str  # its name in metrics.json
    label: str
    value: float | int | str
    definition: str
    unit: str = ""
    goal: tuple[str, float] | None = None  # (">=", 24.0) or ("<=", 0.03)
    digits: int = 3  # significant


@dataclass(frozen=True)
class Metrics:
    title: str
    metrics: Sequence[Metric]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """Pixels [h, w, 3 or 4] (float in 0..1 or uint8) and the words under them."""

    caption: str
    pixels: object
    file: str = ""  # stem of the PNG file; made from the row's label and the caption if empty


@dataclass(frozen=True)
class Legend:
    """What the colours of some pictures mean: a strip with a label at each end and in the middle."""

    label: str
    colours: str  # anchors, as in palette.py
    ends: tuple[str, str]
    middle: str = ""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures, each row with a label (a view, say)."""

    title: str
    rows: Sequence[tuple[str, Sequence[Picture]]]
    legends: Sequence[Legend] = ()
    note: str = ""
    width: int = 112  # smallest width of a picture on the page, pixels


@dataclass(frozen=True)
class Curve:
    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = "loss"
    log: bool = True
    note: str = ""


@dataclass(frozen=True)
class PoseErrors:
    """Errors per training camera before and after refinement: degrees, and scene units."""

    rotation_before: Sequence[float]
    rotation_after: Sequence[float]
    translation_before: Sequence[float]
    translation_after: Sequence[float]
    title: str = "Camera poses"
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs; a list of pairs becomes a table of facts."""

    title: str
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, object]] = ()


@dataclass(frozen=True)
class Table:
    """Rows of words under a head; the first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Frustums:
    """Cameras from above, before and after: poses [C, 3, 4], OpenGL axes."""

    title: str
    before: object
    after: object
    names: Sequence[str]
    marked: Sequence[int] = ()  # cameras to name in the drawing
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """An <svg> element that somebody else has drawn."""

    title: str
    svg: str
    note: str = ""


Section = Metrics | Pictures | Curve | PoseErrors | Table | Frustums | Drawing | Text


def depth_legend(near: float, far: float, scale: str = "inverse", unit: str = "") -> Legend:
    """The legend of pictures made with palette.depth(..., near, far, scale)."""
    anchors = " ".join(reversed(palette.DEPTH.split()))
    near_text, half, far_text = (f"{palette.depth_at(p, near, far, scale):.3g}{unit}" for p in (0, 0.5, 1))
    return Legend("Distance", anchors, (f"near {near_text}", f"far {far_text}"), half)


def heat_legend(low: float = 0.0, high: float = 1.0) -> Legend:
    """The legend of pictures made with palette.heat(..., low, high)."""
    return Legend("Similarity", palette.HEAT, (f"{low:g}", f"{high:g}"), f"{(low + high) / 2:g}")
