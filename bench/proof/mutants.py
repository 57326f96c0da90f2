"""Mutation test of csrc/math: does some test fail when a formula is wrong?

Each fault of bench/proof/faults.py is planted into a copy of the sources (build/proof/mutants), the files
that read the header are compiled again and linked with the objects of the others, and the tests of that
header run, quickest first, until one fails. A crash and a run without end count as noticed. First the
header's own stage alone is compiled, in float; only if nothing fails, everything that reads the header is,
in both builds, and the stage's other tests run.

Results are kept in bench/results/mutants.json, by what the fault is and where, so that a run goes on where
the last one stopped. Faults that change nothing a test could see are in bench/proof/equivalent.py, each with
the reason; faults that do not compile, or compile to the same code, are not counted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.proof import trees
from bench.proof.equivalent import EQUIVALENT
from bench.proof.faults import Fault, Group, faults, groups
from bench.record import alone_in

RESULTS = trees.ROOT / "bench" / "results" / "mutants.json"
FLAGS: tuple[str, ...] = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-w",
)
FLAGS += ("-D__SANITIZE_THREAD__",)  # for cpu/clones.h: one version of each loop, without FMA
LEAST_KILLED = 0.95
SLOWEST = 400.0  # seconds that the tests of one fault may take
# What `test_ops` asks of every row, without what asks torch more than the core.
ROWS = "(oracle or gradient or broken_numbers or no_rays or finite_differences)"
QUIET = "not traces and not registered and not cuda and not compile"


@dataclass(frozen=True)
class Watch:
    """Who looks after a header: the stage's own files, its rows in test_ops, its tests, and further tests."""

    units: tuple[str, ...]
    rows: str
    tests: tuple[str, ...]
    more: tuple[str, ...] = ()


WATCHES = {
    "activation.h": Watch(("mlp", "inputs"), "density or colour_in or mlp", ("mlp", "inputs"), ("fused",)),
    "adam.h": Watch(("adam",), "", ("adam",)),
    "angle.h": Watch(("pose", "rays"), "pose or rays", ("pose", "rays")),
    "box.h": Watch(("box", "rays_to_samples"), "near_far or cast_rays", ("box", "fused", "beside")),
    "camera.h": Watch(("rays",), "rays and not rays_to", ("rays",), ("fused", "beside")),
    "composite.h": Watch(
        ("composite", "samples_to_field", "field_to_pixels"),
        "composite or normal_head",
        ("composite", "fused"),
        ("losses", "beside"),
    ),
    "contract.h": Watch(("contract", "sample"), "contract or unit_pos", ("contract", "sample"), ("fused",)),
    "exponential.h": Watch(("weights",), "weights or transmittance", ("weights",), ("fused", "losses")),
    "harmonics.h": Watch(
        ("harmonics",), "harmonics or fourier or encode", ("harmonics",), ("fused", "inputs", "beside")
    ),
    "hashgrid.h": Watch(("hashgrid",), "hashgrid or encode", ("hashgrid",), ("inputs", "fused", "beside")),
    "lookup.h": Watch(("pixels",), "pixels or gather", ("pixels",), ("fused",)),
    "losses.h": Watch(
        ("losses", "field_to_pixels"),
        "losses or interlevel or distortion or orientation or proposal_loss",
        ("losses", "fused"),
        ("beside",),
    ),
    "march.h": Watch(
        ("march", "samples_to_pixels"), "march or representatives or samples_to", ("paths",), ("frames",)
    ),
    "mlp.h": Watch(("mlp",), "mlp", ("mlp",), ("fused", "frames")),
    "point.h": Watch(("samples_to_pixels",), "samples_to", ("frames",)),
    "pose.h": Watch(("pose", "rays_to_samples"), "pose or refine", ("pose",), ("fused", "refinement")),
    "random.h": Watch(("pixels", "sample"), "draw", ("pixels", "sample"), ("losses", "fused")),
    "scalar.h": Watch(
        ("hashgrid", "composite", "mlp", "sample", "losses", "pixels"),
        "half or bfloat or sample or interl",
        ("hashgrid", "composite", "sample", "losses"),
        ("pixels", "mlp"),
    ),
    "spacing.h": Watch(("sample",), "sample or from", ("sample",), ("fused",)),
    "stepfun.h": Watch(("sample",), "sample_pdf or march or resample", ("sample",), ("fused",)),
    "transmittance.h": Watch(("weights",), "weights or transmittance", ("weights",), ("fused", "losses")),
    "vec.h": Watch(
        ("pose", "rays", "box", "composite", "contract", "sample"),
        "pose or rays or near_far or composite",
        ("pose", "box", "rays", "composite"),
        ("fused", "contract", "losses"),
    ),
}


