"""`raymarch inspect`: what a folder was recognised as, and what was found in it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymarch.data.pixels import bytes_needed
from raymarch.data.scene import FORMATS, describe, load
from raymarch.data.store import free_memory


def lines(path: Path, **options: Any) -> Iterator[str]:
    """What `describe` says of the scene, other formats in the same place, and what training will take."""
    scene = load(path, **options)
    yield from describe(scene).splitlines()
    modules = [importlib.import_module(name) for name in FORMATS]
    found = [module.LOOKS_FOR for module in modules if module.recognises(path.expanduser())]
    if others := found[1:]:
        yield f"also      {', and '.join(others)}: name the file itself to read that instead"
    needed, free = bytes_needed(scene, scene.train), free_memory()
    yield f"memory    {needed / 1e9:.3g} GB of photos to train on; {free / 1e9:.3g} GB are free here"
    count = len(scene.problems)
    yield f"{count or 'no'} problem{' was' if count == 1 else 's were'} found"
