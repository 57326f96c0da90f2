"""What the parser of the command line draws as a box, as the one sentence that other mistakes get."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

RULE = re.compile(r"^[\s\-\u2500-\u257f]*$")  # the lines of a box
FRAME = "\u2500\u2502\u256d\u256e\u2570\u256f| "


def one_line(box: str, command: str = "") -> str:
    """The message of a box: its first part, and the option that it finds nearest.

    command: the subcommand that was being read, whose help is pointed to where the box names none.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    parts: list[list[str]] = [[]]
    for line in plain.splitlines()[1:]:  # the first is the title
        if RULE.match(line):
            parts.append([])
        else:
            parts[-1].append(line.strip(FRAME))
    told = [" ".join(part) for part in parts if part]
    message = plainer((told[0] if told else plain.strip()).rstrip("."))
    near = next((part for part in told[1:] if part.startswith("Perhaps you meant")), "")
    option = re.search(r"--[a-z][\w-]*", near)
    help_text = next((part for part in told if part.startswith("For full helptext")), "")
    named = re.search(r"raymarch.*--help", help_text)
    see = max(named[0] if named else "", " ".join(["raymarch", *command.split(), "--help"]), key=len)
    if option and option[0] in re.findall(r"--[\w-]+", message):  # there is one, but of another command
        option = None
    return (
        f"{message[:1].lower()}{message[1:]}"
        + (f"; did you mean {option[0]}?" if option else "")
        + f" (see `{see}`)"
    )


def plainer(message: str) -> str:
    """The parser's words for values that do not fit, without what only its author understands."""
    if wrong := re.search(r"rror parsing (\S+): no type matching (\S+) could be .* from \['(.*)'\]", message):
        return f"{wrong[1]}: expected {wrong[2]}, got {wrong[3]!r}"
    if wrong := re.search(r"rror parsing (\S+): could not convert string to float: '(.*)'", message):
        return f"{wrong[1]}: expected FLOAT, got {wrong[2]!r}"
    if wrong := re.search(r"nvalid choice (.+) for argument '(\S+?)'\. Expected one of \((.*)\)", message):
        known = sorted({word.strip(" '") for word in wrong[3].split(",")} - {"", "None"})
        return f"{wrong[2]}: expected one of {', '.join(known)}, got {wrong[1]}"
    return message.removesuffix(" (required)").rstrip(".")


def unknown_command(word: str, commands: Iterable[str]) -> str:
    """What to say of a first word that is no command."""
    known = list(commands)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no command {word!r}{nearest} (there are {', '.join(known)})"
