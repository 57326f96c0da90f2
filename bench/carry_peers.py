"""Sources of the libraries that bench.peers races, as one archive that a machine without a network can build.

    python -m bench.carry_peers FOLDER      writes peers/peers.tar.xz (git-ignored) and says how large it is

FOLDER holds clones (bare or not) of the repositories in SOURCES, anywhere below. Only what a build needs is
taken, at the commits that measurements are pinned to; nothing of it is ever committed here. bench/peers.sh
unpacks, builds and runs.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from bench.record import ROOT

ARCHIVE = ROOT / "peers" / "peers.tar.xz"


@dataclass(frozen=True)
class Source:
    """A repository, the commit to take, which paths of it, and where they go in the archive."""

    url: str
    commit: str
    paths: tuple[str, ...]
    place: str


SOURCES = {
    "nerfacc": Source(
        "https://github.com/nerfstudio-project/nerfacc",
        "57ccfa14feb94975836ea6913149a86737220f2b",  # 0.5.3 and 43 commits
        ("nerfacc", "LICENSE"),
        "nerfacc_source",
    ),
    "tiny-cuda-nn": Source(
        "https://github.com/NVlabs/tiny-cuda-nn",
        "6ee3546bda615f51abe684ce9edefeb414689135",  # 2.0 and 35 commits
        (
            "CMakeLists.txt", "LICENSE.txt", "bindings/torch", "include", "src",
            "dependencies/json", "dependencies/pcg32", "dependencies/pybind11_json",
        ),
        "tiny-cuda-nn",
    ),
    "cutlass": Source(
        "https://github.com/NVIDIA/cutlass",
        "82f5075946e2569589439d500733b700a3141374",  # tiny-cuda-nn's submodule
        ("include", "tools/util/include", "LICENSE.txt"),
        "tiny-cuda-nn/dependencies/cutlass",
    ),
    "fmt": Source(
        "https://github.com/fmtlib/fmt",
        "fa2eb2d2e3ec5c21629f8ccd88ae05ec40b963fa",  # tiny-cuda-nn's submodule
        ("include", "src", "LICENSE.rst"),
        "tiny-cuda-nn/dependencies/fmt",
    ),
    "nerfstudio": Source(
        "https://github.com/nerfstudio-project/nerfstudio",
        "50e0e3c70c775e89333256213363badbf074f29d",  # 1.1.5 and 30 commits
        ("nerfstudio", "LICENSE"),
        "nerfstudio_source",
    ),
}  # fmt: skip

# What no longer compiles with CUDA 13, which took cub::Equality away.
REPLACED = {
    "nerfacc_source/nerfacc/cuda/csrc/scan_cub.cu": ("cub::Equality()", "cuda::std::equal_to<>()"),
}


class CarryError(RuntimeError):
    """Something is not where it was expected; the message says what and how to get it."""


def repository(folder: Path, name: str, source: Source) -> Path:
    """A git directory below the folder that has the commit."""
    places = [p for p in folder.rglob("*") if p.is_dir() and ((p / "HEAD").exists() or p.name == ".git")]
    owner_and_name = "/".join(source.url.split("/")[-2:])
    for place in sorted(places, key=lambda p: name not in str(p)):
        found = subprocess.run(
            ["git", "--git-dir", str(place), "cat-file", "-e", f"{source.commit}^{{commit}}"],
            capture_output=True,
        )
        if found.returncode == 0:
            return place
    raise CarryError(
        f"carry_peers: no clone of {owner_and_name} with commit {source.commit[:12]} below {folder}; "
        f"git clone {source.url} there"
    )


def files_of(place: Path, source: Source) -> list[tuple[str, bytes]]:
    """(path in the archive, contents) of what is taken from one repository."""
    done = subprocess.run(
        ["git", "--git-dir", str(place), "archive", source.commit, "--", *source.paths], capture_output=True
    )
    if done.returncode:
        raise CarryError(
            f"carry_peers: git archive of {source.url} failed: {done.stderr.decode().strip()[-200:]}"
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        members = [m for m in tar if m.isfile()]
        return [(f"{source.place}/{m.name}", tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]


def patched(name: str, contents: bytes) -> bytes:
    if name not in REPLACED:
        return contents
    old, new = (word.encode() for word in REPLACED[name])
    if old not in contents:
        raise CarryError(f"carry_peers: {name} has no {old.decode()} to replace; is it another version?")
    return b"#include <cuda/std/functional>\n" + contents.replace(old, new)


def carry(folder: Path, archive: Path = ARCHIVE, names: tuple[str, ...] = tuple(SOURCES)) -> tuple[int, int]:
    """Write the archive; bytes in it, and of it. CarryError where a source is missing."""
    found: list[tuple[str, bytes]] = []
    for name in names:
        found += files_of(repository(folder, name, SOURCES[name]), SOURCES[name])
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_name(archive.name + ".draft")
    with tarfile.open(draft, "w:xz", preset=9) as tar:
        for name, contents in sorted(found):
            entry = tarfile.TarInfo(name)
            contents = patched(name, contents)
            entry.size, entry.mode = len(contents), 0o644
            tar.addfile(entry, io.BytesIO(contents))
    draft.replace(archive)
    return sum(len(c) for _, c in found), archive.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help=f"of {', '.join(SOURCES)}")
    args = parser.parse_args()
    try:
        names = tuple(args.only.split(",")) if args.only else tuple(SOURCES)
        unpacked, packed = carry(args.folder, ARCHIVE, names)
    except CarryError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{ARCHIVE.relative_to(ROOT)}: {packed / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB unpacked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
