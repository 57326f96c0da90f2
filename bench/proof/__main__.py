"""Prove the ops, section by section, into the record (section `proof`) and docs/numerics.md.

python -m bench.proof                all sections, in this order
python -m bench.proof errors         error of every op and gradient against float64: float32, half, bfloat16
python -m bench.proof cases          20 000 random cases with awkward shapes and numbers
python -m bench.proof huge           arrays of more than 2^31 elements, where there is memory for them
python -m bench.proof threads        the thread pool under ThreadSanitizer
python -m bench.proof emulate        the op tests on the CUDA kernels, run by the CPU, in three orders
python -m bench.proof emulate_sanitized   the same once, with AddressSanitizer in the kernels
python -m bench.proof sanitize       the op tests on a core built with AddressSanitizer and UBSan
python -m bench.proof mutants        faults planted into csrc/math, each of which the tests should notice
python -m bench.proof docs           writes the tables of docs/numerics.md again from the record

    --device cuda     cases, errors and huge on a GPU       --cases N   how many random cases
    --order ORDER     for emulate: forward, backward or a number that shuffles, and nothing else
    --budget SECONDS  for mutants: those found so far are kept, and a later run goes on with the others
    --only ROW ...    for cases: these rows alone, the others stay as they were recorded
    --no-record       print, and leave the record and the page as they are

A section that fails does not stop the others; the exit status says whether any did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from bench import record
from bench.proof import cases, emulate, errors, mutants, numerics, sanitize, threads

SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "errors": lambda options: errors.run(options.device),
    "cases": lambda options: random_cases(options),
    "huge": lambda options: cases.huge(options.device),
    "threads": lambda options: threads.run(),
    "emulate": lambda options: emulate.run((options.order,)) if options.order else emulate.run(),
    "emulate_sanitized": lambda options: emulate.run_sanitized(),
    "sanitize": lambda options: sanitize.run(),
    "mutants": lambda options: mutants.run(options.budget, again=options.again),
}


def random_cases(options: argparse.Namespace) -> dict[str, Any]:
    def keep(rows: dict[str, Any]) -> None:
        if not options.no_record:
            record.merge("proof", {"cases": rows}, command("cases", options))

    def kept() -> dict[str, Any]:
        return record.read().get("proof", {}).get("cases", {})

    return cases.run(options.cases, options.device, options.only, keep, kept)


def command(section: str, options: argparse.Namespace) -> str:
    """What repeats a section."""
    words = ["python -m bench.proof", section]
    if section in ("errors", "cases", "huge") and options.device != "cpu":
        words.append(f"--device {options.device}")
    if section == "emulate" and options.order:
        words.append(f"--order {options.order}")
    return " ".join(words)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", type=int, default=cases.WANTED)
    parser.add_argument(
        "--only", nargs="*", default=[], help="cases: these rows alone; the record has others"
    )
    parser.add_argument("--order", help="emulate: this order of threads alone")
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true", help="mutants: only what survived, once more")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    chosen = options.sections or [*SECTIONS, "docs"]
    if unknown := set(chosen) - {*SECTIONS, "docs"}:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)} and docs")
    bad = []
    for section in chosen:
        if section == "docs":
            continue
        print(f"proof {section}", flush=True)
        found = SECTIONS[section](options)
        summary = found.get("all", found)
        print(f"  { {k: v for k, v in summary.items() if not isinstance(v, dict)} }", flush=True)
        if not summary["ok"]:
            bad.append(section)
        if not options.no_record:
            record.merge("proof", {section: found}, command(section, options))
    if not options.no_record:
        numerics.write()
    print("failed: " + ", ".join(bad) if bad else "proof: nothing failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
