"""Results -> one page: index.html that needs nothing else, the same pictures as PNG files, and metrics.json.

A page is a title and a list of sections (sections.py). Pictures, charts (SVG) and style are embedded: the
file opens offline, on a phone, in light and in dark, and runs no script.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from raymarch.apps import palette
from raymarch.apps.charts import before_after_chart, line_chart
from raymarch.apps.frustums import frustum_chart
from raymarch.apps.images import png_bytes
from raymarch.apps.sections import (
    Curve,
    Drawing,
    Frustums,
    Legend,
    Metric,
    Metrics,
    Picture,
    Pictures,
    PoseErrors,
    Section,
    Table,
)
from raymarch.apps.style import STYLE
from raymarch.data.atomic import write_bytes, write_text
from raymarch.data.plain import json_text


def write_report(
    out: str | Path, title: str, sections: Sequence[Section], summary: str = "", record: dict | None = None
) -> Path:
    """Write index.html, one PNG per picture and metrics.json into the folder `out`; returns the page's path.

    metrics.json holds `title`, `metrics` (by key: value, unit, definition, goal, met) and `record`, if given:
    whatever else JSON can say (versions, settings, dates). Numbers that are not finite become null there.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    page = page_of(out, title, sections, summary)
    metrics = _metrics(sections)
    stored = {"title": title, "metrics": {m.key: _stored(m) for m in metrics}}
    if record is not None:
        stored["record"] = record
    write_text(out / "metrics.json", json_text(stored, 2) + "\n")
    write_text(out / "index.html", page)
    return out / "index.html"


def page_of(out: Path, title: str, sections: Sequence[Section], summary: str = "") -> str:
    """The page's text; pictures are written into the folder `out`, which must be there."""
    written: set[str] = set()
    body = "".join(_section(section, out, written) for section in sections)
    return _page(title, summary, _headline(_metrics(sections)), body)


def _metrics(sections: Sequence[Section]) -> list[Metric]:
    return [m for s in sections if isinstance(s, Metrics) for m in s.metrics]


def _page(title: str, summary: str, headline: str, body: str) -> str:
    lead = f'<p class="lead">{escape(summary)}</p>' if summary else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f"<header><h1>{escape(title)}</h1>{lead}{headline}</header>\n{body}</main></body></html>\n"
    )


def _headline(metrics: Sequence[Metric]) -> str:
    """Tiles for the metrics that have a goal."""
    tiles = "".join(
        f'<div class="tile {_verdict(m)}"><dt>{escape(m.label)}</dt>'
        f"<dd>{_value(m)}</dd><dd>{_goal(m)}</dd></div>"
        for m in metrics
        if m.goal
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _section(section: Section, out: Path, written: set[str]) -> str:
    if isinstance(section, Metrics):
        inner = _table(section.metrics)
    elif isinstance(section, Pictures):
        inner = _pictures(section, out, written)
    elif isinstance(section, Curve):
        inner = line_chart(section.series, section.x_label, section.y_label, section.log)
    elif isinstance(section, PoseErrors):
        inner = _poses(section)
    elif isinstance(section, Table):
        inner = _rows(section)
    elif isinstance(section, Drawing):
        inner = section.svg
    elif isinstance(section, Frustums):
        inner = frustum_chart(section.before, section.after, section.names, section.marked)
    else:
        inner = "".join(f"<p>{escape(p)}</p>" for p in section.paragraphs) + _facts(section.facts)
    note = getattr(section, "note", "")
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(section.title)}</h2>{note}{inner}</section>\n"


def _table(metrics: Sequence[Metric]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(m.label)}</th><td class="value">{_value(m)}</td>'
        f'<td class="goal {_verdict(m)}">{_goal(m)}</td>'
        f'<td class="definition">{escape(m.definition)}</td></tr>'
        for m in metrics
    )
    head = "<thead><tr><th>Metric</th><th>Value</th><th>Goal</th><th>What it is</th></tr></thead>"
    return f'<table class="metrics">{head}<tbody>{rows}</tbody></table>'


