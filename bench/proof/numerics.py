"""The tables of docs/numerics.md, from the record: python -m bench.proof docs."""

from __future__ import annotations

import json
import os
from typing import Any

from bench.proof.equivalent import EQUIVALENT
from bench.proof.mutants import read as read_mutants
from bench.record import ROOT

PAGE = ROOT / "docs" / "numerics.md"
RECORD = ROOT / "bench" / "results" / "cpu.json"
COLUMNS = ("forward max", "forward bias")


def proof() -> dict[str, Any]:
    return json.loads(RECORD.read_text()).get("proof", {})


def _made(row: dict[str, Any]) -> str:
    return f"`{row['command']}`, commit {row['commit']}, {row['date'][:10]}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else "0" if value == 0 else f"{value:.1e}"


def _gradients(row: dict[str, float]) -> str:
    names = [key.removesuffix(" max") for key in row if key.endswith(" max") and key not in COLUMNS]
    return "; ".join(f"{n} {_number(row[n + ' max'])} ({_number(row[n + ' bias'])})" for n in names)


def errors_table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| row of `bench/cases` | payload | forward, max (bias) | gradients, max (bias) |",
        "|---|---|---|---|",
    ]
    for name, row in found["table"].items():
        op, kind = name.split(", ")
        forward = " (".join(_number(row[c]) for c in COLUMNS) + ")"
        lines.append(f"| {op} | {kind} | {forward} | {_gradients(row)} |")
    return [*lines, "", f"{_made(found)}."]


def cases_table(found: dict[str, Any]) -> list[str]:
    total = found["all"]
    words = f"{total['cases']} cases of {total['rows']} rows, {total['failed']} failed"
    lines = [f"**{words}**, in {total['seconds']} s ({_made(total)})."]
    failures = [row["failure"] for row in found.values() if row.get("failure")]
    return lines + [f"- {failure}" for failure in failures]


def huge_table(found: dict[str, Any]) -> list[str]:
    names = [k for k, v in found.items() if isinstance(v, str) and k not in ("command", "commit", "date")]
    lines = [
        "| op | arrays of more than 2^31 elements |",
        "|---|---|",
        *(f"| {n} | {found[n]} |" for n in names),
    ]
    return [*lines, "", f"{_made(found)}."]


def threads_table(found: dict[str, Any]) -> list[str]:
    pools = {k.split("_")[1]: v for k, v in found.items() if k.startswith("reports_")}
    told = ", ".join(f"{count} with {threads}" for threads, count in pools.items())
    caught = "found" if found["planted_race_found"] else "NOT found"
    return [f"Reports by number of threads: {told}; a planted race is {caught} ({_made(found)})."]


def sanitize_table(found: dict[str, Any]) -> list[str]:
    counts = f"{found['reports']} reports in {found['passed']} tests, {found['failed']} failed"
    return [f"{counts}, built with `-fsanitize={found['sanitizers']}` ({_made(found)})."]


def emulate_table(found: dict[str, Any]) -> list[str]:
    orders = ", ".join(f"{name} {count}" for name, count in found["orders"].items())
    caught = f"{found['planted_faults_found']} of {found['planted_faults']} planted faults found"
    return [f"Tests passed: {orders}; {found['failed']} failed; {caught} ({_made(found)})."]


def mutants_table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| header | faults | killed | equivalent | survived | share killed |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        counts = " | ".join(str(row[k]) for k in ("faults", "killed", "equivalent", "survived"))
        lines.append(
            f"| {'**all**' if name == 'all' else name} | {counts} | {100 * row['share_killed']:.1f} % |"
        )
    rows = read_mutants()
    survivors = [(key, row) for key, row in rows.items() if row["result"] == "survived"]
    total = found["all"]
    share = (total["killed"] - total["by_tests_added_since"]) / max(1, total["faults"] - total["equivalent"])
    lines += [
        "",
        f"{total['functions_done']} of {total['functions']} functions have had their faults so far,",
        "derivatives first; a later run goes on with the others. At first the tests noticed "
        f"{100 * share:.1f} % of those that can be",
        f"noticed; {total['by_tests_added_since']} survived then and are killed by tests written since.",
        "",
        f"{_made(total)}.",
        "",
    ]
    if survivors:
        lines += ["Not killed:", ""]
    for key, row in sorted(survivors, key=lambda pair: (pair[1]["header"], pair[0])):
        why = EQUIVALENT.get(key, "**no test notices this**")
        lines.append(f"- `{row['header']}`, `{row['function']}`: `{row['was']}` as `{row['now']}`: {why}")
    return lines


TABLES = {
    "cases": cases_table,
    "huge": huge_table,
    "errors": errors_table,
    "sanitize": sanitize_table,
    "emulate": emulate_table,
    "threads": threads_table,
    "mutants": mutants_table,
}


def filled(page: str, found: dict[str, Any]) -> str:
    """The page, each table between its marks made from the record; ValueError where a mark is missing."""
    for section, table in TABLES.items():
        begin, end = f"<!-- {section}: python -m bench.proof docs -->", f"<!-- end of {section} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE.name}: expected one {begin!r} and one {end!r}")
        head, rest = page.split(begin)
        _, tail = rest.split(end)
        whole = section in found and (section != "cases" or "all" in found[section])
        body = "\n".join(table(found[section])) if whole else "Not measured yet."
        page = f"{head}{begin}\n\n{body}\n\n{end}{tail}"
    return page


def write() -> None:
    draft = PAGE.with_suffix(".draft")
    draft.write_text(filled(PAGE.read_text(), proof()))
    os.replace(draft, PAGE)
