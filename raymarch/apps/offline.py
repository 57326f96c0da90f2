"""The viewer's page as this machine serves it: one folder's files, and no tracking script."""

from __future__ import annotations

import re
from pathlib import Path

SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.S)
TRACKING = ("googletagmanager", "gtag(")


class Page:
    """One file of the page, read when asked for. Hashable: the server keeps what it has read by it."""

    def __init__(self, path: Path, inside: bool):
        self.path, self.inside = path, inside

    def exists(self) -> bool:
        return self.is_file()

    def is_file(self) -> bool:
        return self.inside and self.path.is_file()

    def read_bytes(self) -> bytes:
        data = self.path.read_bytes()
        return without_tracking(data.decode()).encode() if self.path.suffix == ".html" else data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Page) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)


class Pages:
    """Stands where the server expects the folder of its files: `folder / "index.html"` gives a Page."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def __truediv__(self, name: str) -> Page:
        path = (self.folder / name).resolve()
        return Page(path, path.is_relative_to(self.folder))


def without_tracking(html: str) -> str:
    """The page without scripts that report visits to somebody."""
    return SCRIPT.sub(lambda m: "" if any(word in m[0] for word in TRACKING) else m[0], html)