class Workshop:
    """A copy of the sources with objects of every file, and cores linked from them."""

    def __init__(self, name: str) -> None:
        import pybind11

        self.tree = trees.copy(name)
        self.objects = self.tree / "objects"
        self.objects.mkdir(exist_ok=True)
        sources = sorted((self.tree / "csrc" / "cpu").glob("*.cpp"))
        self.units = {source.stem: source for source in sources}
        self.units |= {name: self.tree / "csrc" / f"{name}.cpp" for name in ("cuda/none", "bind")}
        include = subprocess.run(
            ("python3-config", "--includes"), capture_output=True, text=True, check=False
        ).stdout.split()
        import sysconfig

        self.python = [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}", *include]
        self.changed: dict[bool, list[str]] = {False: [], True: []}  # what each core was linked with
        self.overlay = self.tree / "overlay"  # a header here is read before the one in csrc

    def readers(self, header: str) -> list[str]:
        """Files of csrc/cpu that include a header, however far down."""
        return [
            unit for unit in self.units if "/" not in unit and unit != "bind" and header in self.reads(unit)
        ]

    def reads(self, unit: str) -> set[str]:
        seen: set[Path] = set()
        ahead = [self.units[unit]]
        while ahead:
            path = ahead.pop()
            if path in seen or not path.exists():
                continue
            seen.add(path)
            text = path.read_text()
            ahead += [self.tree / "csrc" / name for name in re.findall(r'#include "([^"]+)"', text)]
        return {path.name for path in seen}

    def compile(self, unit: str, double: bool, target: Path) -> bool:
        core = "_C64" if double else "_C"
        flags = [
            *FLAGS,
            f"-I{self.overlay}",
            f"-I{self.tree / 'csrc'}",
            f"-DRM_DOUBLE={int(double)}",
            "-DRM_CUDA=0",
        ]
        if unit == "bind":
            flags += [f"-DRM_MODULE={core}", '-DRM_CUDA_ARCHS=""', '-DRM_CUDA_VERSION=""', *self.python]
        target.parent.mkdir(parents=True, exist_ok=True)
        command = ("g++", *flags, "-c", str(self.units[unit]), "-o", str(target))
        return subprocess.run(command, capture_output=True).returncode == 0

    def plant(self, fault: Fault | None) -> None:
        folder = self.overlay / "math"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        if fault:
            source = (self.tree / "csrc" / "math" / fault.header).read_text()
            (folder / fault.header).write_text(fault.planted(source))

    def prepare(self) -> None:
        """Objects of the sources as they are, where they are older than the sources."""
        self.plant(None)
        newest = max(p.stat().st_mtime for p in (self.tree / "csrc").rglob("*.*"))
        for double in (False, True):
            for unit in self.units:
                target = self.object(unit, double)
                if target.exists() and target.stat().st_mtime > newest:
                    continue
                if not self.compile(unit, double, target):
                    raise SystemExit(f"bench.proof mutants: {self.units[unit]} does not compile as it is")
            self.link(double, [])

    def object(self, unit: str, double: bool, changed: bool = False) -> Path:
        folder = self.objects / ("double" if double else "float") / ("changed" if changed else "normal")
        return folder / f"{unit}.o"

    def link(self, double: bool, changed: list[str]) -> None:
        """A core; changed objects come first, so that their functions are taken where several have them."""
        import sysconfig

        name = "_C64" if double else "_C"
        target = self.tree / "raymarch" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        files = [self.object(unit, double, True) for unit in changed]
        files += [self.object(unit, double) for unit in self.units if unit not in changed]
        draft = target.with_suffix(".draft")
        subprocess.run(("g++", "-shared", *map(str, files), "-o", str(draft), "-pthread"), check=True)
        os.replace(draft, target)
        self.changed[double] = changed

    def build(self, units: list[str], double: bool) -> str:
        """'' if the core was built again, else why not."""
        same = True
        for unit in units:
            target = self.object(unit, double, True)
            if not self.compile(unit, double, target):
                return "does not compile"
            same = same and target.read_bytes() == self.object(unit, double).read_bytes()
        self.link(double, units)
        return "same code" if same else ""


