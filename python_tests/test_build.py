"""What the build promises: whole ops, no torch in the core, current tables, one-sentence errors."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

from bench import stubs
from raymarch import _C
from raymarch.ops._op import _outputs

ROOT = Path(__file__).resolve().parents[1]
OPS = stubs.read_ops()


def python(code, cwd, **env):
    """Run a snippet in a fresh interpreter, away from the checkout unless cwd says otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sources(folder, suffix):
    return "\n".join(p.read_text() for p in sorted((ROOT / "csrc" / folder).rglob(f"*{suffix}")))


def test_the_core_is_the_one_of_these_sources():
    for op in OPS:
        declared = ", ".join(f"{a.type} {a.name}" for a in op.arguments)
        bound = getattr(_C, op.name, None)
        assert bound is not None, f"{op.name} is not in {_C.__file__}: build again"
        assert declared in " ".join(bound.__doc__.split()), (
            f"{op.name} was built from an older ops.def: build again"
        )


@pytest.mark.parametrize("tag, folder, suffix", [("Cpu", "cpu", ".cpp"), ("Cuda", "cuda", ".cu")])
def test_every_op_has_a_body_on_the_backend(tag, folder, suffix):
    text = sources(folder, suffix)
    assert not [op.name for op in OPS if not re.search(rf"\bvoid {op.name}\(\s*{tag}\b", text)]


def test_the_double_build_has_every_op():
    _C64 = pytest.importorskip("raymarch._C64")
    assert not [op.name for op in OPS if not hasattr(_C64, op.name)]


def test_ops_def_was_read_whole():
    text = (ROOT / "csrc" / "ops.def").read_text()
    assert [op.name for op in OPS] == re.findall(r"^RM_OP\((\w+)", text, re.M)


def test_outputs_are_read_from_the_declarations():
    for op in OPS:
        assert _outputs(_C, op.name) == {i: a.name for i, a in enumerate(op.arguments) if "Out" in a.type}


def test_stub_file_is_current():
    assert stubs.STUB.read_text() == stubs.stub(), "run python -m bench.stubs"


def test_resource_table_names_every_kernel():
    table = (ROOT / "bench" / "resources.txt").read_text()
    kernels = re.findall(
        r"__global__\s+void(?:\s+__launch_bounds__\([^\n]*\))?\s+(\w+)\(", sources("cuda", ".cu")
    )
    listed = {line.split("<")[0].split(" ")[0] for line in table.splitlines()[2:]}
    assert kernels and not set(kernels) - listed, "run python -m bench.resources"


def test_core_needs_no_torch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
import numpy
from raymarch import _C
x = numpy.full((2, 3), 2.0, numpy.float32)
y = numpy.empty_like(x)
_C.contract_forward(x, y, 0)
print(numpy.isfinite(y).all() and "torch" not in [m for m, v in sys.modules.items() if v])
"""
    assert python(code, tmp_path) == "True"


def test_numpy_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="contract_forward: y has 4 points, expected 5"):
        _C.contract_forward(numpy.zeros((5, 3), numpy.float32), numpy.zeros((4, 3), numpy.float32), 0)


def test_import_is_quick_beyond_torch(tmp_path):
    code = "import torch, time; t = time.perf_counter(); import raymarch; print(time.perf_counter() - t)"
    assert min(float(python(code, tmp_path)) for _ in range(3)) < 0.3


def test_help_needs_no_torch(tmp_path):
    code = """
import sys
sys.argv = ["raymarch", "--help"]
from raymarch.apps.cli import main
try:
    main()
except SystemExit:
    print("torch" in sys.modules)
"""
    assert python(code, tmp_path).splitlines()[-1] == "False"


def test_the_package_is_the_command_too(tmp_path):
    code = "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('raymarch', run_name='__main__')"
    assert python(code, tmp_path).startswith("usage: raymarch")


def built(*words, **env):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *words],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=550,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools is not installed")
@pytest.mark.parametrize(
    "wanted, sentence", [("ON", "nvcc was not found"), ("MAYBE", "is not AUTO, ON or OFF")]
)
def test_a_build_that_cannot_be_had_says_why_in_one_sentence(wanted, sentence, tmp_path):
    missing = str(tmp_path)
    code, text = built("build_ext", RAYMARCH_CUDA=wanted, PATH=missing, CUDA_HOME=missing, CUDACXX="")
    assert code != 0 and sentence in text and "Traceback" not in text


TOOLS = ("setuptools", "wheel", "pybind11", "cmake", "ninja")
IN_PLACE = Path(_C.__file__).parent == ROOT / "raymarch"


@pytest.mark.skipif(not all(find_spec(t) for t in TOOLS), reason=f"needs {', '.join(TOOLS)}")
@pytest.mark.skipif(not IN_PLACE, reason="raymarch came from a wheel: that was the test")
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    env = {
        "RAYMARCH_CUDA": "ON" if _C.has_cuda else "OFF",
        "RAYMARCH_CUDA_ARCHS": _C.cuda_archs.replace(",", ";"),
    }
    code, text = built("bdist_wheel", "--dist-dir", str(tmp_path), **env)
    assert code == 0, text
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"raymarch/_C\..*\.so", n) for n in names)
    assert {"raymarch/_C.pyi", "raymarch/py.typed", "raymarch/apps/cli.py"} <= set(names)
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"raymarch"}
