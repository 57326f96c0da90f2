"""Copies of the checkout under build/proof, to build and break without touching the one people work in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("csrc", "raymarch", "python_tests", "bench", "docs")
COPIED = (*FOLDERS, "setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")


def copy(name: str) -> Path:
    """The sources as they are now, in build/proof/NAME; files that did not change keep their time stamps.

    Ignored files (built cores) stay behind, and what the copy has built before stays there.
    """
    tree = ROOT / "build" / "proof" / name
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *COPIED)
    said = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [file for file in said.split("\0") if file and (ROOT / file).is_file()]
    for file in names:
        source, target = ROOT / file, tree / file
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for folder in ("csrc", "raymarch", "python_tests", "bench"):  # what the checkout no longer has
        for old in (tree / folder).rglob("*"):
            inside = str(old.relative_to(tree))
            if old.suffix in (".py", ".h", ".cpp", ".def", ".cu", ".cuh") and inside not in names:
                old.unlink()
    return tree


def build(tree: Path, **env: str) -> None:
    """The CPU core in place; CalledProcessError carries the compiler's words."""
    command = ("python", "setup.py", "-q", "build_ext", "--inplace")
    subprocess.run(
        command, cwd=tree, env=os.environ | {"RAYMARCH_CUDA": "OFF"} | env, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
