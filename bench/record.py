"""The record of a machine: bench/results/<gpu>.json, written section by section, and the same as Markdown.

A run that is cut off keeps what it has: every measurement is merged as soon as it is known, with the command
that made it, the commit and the date. `RAYMARCH_COMMIT` names the commit where there is no git; `OUT` names a
folder that gets a copy after every merge.

python -m bench.record            write the Markdown again from the JSON
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KEYS = (
    "commit",
    "date",
    "gpu",
    "versions",
    "ceilings",
    "ops",
    "checks",
    "proof",
    "steps",
    "frames",
    "quality",
    "poses",
    "localisation",
    "memory",
    "overhead",
    "build",
    "scaling",
    "peers",
)
SECTIONS = KEYS[4:]
STAMPS = ("command", "commit", "date", "load")
ENDS = ("_low", "_high")  # of the names of a value's 10th and 90th percentiles


def gpu_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def path() -> Path:
    """NVIDIA H200 -> h200.json; RAYMARCH_RECORD overrides."""
    words = re.sub(r"NVIDIA|GeForce|Tesla", "", gpu_name()).strip().lower()
    name = re.sub(r"[^a-z0-9]+", "_", words) + ".json"
    return Path(os.environ.get("RAYMARCH_RECORD", ROOT / "bench" / "results" / name))


def read() -> dict[str, Any]:
    return json.loads(path().read_text()) if path().exists() else {}


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> str:
    return os.environ.get("RAYMARCH_COMMIT") or _said("git", "rev-parse", "--short=12", "HEAD") or "unknown"


def cpu_model() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def load() -> float | None:
    """Processes that wanted a core, on average over the last minute; ours are among them."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """The processor's facts, or the GPU's, as torch and the driver tell them."""
    if not torch.cuda.is_available():
        return {
            "name": "CPU",
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "raymarch_threads": os.environ.get("RAYMARCH_THREADS", "all cores"),
        }
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "count": torch.cuda.device_count(),
        "arch": f"sm_{facts.major}{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gb": round(facts.total_memory / 1e9, 1),
        "l2_mb": round(getattr(facts, "L2_cache_size", 0) / 1e6, 1),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cpu": cpu_model(),
        "host_cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    import raymarch
    from raymarch import _C

    return {
        "raymarch": raymarch.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "none",
        "nvcc": _C.cuda_version or "none",
        "archs": _C.cuda_archs or "none",
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stamped(values: dict[str, Any], stamp: dict[str, Any]) -> dict[str, Any]:
    """The stamp lands in the outermost dictionaries that hold a plain value."""
    if values and all(isinstance(v, dict) for v in values.values()):
        return {k: _stamped(v, stamp) for k, v in values.items()}
    return values | stamp


def _merged(old: Any, new: dict[str, Any]) -> dict[str, Any]:
    """Down to a stamped dictionary, which replaces the old one whole."""
    if not isinstance(old, dict) or "command" in new or "command" in old:
        return new
    return old | {k: _merged(old.get(k), v) for k, v in new.items()}


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a folder while its files are read, changed and written: several measurements may run at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def merge(section: str, values: dict[str, Any], command: str) -> None:
    """Add measurements to a section of the record, stamped with how, on what and when they were made."""
    if section not in SECTIONS:
        raise ValueError(f"record: {section!r} is no section; expected one of {', '.join(SECTIONS)}")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    stamp = {"command": command, "commit": commit(), "date": now, "load": load()}
    with alone_in(path().parent):
        record = {key: {} for key in KEYS} | read()
        record |= {"commit": stamp["commit"], "date": now, "gpu": machine(), "versions": versions()}
        record[section] = _merged(record[section], _stamped(_finite(values), stamp))
        write(record)


def write(record: dict[str, Any]) -> None:
    """JSON and Markdown, each replaced in one move; copies into OUT."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    for file, text in (
        (target, json.dumps(record, indent=1, allow_nan=False) + "\n"),
        (target.with_suffix(".md"), markdown(record)),
    ):
        draft = file.with_name(file.name + ".draft")
        draft.write_text(text)
        os.replace(draft, file)
        out = Path(os.environ.get("OUT") or file.parent)
        if out.resolve() != file.parent.resolve():
            shutil.copy(file, out)


def rows_of(values: dict[str, Any], name: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(dotted path, plain values) of every dictionary that holds plain values."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    found = [(name, plain)] if plain else []
    for key, value in values.items():
        if isinstance(value, dict):
            found += rows_of(value, f"{name}.{key}" if name else key)
    return found


def spelled(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def table(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """One Markdown table; the columns are what any row has."""
    columns = list(dict.fromkeys(k for _, row in rows for k in row if k not in STAMPS))
    columns = [c for c in columns if not (c.endswith(ENDS) and c.rpartition("_")[0] in columns)]
    if not columns:
        return []
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cell(row, c) for c in columns) + " |" for name, row in rows]
    return [*lines, ""]


def cell(row: dict[str, Any], column: str) -> str:
    """The value, and its spread where it has one."""
    low, high = (row.get(column + end) for end in ENDS)
    known = f" ({spelled(low)} to {spelled(high)})" if low is not None and high is not None else ""
    return spelled(row.get(column)) + known


def made_of(command: str, rows: list[dict[str, Any]]) -> list[str]:
    """How a table's figures were made: command, commits and dates, and how busy the machine was."""
    if not rows:
        return []
    made = sorted({f"{row['commit']}, {row['date']}" for row in rows})
    loads = [row["load"] for row in rows if row.get("load") is not None]
    busy = f" Load average {min(loads)} to {max(loads)}." if loads else ""
    return [f"`{command}`; {made[0]}" + (f" to {made[-1]}" if len(made) > 1 else "") + "." + busy, ""]


def markdown(record: dict[str, Any]) -> str:
    gpu, tools = record.get("gpu", {}), record.get("versions", {})
    lines = [f"# raymarch on {gpu.get('name', 'an unknown machine')}", ""]
    lines += [
        "Written by `bench/record.py` from the JSON beside it; every section names the command that made it.",
        "Brackets hold the 10th and 90th percentiles of repeats.",
        "",
    ]
    lines += [f"Last change: commit {record.get('commit')}, {record.get('date')}.", ""]
    lines += table([("machine", gpu)]) + table([("versions", tools)])
    for section in SECTIONS:
        if not record.get(section):
            continue
        lines += [f"## {section}", ""]
        rows = rows_of(record[section])
        groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for name, row in rows:  # one table per command, so that columns belong together
            groups.setdefault(row.get("command", next(reversed(groups), "")), []).append((name, row))
        for command, members in groups.items():
            lines += table([(name, row) for name, row in members if set(row) - set(STAMPS)])
            lines += made_of(command, [row for _, row in members if "commit" in row])
    return "\n".join(lines)


if __name__ == "__main__":
    write(read())
