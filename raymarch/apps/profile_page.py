"""What a profile found, as a page, JSON and a timeline in a folder, and as tables in a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raymarch.apps.charts import Dot, roofline
from raymarch.apps.pipeline_drawing import Box, draw
from raymarch.apps.report import page_of
from raymarch.apps.sections import Drawing, Section, Table, Text
from raymarch.data.atomic import write_text
from raymarch.profiling.kernels import KernelRow, write_timeline
from raymarch.profiling.measure import Measured, OpRow
from raymarch.profiling.ranges import PHASES

SHOWN = {"terminal": 16, "page": 60}  # ops in a table
LEAST = 1e-3  # share of an op that has a dot
FILES = ("index.html", "profile.json", "trace.json")
DRAFT = "trace.draft"  # a timeline that its maker has left there


def sentence(record: dict[str, Any]) -> str:
    """What ran, in one line."""
    ran, step = record["ran"], record["step"]
    noun = "frame" if record["what"] == "render" else "step"
    how = "replayed as a CUDA graph" if ran["graph"] else "launched op by op"
    if record["what"] == "op":
        return f"Calls of one op in a {noun} of {ran['rays']} rays, each alone: {step['ms']:.4g} ms together."
    learns = step.get("proposals_learn_in")
    more = f", proposals learning in {learns} of them" if learns is not None else ""
    return (
        f"A {noun} of {ran['rays']} rays, {ran['pipeline']}, {how}: {step['ms']:.4g} ms (mean of "
        f"{step['steps']}{more}; {step['quickest_ms']:.4g} to {step['slowest_ms']:.4g}), run eagerly "
        f"{step['eager_ms']:.4g} ms."
    )


def facts(record: dict[str, Any]) -> list[tuple[str, object]]:
    ran, step, machine, limits = (record[k] for k in ("ran", "step", "machine", "ceilings"))
    found: list[tuple[str, object]] = [
        ("machine", f"{machine['name']}, {machine['cores']} cores; threads: {machine['threads']}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ("made", f"{record['command']}, {record['date']}"),
        ("copy bandwidth", f"{limits['copy_gbs']:.4g} GB/s, read and written"),
        ("matrix products", f"{1e3 * limits['matmul_tflops']:.4g} GFLOP/s"),
        ("samples per ray", " + ".join(str(n) for n in ran["samples"])),
        ("pipeline", ran["pipeline"] + (f" ({ran['why_composed']})" if ran.get("why_composed") else "")),
        ("launches", f"{step['launches']:.4g}" + (" that a GPU would take" if not ran["graph"] else "")),
    ]
    if "host_syncs" in step:
        waited = ", ".join(f"{r['op']} {r['waits']:.3g}" for r in record["ops"] if r["waits"])
        found.append(
            ("host synchronisations", f"{step['host_syncs']:.4g}" + (f" ({waited})" if waited else ""))
        )
    found += [
        ("bytes, arithmetic", f"{step['bytes'] / 1e6:.4g} MB, {step['flops'] / 1e9:.4g} GFLOP"),
        ("floor", f"{step['floor_ms']:.4g} ms, the sum of the ops' own"),
        ("peak memory", f"{step['peak_memory_bytes'] / 1e6:.4g} MB {step.get('peak_memory_is', '')}".strip()),
    ]
    return found


def cells(row: OpRow) -> list[str]:
    """One op as words; the head of the table is OP_HEAD."""
    return [
        row.op, row.stage, row.module or "", row.head, f"{row.ms:.3f}", f"{100 * row.share:.1f}",
        f"{row.launches:.3g}", _short(row.bytes / 1e6), _short(row.flops / 1e6), _short(row.gbs),
        _short(1e3 * row.tflops), f"{row.percent_of_floor:.0f}", row.bound,
    ]  # fmt: skip


OP_HEAD = (
    "op", "stage", "part of the model", "head", "ms", "%", "launches", "MB", "MFLOP", "GB/s", "GFLOP/s",
    "% of floor", "bound by",
)  # fmt: skip
STAGE_HEAD = ("stage", "part", "head", "ms", "%", "launches", "waits", "MB", "MFLOP")
KERNEL_HEAD = ("kernel", "ms", "%", "launches", "registers", "threads", "occupancy", "shared", "spills")


def _short(value: float) -> str:
    """Three digits, and no exponent where a table has room for the number."""
    return f"{value:.0f}" if value >= 1000 else "0" if value < 1e-6 else f"{value:.3g}"


def stage_cells(measured: Measured) -> list[list[str]]:
    return [
        [
            r.stage, r.phase, r.head, f"{r.ms:.3f}", f"{100 * r.share:.1f}", f"{r.launches:.3g}",
            f"{r.waits:.3g}", _short(r.bytes / 1e6), _short(r.flops / 1e6),
        ]
        for r in measured.stages
    ]  # fmt: skip


def kernel_cells(rows: Sequence[KernelRow]) -> list[list[str]]:
    def word(value: object, unit: str = "") -> str:
        return "" if value is None else f"{value}{unit}"

    return [
        [
            r.kernel, f"{r.ms:.4f}", f"{100 * r.share:.1f}", f"{r.launches:.3g}", word(r.registers),
            word(r.block), word(r.occupancy, " %"), word(r.shared), word(r.spills),
        ]
        for r in rows
    ]  # fmt: skip


def by_head(ops: Sequence[OpRow], stage: str | None = None) -> dict[str, float]:
    """Milliseconds of ops by head, of one stage or of all."""
    found: dict[str, float] = {}
    for row in ops:
        if stage is None or row.stage == stage:
            found[row.head] = found.get(row.head, 0.0) + row.ms
    return dict(sorted(found.items(), key=lambda kv: (kv[0] != "shared", -kv[1])))


def boxes(measured: Measured) -> list[Box]:
    """The stages as boxes of the drawing."""
    found = []
    for row in measured.stages:
        if not row.phase:
            continue
        ops = [o for o in measured.ops if o.stage == row.stage]
        lines = [f"{o.ms:.3g} ms  {o.op} {o.module.removeprefix('fields.')}".rstrip() for o in ops[:4]]
        found.append(Box(row.stage, row.phase, row.ms, row.share, by_head(ops), lines))
    return found


def dots(measured: Measured) -> list[Dot]:
    phases = {s.stage: s.phase for s in measured.stages}
    found = []
    for row in measured.ops:
        if row.bytes > 0 and row.flops > 0 and row.native and row.share >= LEAST:
            group = PHASES.index(phases[row.stage]) if phases.get(row.stage) else len(PHASES)
            name = f"{row.op} {row.module.removeprefix('fields.')}".rstrip()
            found.append(Dot(name, row.flops / row.bytes, 1e12 * row.tflops, row.share, group))
    return found


def sections(
    record: dict[str, Any], measured: Measured, rows: Sequence[KernelRow], limits: dict[str, float]
) -> list[Section]:
    found: list[Section] = []
    if measured.stages:
        note = (
            "Each box is a stage of an eager step, its bar as long as its share; the line below a name "
            "says whose the ops' time is, and the others which ops take longest."
        )
        found.append(Drawing("The step as the pipeline", draw(boxes(measured)), note))
    note = (
        "Each dot is an op in one part of the model, as large as its share, coloured as its part of the "
        "pipeline. The slope is what copying allows, the flat part what matrix products reach, both measured "
        "in this run. Dots above the roof work from the cache."
    )
    roof = roofline(dots(measured), 1e9 * limits["copy_gbs"], 1e12 * limits["matmul_tflops"])
    found.append(Drawing("Roofline", roof, note))
    if measured.stages:
        found.append(Table("Stages", STAGE_HEAD, stage_cells(measured), "Of an eager step; own time each."))
        heads = by_head(measured.ops)
        total = sum(heads.values()) or 1.0
        words = [(head, f"{ms:.4g}", f"{100 * ms / total:.1f}") for head, ms in heads.items()]
        found.append(Table("Shared and per head", ("head", "ms", "% of ops"), words))
    note = f"The {SHOWN['page']} that take longest; shares are of the step as it really runs."
    found.append(Table("Ops", OP_HEAD, [cells(r) for r in measured.ops[: SHOWN["page"]]], note))
    if rows:
        found.append(Table("CUDA kernels", KERNEL_HEAD, kernel_cells(rows), "As CUPTI saw the real step."))
    found.append(Text("What ran", measured.notes, facts(record)))
    return found


def write(
    folder: Path,
    record: dict[str, Any],
    measured: Measured,
    rows: Sequence[KernelRow],
    limits: dict[str, float],
) -> None:
    """index.html, profile.json and trace.json, each replaced in one move."""
    page = page_of(folder, record["title"], sections(record, measured, rows, limits), sentence(record))
    for file, text in (("index.html", page), ("profile.json", json.dumps(record, indent=1) + "\n")):
        write_text(folder / file, text)
    trace = folder / DRAFT
    if not rows and measured.events:
        write_timeline(measured.events, trace, record["title"])
    if trace.exists():
        os.replace(trace, folder / "trace.json")


def shown(record: dict[str, Any], measured: Measured, rows: Sequence[KernelRow]) -> Iterator[str]:
    """The same for a terminal."""
    yield sentence(record)
    if measured.stages:
        yield drawn(STAGE_HEAD, stage_cells(measured))
    yield drawn(OP_HEAD, [cells(r) for r in measured.ops[: SHOWN["terminal"]]])
    rest = measured.ops[SHOWN["terminal"] :]
    if rest:
        yield f"and {len(rest)} more ops of {sum(r.ms for r in rest):.3g} ms together"
    if rows:
        yield drawn(KERNEL_HEAD, kernel_cells(rows[: SHOWN["terminal"]]))
    for name, value in facts(record):
        yield f"{name}: {value}"
    yield from measured.notes


def drawn(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in lines of text: the first columns to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        numeric = all(_numeric(row[i]) for row in rows)
        grid.add_column(name, justify="right" if numeric and i else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console = Console(width=220)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _numeric(word: str) -> bool:
    return word == "" or word.rstrip(" %").replace(".", "").replace("-", "").replace("e+", "").isdigit()