def _pictures(section: Pictures, out: Path, written: set[str]) -> str:
    rows = []
    for label, pictures in section.rows:
        figures = "".join(_figure(label, picture, out, written) for picture in pictures)
        heading = f"<h3>{escape(label)}</h3>" if label else ""
        rows.append(f'{heading}<div class="row" style="--least:{section.width}px">{figures}</div>')
    legends = "".join(_legend(legend) for legend in section.legends)
    return (f'<div class="legends">{legends}</div>' if legends else "") + "".join(rows)


def _figure(label: str, picture: Picture, out: Path, written: set[str]) -> str:
    pixels = palette.rgb(picture.pixels)
    data = png_bytes(pixels)
    stem = _stem(picture.file or f"{label} {picture.caption}", written)
    write_bytes(out / f"{stem}.png", data)
    height, width = pixels.shape[:2]
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    words = escape(f"{label}: {picture.caption}" if label else picture.caption)
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{words}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _stem(words: str, written: set[str]) -> str:
    """A file name out of words, different from all before."""
    base = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "picture"
    stem, count = base, 1
    while stem in written:
        count += 1
        stem = f"{base}_{count}"
    written.add(stem)
    return stem


def _legend(legend: Legend) -> str:
    stops = ", ".join(legend.colours.split())
    low, high = legend.ends
    return (
        f'<div class="legend"><span class="of">{escape(legend.label)}</span>'
        f'<span class="strip" style="background:linear-gradient(to right, {stops})"></span>'
        f'<span class="ends"><span>{escape(low)}</span><span>{escape(legend.middle)}</span>'
        f"<span>{escape(high)}</span></span></div>"
    )


def _poses(section: PoseErrors) -> str:
    rotation = before_after_chart(section.rotation_before, section.rotation_after, "camera", "degrees")
    translation = before_after_chart(
        section.translation_before, section.translation_after, "camera", "scene units"
    )
    rows = (
        ("Rotation, degrees", section.rotation_before, section.rotation_after),
        ("Translation, scene units", section.translation_before, section.translation_after),
    )
    cells = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{number:.3g}</td>" for number in _spread(before, after))
        + "</tr>"
        for name, before, after in rows
    )
    head = "".join(
        f"<th>{h}</th>" for h in ("Error", "median before", "median after", "worst before", "worst after")
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    return f'{table}<div class="pair-of-charts">{rotation}{translation}</div>'


def _rows(section: Table) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in section.head)
    cells = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in section.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _spread(before, after):
    return float(np.median(before)), float(np.median(after)), float(np.max(before)), float(np.max(after))


def _facts(facts: Sequence[tuple[str, object]]) -> str:
    if not facts:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in facts)
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _number(value, digits: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


def _value(metric: Metric) -> str:
    return escape(_number(metric.value, metric.digits) + _unit(metric))


def _unit(metric: Metric) -> str:
    return metric.unit if metric.unit in ("", "°", "%") else f" {metric.unit}"


def _goal(metric: Metric) -> str:
    if metric.goal is None:
        return ""
    sign = {">=": "≥", "<=": "≤"}[metric.goal[0]]
    mark = {"met": "✓", "missed": "✗"}[_verdict(metric)]
    return escape(f"{mark} {sign} {metric.goal[1]:g}{_unit(metric)}")


def _verdict(metric: Metric) -> str:
    if metric.goal is None:
        return ""
    sign, bound = metric.goal
    value = float(metric.value)
    return "met" if (value >= bound if sign == ">=" else value <= bound) else "missed"


def _stored(metric: Metric) -> dict:
    stored = {"value": metric.value, "unit": metric.unit, "definition": metric.definition}
    if metric.goal is not None:
        stored |= {"goal": f"{metric.goal[0]} {metric.goal[1]:g}", "met": _verdict(metric) == "met"}
    return stored
