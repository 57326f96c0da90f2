"""What the parser of the command line draws as a box, as the one sentence that other mistakes get."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

RULE = re.compile(r"^[\s\-\u2500-\u257f]*$")  # the lines of a box
FRAME = "\u2500\u2502\u256d\u256e\u2570\u256f| "


def one_line(box: str) -> str:
    """The message of a box: its first part, and the option that it finds nearest."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    parts: list[list[str]] = [[]]
    for line in plain.splitlines()[1:]:  # the first is the title
        if RULE.match(line):
            parts.append([])
        else:
            parts[-1].append(line.strip(FRAME))
    told = [" ".join(part) for part in parts if part]
    message = (told[0] if told else plain.strip()).rstrip(".")
    near = next((part for part in told[1:] if part.startswith("Perhaps you meant")), "")
    option = re.search(r"--[a-z][\w-]*", near)
    help_text = next((part for part in told if part.startswith("For full helptext")), "")
    command = re.search(r"raymarch.*--help", help_text)
    return (
        f"{message[:1].lower()}{message[1:]}"
        + (f"; did you mean {option[0]}?" if option else "")
        + f" (see `{command[0] if command else 'raymarch --help'}`)"
    )


def unknown_command(word: str, commands: Iterable[str]) -> str:
    """What to say of a first word that is no command."""
    known = list(commands)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no command {word!r}{nearest} (there are {', '.join(known)})"