class Tests:
    """pytest in forks of a process that has torch loaded.

    A test that notices a fault must pass without one: this is tried the first time it speaks. Tests that do
    not (rounding differs at -O1) are left out from then on.
    """

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.sound: set[str] = set()
        self.unsound: set[str] = set()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"RAYMARCH_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.server = subprocess.Popen(
            (sys.executable, "-P", str(Path(__file__).with_name("server.py"))),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True,
        )  # fmt: skip

    def asked(self, words: list[str]) -> dict[str, Any]:
        quiet = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-rfE"]
        order = {"tree": str(self.shop.tree), "words": quiet + words, "limit": SLOWEST}
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def __call__(self, files: tuple[str, ...], words: str) -> str:
        """'' if all pass, else who noticed."""
        names = [f"python_tests/test_{f}.py" for f in files]
        names = [f for f in names if (self.shop.tree / f).exists()]
        while names:
            left_out = [word for test in sorted(self.unsound) for word in ("--deselect", test)]
            answer = self.asked(["-k", words, *left_out, *names])
            if answer["status"] in (0, 5):  # 5: nothing was asked
                break
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+::\S+?(?:\[.*?\])?)(?: - |$)", answer["text"], re.M)
            if not failed:
                last = answer["text"].strip().splitlines()[-1:]
                slow = answer["status"] == "slow"
                return "no end" if slow else f"crash ({answer['status']}) {''.join(last)[:80]}"
            if self.passes_without(failed[0]):
                return failed[0].split("/")[-1]
            print(f"  left out, for it fails without a fault: {failed[0]}", flush=True)
        return ""

    def passes_without(self, test: str) -> bool:
        if test not in self.sound | self.unsound:
            changed = dict(self.shop.changed)
            for double in changed:
                self.shop.link(double, [])
            (self.sound if self.asked([test])["status"] == 0 else self.unsound).add(test)
            for double, units in changed.items():
                self.shop.link(double, units)
        return test in self.sound

    def close(self) -> None:
        if self.server.stdin:
            self.server.stdin.close()
        self.server.wait(timeout=60)


def own_tests(watch: Watch, tests: Tests) -> str:
    """The stage's rows, then its own file."""
    by = tests(("ops",), f"({watch.rows}) and {ROWS} and {QUIET}") if watch.rows else ""
    return by or tests(watch.tests, QUIET)


def tried(fault: Fault, shop: Workshop, tests: Tests) -> tuple[str, str]:
    """killed, survived, or why it does not count; and who noticed."""
    watch = WATCHES[fault.header]
    shop.plant(fault)
    try:
        first = [unit for unit in watch.units if fault.header in shop.reads(unit)]
        problem = shop.build(first, False)
        if problem == "does not compile":
            return problem, ""
        if not problem and (by := own_tests(watch, tests)):
            return "killed", by
        everyone = shop.readers(fault.header)
        problems = [shop.build(everyone, double) for double in (False, True)]
        if "does not compile" in problems:
            return "does not compile", ""
        if all(problem == "same code" for problem in problems):
            return "same code", ""
        by = own_tests(watch, tests) or tests(("guards", *watch.more), QUIET)
        return ("killed", by) if by else ("survived", "")
    finally:
        for double in (False, True):
            if shop.changed[double]:
                shop.link(double, [])


def read() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(key: str, row: dict[str, Any]) -> None:
    """Adds one result; several runs may work on parts of the headers at the same time."""
    with alone_in(RESULTS.parent):
        write(read() | {key: row})


