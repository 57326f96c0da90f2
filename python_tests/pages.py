"""The code blocks of README and docs, and what a comment above a block says of it.

<!-- not run: why -->        the block needs what a test cannot have; it is still parsed
<!-- quoted from PATH -->    the block is a passage of that file
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"(?:^[ ]*<!-- *(?P<note>not run|quoted from):? +(?P<words>[^\n]+?) *-->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.M | re.S,
)


def pages() -> list[Path]:
    """The pages at the root, and every page of the site."""
    root = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
    return [*(ROOT / name for name in root), *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the fence
    language: str
    text: str
    not_run: str = ""  # why
    quoted_from: str = ""  # path from the root

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    whole, found = page.read_text("utf-8"), []
    for match in FENCE.finditer(whole):
        note, words = match["note"] or "", match["words"] or ""
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
        line = whole.count("\n", 0, match.start("language")) + 1
        notes = {"not run": (words, ""), "quoted from": ("", words)}.get(note, ("", ""))
        found.append(Block(page, line, match["language"].strip(), text, *notes))
    return found


def without_blocks(page: Path) -> str:
    """A page's prose."""
    return FENCE.sub("", page.read_text("utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, split into words; assignments before a command are dropped."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|", ";"):
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
