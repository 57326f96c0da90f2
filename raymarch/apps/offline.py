"""The viewer's page as this machine serves it: one folder's files, no tracking, no answer to other pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.S)
TRACKING = ("googletagmanager", "gtag(")
HERE = (
    "127.0.0.1",
    "localhost",
    "::1",
)  # what this machine is called by a browser on it, also through a tunnel


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


def ours(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Whether a request, by its Host and Origin headers, may be answered.

    A browser lets every page connect to this machine and says which page it is: it has to be the one that was
    asked for here, host and port (who is no browser says nothing). And what was asked for has to be this
    machine by name or number: any other name is a page whose owner points that name at 127.0.0.1.
    """
    if len(hosts) != 1 or len(origins) > 1:
        return False
    try:
        host = urlsplit(f"//{hosts[0]}")
        return host.hostname in HERE and all(x == f"http://{hosts[0]}" for x in origins)
    except ValueError:
        return False