def write(found: dict[str, dict[str, Any]]) -> None:
    draft = RESULTS.with_suffix(".draft")
    draft.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n")
    os.replace(draft, RESULTS)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts per header and of all. Equivalent faults are told, and left out of the share."""
    rows: dict[str, Any] = {}
    for header in [*sorted({row["header"] for row in found.values()}), "all"]:
        mine = {k: r for k, r in found.items() if header in ("all", r["header"])}
        counted = {k: r for k, r in mine.items() if r["result"] in ("killed", "survived")}
        killed = sum(row["result"] == "killed" for row in counted.values())
        equivalent = sum(row["result"] == "survived" and key in EQUIVALENT for key, row in counted.items())
        survived = len(counted) - killed - equivalent
        real = killed + survived
        rows[header] = {
            "faults": len(counted),
            "killed": killed,
            "by_tests_added_since": sum(r["result"] == "killed" and "again" in r for r in counted.values()),
            "equivalent": equivalent,
            "survived": survived,
            "share_killed": round(killed / real, 4) if real else 1.0,
        }
    rows["all"]["ok"] = rows["all"]["share_killed"] >= LEAST_KILLED
    return rows


def next_of(group: Group, found: dict[str, dict[str, Any]], more: int, again: bool) -> Fault | None:
    """The fault of a function to try next; None when enough of them compiled, or none is left."""
    if again:
        rows = ((fault, found.get(fault.key, {})) for fault in group.faults)
        survivors = (f for f, row in rows if row.get("result") == "survived" and not row.get("again"))
        return next((fault for fault in survivors if fault.key not in EQUIVALENT), None)
    tried_yet = [found[fault.key]["result"] for fault in group.faults if fault.key in found]
    if sum(result in ("killed", "survived") for result in tried_yet) >= more * group.wanted:
        return None
    return next((fault for fault in group.faults if fault.key not in found), None)


def run(
    budget: float = float("inf"), more: int = 1, again: bool = False, part: int = 0, parts: int = 1
) -> dict[str, Any]:
    """Try what was not tried yet, derivatives first, for about `budget` seconds.

    `more` multiplies how many faults a function gets; `again` tries nothing but what survived, once more.
    With `parts`, this run takes part `part` of the functions; others may run at the same time.
    """
    headers = {path.name: path.read_text() for path in sorted((trees.ROOT / "csrc" / "math").glob("*.h"))}
    if unwatched := set(headers) - set(WATCHES):
        raise SystemExit(f"bench.proof mutants: name tests for {', '.join(sorted(unwatched))} in WATCHES")
    every = {name: faults(name, text) for name, text in headers.items()}
    plan = [group for found_here in every.values() for group in groups(found_here)]
    plan.sort(key=lambda group: "vjp" not in group.function)
    alive = {fault.key for found_here in every.values() for fault in found_here}
    found = {key: row for key, row in read().items() if key in alive}
    began = time.monotonic()
    shop = tests = None
    for group in plan[part::parts]:
        while time.monotonic() - began < budget and (fault := next_of(group, found, more, again)):
            if shop is None or tests is None:
                shop = Workshop(f"mutants{part or ''}")
                shop.prepare()
                tests = Tests(shop)
            result, by = tried(fault, shop, tests)
            row = {k: v for k, v in asdict(fault).items() if k in ("header", "function", "kind")}
            row |= {"was": fault.text.strip(), "now": fault.changed.strip(), "result": result, "by": by}
            found[fault.key] = row | ({"again": True} if again else {})
            keep(fault.key, found[fault.key])
            print(f"  {fault.key} {result} {fault.function}: {fault.changed.strip()[:90]} {by}", flush=True)
    if tests:
        tests.close()
    found = {key: row for key, row in read().items() if key in alive}
    write(found)
    rows = summary(found)
    rows["all"]["functions"] = len(plan)
    rows["all"]["functions_done"] = sum(next_of(group, found, more, False) is None for group in plan)
    for key, row in found.items():
        if row["result"] == "survived" and key not in EQUIVALENT:
            print(f"  survived: {key} {row['header']} {row['function']}: {row['now'][:100]}")
    return rows
