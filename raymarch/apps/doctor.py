"""What was built, what is installed, what this machine can run; one sentence on mending each problem."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from raymarch.apps.terminal import tell

TORCH_NEEDED = (2, 10)  # the first with DLPack's C exchange API

# Packages that raymarch can use but does not need, by the name that imports them: what to install, for what.
OPTIONAL = {
    "tinycudann": (
        "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
        "model.fields.backend=tcnn",
    ),
    "open_clip": ('"raymarch[features]"', "CLIP features and text queries"),
    "timm": ('"raymarch[features]"', "DINO features"),
    "torchvision": ('"raymarch[features]"', "open_clip and timm, which need it"),
    "viser": ("viser", "the viewer"),
    "trimesh": ("trimesh", "meshes as OBJ and GLB"),
    "skimage": ("scikit-image", "exporting meshes"),
    "av": ("av", "writing videos"),
    "tensorboard": ("tensorboard", "logging curves"),
    "nvtx": ("nvtx", "marking stages for Nsight"),
}


class Finding(NamedTuple):
    """One line of the report. `fix` is empty where nothing is wrong."""

    name: str
    value: str
    fix: str = ""


class Gpu(NamedTuple):
    name: str
    arch: int  # 90 for compute capability 9.0
    driver: str


def report() -> list[Finding]:
    """Everything the doctor looks at, in the order it is printed."""
    gpus = visible_gpus()
    return [
        Finding("raymarch", _raymarch_version()),
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        _torch(gpus),
        Finding("cores", str(len(os.sched_getaffinity(0)))),
        *([Finding("gpu", f"{g.name}, sm_{g.arch}") for g in gpus] or [Finding("gpu", "none visible")]),
        Finding("driver", _driver(gpus)),
        Finding("nvcc", _nvcc() or "not found"),
        *_core(gpus),
        *(_optional(module, install, use) for module, (install, use) in OPTIONAL.items()),
    ]


def main() -> int:
    """Print the report and the fixes; 1 where something that was asked of this machine cannot run."""
    findings = report()
    width = max(len(f.name) for f in findings)
    for f in findings:
        tell([f"{f.name:{width}}  {f.value}"])
    required = [f for f in findings if f.fix and f.name not in OPTIONAL]
    missing = [f for f in findings if f.fix and f.name in OPTIONAL]
    tell([""])
    for f in required:
        tell([f"problem: {f.name}: {f.fix}"])
    for f in missing:
        tell([f"optional: {f.fix}"])
    if not required:
        tell(["Nothing is wrong."])
    return 1 if required else 0


def visible_gpus() -> list[Gpu]:
    """What the driver shows, whatever torch was built for."""
    text = _said("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    known = [row for row in rows if len(row) == 3 and re.fullmatch(r"\d+\.\d+", row[1])]
    return [Gpu(name, int(capability.replace(".", "")), driver) for name, capability, driver in known]


def runs_on(built: list[int], arch: int) -> bool:
    """Machine code runs on later minor revisions of its generation; the newest is also there as PTX, which
    a driver translates for every later GPU."""
    return any(b // 10 == arch // 10 and b <= arch for b in built) or (bool(built) and max(built) <= arch)


def _said(*command: str) -> str:
    """What a program prints, or nothing where it cannot be run."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _raymarch_version() -> str:
    from raymarch import __version__

    return f"{__version__} ({Path(__file__).parents[1]})"


def _torch(gpus: list[Gpu]) -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding("torch", _why(error), "install torch 2.10 or newer: pip install torch.")
    flavour = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    value = f"{torch.__version__}, {flavour}"
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < TORCH_NEEDED:
        return Finding("torch", value, "raymarch needs torch 2.10 or newer: pip install -U torch.")
    if gpus and not torch.version.cuda:
        return Finding(
            "torch",
            value,
            "this torch cannot use the GPU: install a CUDA build (https://pytorch.org/get-started).",
        )
    if gpus and not torch.cuda.is_available():
        return Finding(
            "torch",
            value + ", but it sees no GPU",
            f"this torch needs a driver for CUDA {torch.version.cuda}: update the driver, or install a torch "
            "built for an older CUDA, and look whether CUDA_VISIBLE_DEVICES hides the GPU.",
        )
    return Finding("torch", value)


def _driver(gpus: list[Gpu]) -> str:
    if not gpus:
        return "none found (nvidia-smi)"
    newest = _driver_cuda()
    return gpus[0].driver + (f", up to CUDA {newest}" if newest else "")


def _driver_cuda() -> str:
    """The newest CUDA the driver can run, as nvidia-smi's banner says."""
    match = re.search(r"CUDA Version: (\d+\.\d+)", _said("nvidia-smi"))
    return match[1] if match else ""


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc") or f"{home}/bin/nvcc"
    match = re.search(r"V(\d+\.\d+\.\d+)", _said(compiler, "--version"))
    return f"{match[1]} ({compiler})" if match else ""


def _core(gpus: list[Gpu]) -> list[Finding]:
    """The native core against the GPUs and the driver at hand."""
    try:
        from raymarch import _C
    except Exception as error:
        return [
            Finding(
                "core",
                _why(error),
                "build the native core: pip install . from the checkout, or make build to work inside it.",
            )
        ]
    if not _C.has_cuda:
        nvcc = "" if _nvcc() else " once the CUDA toolkit is installed"
        fix = f"rebuild the core with CUDA{nvcc}: RAYMARCH_CUDA=ON pip install --no-deps --force-reinstall ."
        return [Finding("core", "CPU only", fix if gpus else "")]
    built = [int(a) for a in re.findall(r"\d+", _C.cuda_archs)]
    findings = [
        Finding("core", f"CPU and CUDA {_C.cuda_version} for sm_{_C.cuda_archs.replace(',', ', sm_')}")
    ]
    for arch in sorted({g.arch for g in gpus if not runs_on(built, g.arch)}):
        fix = f"rebuild for this GPU: RAYMARCH_CUDA_ARCHS={arch} pip install --no-deps --force-reinstall ."
        findings.append(Finding("core", f"has no code for sm_{arch}", fix))
    driver = _driver_cuda()
    if gpus and driver and int(driver.split(".")[0]) < int(_C.cuda_version.split(".")[0]):
        fix = f"update the driver, or rebuild with a CUDA {driver} toolkit on PATH."
        findings.append(Finding("core", f"needs CUDA {_C.cuda_version}, the driver stops at {driver}", fix))
    return findings


def _optional(module: str, install: str, use: str) -> Finding:
    """Import it: a package may be installed and still not work, and its own words say why."""
    if importlib.util.find_spec(module) is None:
        return Finding(module, "not installed", f"{use}: pip install {install}")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # tinycudann raises OSError where there is no GPU
        return Finding(
            module, _why(error), f"{module} is installed but does not import: {_mend(module, install)}"
        )
    return Finding(module, str(getattr(found, "__version__", "installed")))


def _mend(module: str, install: str) -> str:
    if module in ("torchvision", "open_clip", "timm") and _broken("torchvision"):
        return (
            "torchvision was built for another torch (PyPI's does not load beside the CPU torch): make "
            "an environment with pip install torch==2.14.1 torchvision open_clip_torch timm."
        )
    return f"reinstall {install}."


def _broken(module: str) -> bool:
    """Installed, but it does not import."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return error.name != module
    except Exception:
        return True
    return False


def _why(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


if __name__ == "__main__":
    sys.exit(main())
