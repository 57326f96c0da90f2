"""Arrows point down: who may include or import whom, read off the sources themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# C++. A folder or file of csrc, and the folders and files that it may include.
INCLUDES = {
    "math": {"math"},
    "array.h": {"math"},
    "dlpack.h": set(),
    "ops.def": set(),
    "ops.h": {"array.h", "ops.def"},
    "cpu": {"math", "cpu", "array.h", "ops.h"},
    "cuda": {"math", "cuda", "array.h", "ops.h", "ops.def"},
    "emulator": {"math", "emulator", "ops.h", "ops.def"},  # poses as the toolkit, for kernels on the CPU
    "bind.cpp": {"ops.h", "ops.def", "dlpack.h"},
}

# Python. A module or folder of raymarch, and what of raymarch it may import (itself always): folders, or
# single modules of them. `trained` is the face of a run; `config` nests the settings of the modules below and
# of `train`, which reads them.
OPS = {"types", "ops"}
MODEL = OPS | {"nn"}
DATA = OPS | {"data"}
TRAIN = MODEL | DATA | {"model", "features", "config", "train"}
IMPORTS = {
    "types": set(),
    "ops": {"_C", "_C64", "types"},
    "nn": OPS,
    "model": MODEL,
    "data": DATA,
    "features": OPS | {"data.archive", "data.atomic"},  # files of embeddings are read and written like others
    "config": MODEL | {"model", "data", "features", "train"},
    "train": TRAIN | {"_C"},
    "trained": TRAIN,
    "export": TRAIN | {"trained"},
    "profiling": TRAIN | {"trained", "_C"},
    "apps": TRAIN | {"trained", "export", "profiling", "_C"},
    "__init__": {"trained", "data", "config", "train"},
    "__main__": {"apps"},
}

# Packages that one file alone may import: a replacement then touches that file.
DOORS = {
    "tinycudann": "nn/tcnn.py",
    "open_clip": "features/clip.py",
    "timm": "features/dino.py",
    "tyro": "apps/cli.py",
    "viser": "apps/view.py",
    "nvtx": "profiling/ranges.py",
}


def head(path: Path, base: Path) -> str:
    """The folder under base that holds the file, or the file's own name."""
    first = path.relative_to(base).parts[0]
    return first.removesuffix(".py") if base.name == "raymarch" else first


def included(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M)


def imported(tree: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Dotted names of everything imported; `package` is where the file lies, for relative imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join((*up, *filter(None, [node.module])))
            names += [f"{start}.{a.name}" if start in ("raymarch", "bench") else start for a in node.names]
    return names


def upward_includes(base: Path) -> list[str]:
    found = []
    for path in sorted(base.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".def"):
            own = head(path, base)
            for name in included(path.read_text()):
                if name.split("/")[0] not in INCLUDES.get(own, set()):
                    found.append(f"{path.relative_to(base)} includes {name}")
    return found


def upward_imports(base: Path) -> list[str]:
    found = []
    for path in sorted(base.rglob("*.py")):
        own = head(path, base)
        if own not in IMPORTS:
            found.append(f"{path.relative_to(base)} has no place in IMPORTS")
            continue
        package = ("raymarch", *path.relative_to(base).parts[:-1])
        for name in imported(ast.parse(path.read_text()), package):
            top, _, rest = name.partition(".")
            allowed = {own, "__version__"} | IMPORTS[own]
            if top in ("bench", "python_tests") or (
                top == "raymarch" and not {rest, rest.split(".")[0]} & allowed
            ):
                found.append(f"{path.relative_to(base)} imports {name}")
    return found


def test_core_includes_point_down():
    assert upward_includes(ROOT / "csrc") == []


def test_package_imports_point_down():
    assert upward_imports(ROOT / "raymarch") == []


def test_planted_upward_arrows_are_found(tmp_path):
    (tmp_path / "csrc" / "math").mkdir(parents=True)
    (tmp_path / "csrc" / "math" / "pose.h").write_text('#include "cpu/parallel.h"\n#include <cmath>\n')
    assert upward_includes(tmp_path / "csrc") == ["math/pose.h includes cpu/parallel.h"]
    (tmp_path / "raymarch" / "ops").mkdir(parents=True)
    (tmp_path / "raymarch" / "ops" / "pose.py").write_text("from ..model import poses\nfrom . import _op\n")
    (tmp_path / "raymarch" / "features").mkdir()
    (tmp_path / "raymarch" / "features" / "words.py").write_text(
        "from raymarch.data.atomic import whole\nfrom raymarch.data.scene import Scene\n"
    )
    assert upward_imports(tmp_path / "raymarch") == [
        "features/words.py imports raymarch.data.scene",
        "ops/pose.py imports raymarch.model",
    ]


def test_formulas_know_no_thread_and_no_array():
    schedule = re.compile(r"\b(threadIdx|blockIdx|__syncthreads|parallel_for|View<|In<|Out<)")
    for path in (ROOT / "csrc" / "math").glob("*.h"):
        assert not schedule.findall(path.read_text()), path.name


def test_cuda_and_python_stay_behind_their_doors():
    for path in (ROOT / "csrc").rglob("*"):
        text = path.read_text() if path.is_file() else ""
        own = head(path, ROOT / "csrc")
        if own != "bind.cpp":
            assert not re.search(r"#include\s+<(pybind11/|Python\.h)", text), path
        if own not in ("cuda", "math", "emulator"):
            assert not re.search(r"#include\s+<cuda", text), path
        assert not re.search(r"#include\s+<(torch|ATen|c10)/", text), path


def package_files():
    return [p for p in sorted((ROOT / "raymarch").rglob("*.py"))]


@pytest.mark.parametrize("package", DOORS)
def test_optional_packages_have_one_door(package):
    for path in package_files():
        if str(path.relative_to(ROOT / "raymarch")) != DOORS[package]:
            names = imported(ast.parse(path.read_text()), ("raymarch",))
            assert package not in [n.split(".")[0] for n in names], path


def test_torch_library_is_used_in_one_file():
    users = [p.name for p in package_files() if re.search(r"torch\.library|custom_op", p.read_text())]
    assert users == ["_op.py"]


def test_only_apps_print():
    for path in package_files():
        if head(path, ROOT / "raymarch") != "apps":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_rows_import_ops_and_nothing_above():
    for path in (ROOT / "bench" / "cases").glob("*.py"):
        for name in imported(ast.parse(path.read_text()), ("bench", "cases")):
            top, _, rest = name.partition(".")
            assert top != "raymarch" or rest.split(".")[0] in OPS, f"{path.name} imports {name}"
