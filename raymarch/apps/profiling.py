"""`raymarch profile`: where a step or a frame spends its time, as a table, JSON, a page and a timeline."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch import _C, __version__
from raymarch.apps.charts import Dot, roofline
from raymarch.apps.pipeline_drawing import Box, draw
from raymarch.apps.report import page_of
from raymarch.apps.sections import Drawing, Section, Table, Text
from raymarch.config import ConfigError, from_dict, override, preset
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import SyntheticScene, feature_maps, make_scene
from raymarch.profiling.ceilings import ceilings, cores, seconds
from raymarch.profiling.kernels import STEPS_TRACED, KernelRow, traced, write_timeline
from raymarch.profiling.measure import Measured, OpMissing, OpRow, measure, measure_op
from raymarch.profiling.ranges import PHASES
from raymarch.profiling.subjects import Frames, Subject, Training, skip_to
from raymarch.train import checkpoint
from raymarch.train.runs import pick_device, resume, smaller, start, subset
from raymarch.train.trainer import Trainer
from raymarch.trained import TrainedScene
from raymarch.types import Cameras

STEPS = {"cpu": 6, "cuda": 30}  # multiples of six: one step in six trains proposals, once they are warm
SIDE = {"cpu": 96, "cuda": 1080}  # pixels of the longer side of a frame
WHAT = ("train", "render", "op")
VIEWS, SIZE = 8, 64  # of the built-in scene
SHOWN = {"terminal": 16, "page": 60}  # ops in a table
LEAST = 1e-3  # share of an op that has a dot
FILES = ("index.html", "profile.json", "trace.json")


@dataclass(frozen=True)
class Request:
    """What a user asks to be profiled; the options of `raymarch profile`."""

    run: Path | None = None
    preset: str | None = None
    scene: Path | None = None
    what: str = "train"
    op: str | None = None
    out: Path | None = None
    steps: int | None = None
    settings: tuple[str, ...] = ()
    side: int | None = None
    nvtx: bool = False
    device: str = "auto"


def profile_run(asked: Request, told: Callable[[str], object] = lambda words: None) -> Iterator[str]:
    """Profile a run's or a preset's steps, frames or one op; yields what a user should read.

    Everything is measured first and written then. ConfigError for arguments that do not go together.
    """
    check(asked)
    device = pick_device(asked.device)
    count = asked.steps or STEPS[device.type]
    folder = folder_for(asked.out, asked.run)
    told("opening")
    subject = subject_of(asked, count, device)
    told("measuring what the machine can do")
    limits = ceilings(device)
    try:
        measured = (
            measure_op(subject, asked.op or "", max(count, 10), limits, seconds)
            if asked.what == "op"
            else measure(subject, count, limits, asked.nvtx, told)
        )
    except OpMissing as error:
        raise ConfigError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    rows, notes = kernels_of(subject, asked.what, folder)
    measured.notes += notes
    record = described(asked, device, limits) | measured.to_dict()
    record |= {"kernels": [row.to_dict() for row in rows], "notes": measured.notes}
    write(folder, record, measured, rows, limits)
    yield from shown(record, measured, rows)
    yield str(folder / "index.html")


def check(asked: Request) -> None:
    """ConfigError in one sentence where arguments do not go together."""
    if (asked.run is None) == (asked.preset is None):
        raise ConfigError("profile takes either a run folder or --preset, to say which model to profile")
    if asked.what not in WHAT:
        raise ConfigError(f"--what is {asked.what!r}, expected one of {', '.join(WHAT)}")
    if (asked.what == "op") != (asked.op is not None):
        raise ConfigError("--what op and --op NAME go together: --what op --op hashgrid_forward")
    if asked.steps is not None and asked.steps < 1:
        raise ConfigError(f"--steps is {asked.steps}, expected at least 1")
    if asked.side is not None and asked.side < 1:
        raise ConfigError(f"--side is {asked.side}, expected at least 1")
    if asked.run is not None and asked.settings:
        raise ConfigError("--set changes a preset; a run is profiled with the settings it was trained with")
    if asked.nvtx and importlib.util.find_spec("nvtx") is None:
        raise ConfigError("--nvtx needs the package nvtx: pip install nvtx")


def folder_for(out: Path | None, run: Path | None) -> Path:
    """Where the profile goes. ConfigError where something else is there, which would be overwritten."""
    folder = out or (run / "profile" if run is not None else Path("raymarch_profile"))
    foreign = [f for f in FILES if (folder / f).exists()]
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file, expected a folder")
    if foreign and not (folder / "profile.json").exists():
        raise ConfigError(f"{folder} holds {foreign[0]}, which is no profile's; give another --out")
    return folder


# ---- what is profiled ----


def subject_of(asked: Request, count: int, device: torch.device) -> Subject:
    photos = load(asked.scene) if asked.scene is not None else None
    if asked.what == "render":
        return frames_of(asked, photos, device)
    if asked.run is None:
        return Training(fresh_trainer(asked, photos, count, device))
    step = checkpoint.newest(asked.run)[1]["step"]
    more = step + max(count, 8) + 8
    return Training(resume(asked.run, str(device), photos or _kept_scene(asked.run), steps=more))


def _kept_scene(run: Path) -> Scene | None:
    """None: the scene that the run names, read again; the built-in one where it was trained from arrays."""
    meta = checkpoint.newest(run)[1]
    if meta["scene"]["source"] is not None:
        return None
    config = from_dict(meta["config"])
    views = len(meta["scene"]["train"])
    return built_in(config.model.fields.feature.width, views)


def frames_of(asked: Request, photos: Scene | None, device: torch.device) -> Frames:
    heads = frozenset({"rgb", "depth"})
    if asked.run is not None:
        opened = TrainedScene(asked.run, str(device))
        camera = opened.camera("test" if opened.test else "train", 0)
        return Frames(opened.model, _sized(camera, asked.side, device), heads)
    trainer = fresh_trainer(asked, photos, 1, device)
    camera = subset(trainer.source.cameras, (0,), device)
    if photos is None:
        camera = _enlarged(camera, asked.side or SIDE[device.type])
    return Frames(trainer.model, _sized(camera, asked.side, device), heads)


def _sized(camera: Cameras, side: int | None, device: torch.device) -> Cameras:
    return smaller(camera, side or SIDE[device.type])


def _enlarged(camera: Cameras, side: int) -> Cameras:
    """The built-in scene's camera with as many pixels as are asked for."""
    factor = side / int(camera.size.max())
    return replace(camera, intrinsics=camera.intrinsics * factor, size=(camera.size * factor).round().long())


def fresh_trainer(asked: Request, photos: Scene | None, count: int, device: torch.device) -> Trainer:
    """A trainer of a preset at a step past its warm-up, when steps cost what most of them cost."""
    config = preset(asked.preset or "")
    for setting in asked.settings:
        config = override(config, setting)
    scene = photos or built_in(config.model.fields.feature.width, VIEWS)
    late = config.model.sampler.update_warmup + config.model.sampler.update_every + 1
    needed = late + max(count, 8) + 8
    config = override(config, f"train.trainer.steps={max(needed, config.train.trainer.steps)}")
    trainer = start(scene, config, None, device)
    skip_to(trainer, late)
    return trainer


def built_in(width: int, views: int) -> Scene:
    """The demo's scene, with feature maps `width` wide: a step's cost depends on sizes, not on pictures."""
    truth = make_scene(views=views, test_views=1, size=SIZE, seed=0)
    return Scene.from_arrays(
        truth.images,
        truth.intrinsics,
        truth.camera_to_worlds,
        features=list(_maps(truth, width)) if width else None,
        split=(truth.train, truth.test),
        orientation="none",
        center="none",
        scale=1.0,
    )


def _maps(truth: SyntheticScene, width: int) -> Tensor:
    maps = feature_maps(truth, stride=4)
    random = torch.Generator().manual_seed(0)
    return (maps.float() @ torch.randn(maps.shape[-1], width, generator=random)).half()


def kernels_of(subject: Subject, what: str, folder: Path) -> tuple[list[KernelRow], list[str]]:
    """CUDA kernels of the real step, and its timeline in trace.draft."""
    if subject.device.type != "cuda":
        return [], ["Registers and occupancy belong to CUDA kernels; this was measured on a CPU."]
    if what == "op":
        return [], ["Kernels are listed for --what train and --what render."]
    with subject.open():
        subject.go_to(0)
        return traced(lambda: subject.real(STEPS_TRACED), STEPS_TRACED, folder / "trace.draft")


# ---- what is said about it ----


def described(asked: Request, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """What was profiled, when, on what and with which versions."""
    name = asked.run.resolve().name if asked.run is not None else f"preset {asked.preset}"
    on_gpu = device.type == "cuda"
    machine: dict[str, Any] = {"device": device.type, "name": processor(device), "cores": os.cpu_count()}
    machine |= {"threads": cores(), "torch_threads": torch.get_num_threads()}
    if on_gpu:
        facts = torch.cuda.get_device_properties(device)
        machine |= {"arch": f"sm_{facts.major}{facts.minor}", "multiprocessors": facts.multi_processor_count}
    return {
        "title": f"raymarch profile of {name}",
        "command": command(asked),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "machine": machine,
        "versions": {
            "raymarch": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": _C.cuda_version or "none",
        },
        "ceilings": limits,
    }


def command(asked: Request) -> str:
    words = ["raymarch", "profile", *([str(asked.run)] if asked.run else [])]
    for f in fields(Request):
        value = getattr(asked, f.name)
        if f.name in ("run", "settings") or value == f.default:
            continue
        words += [f"--{f.name}", *([] if value is True else [str(value)])]
    return shlex.join([*words, *(w for setting in asked.settings for w in ("--set", setting))])


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
        draft = folder / (file + ".draft")
        draft.write_text(text, "utf-8")
        os.replace(draft, folder / file)
    trace = folder / "trace.draft"
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
