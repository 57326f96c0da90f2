"""Build the native core with CMake and ninja, then let setuptools do the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def nvcc() -> str | None:
    """CUDA's compiler: named by CUDACXX, on PATH, or where the toolkit installs itself."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def wanted_cuda() -> str:
    """RAYMARCH_CUDA, or one sentence on why it cannot be had."""
    wanted = os.environ.get("RAYMARCH_CUDA", "AUTO").upper()
    if wanted not in ("AUTO", "ON", "OFF"):
        sys.exit(f"RAYMARCH_CUDA={wanted} is not AUTO, ON or OFF.")
    if wanted == "ON" and not nvcc():
        sys.exit("RAYMARCH_CUDA=ON, but nvcc was not found: put it on PATH or set CUDACXX to its path.")
    return wanted


class CMakeBuild(build_ext):
    def run(self):
        cuda = wanted_cuda()
        try:
            import pybind11
        except ImportError:
            sys.exit("raymarch needs pybind11 to build: pip install pybind11, or build with isolation.")
        ext = self.extensions[0]  # one CMake build makes every module
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": Path(self.get_ext_fullpath(ext.name)).resolve().parent,
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),  # isolation puts it elsewhere in every build
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "RAYMARCH_CUDA": cuda,
            "RAYMARCH_CUDA_ARCHS": os.environ.get("RAYMARCH_CUDA_ARCHS", ""),
            "RAYMARCH_EMULATE": os.environ.get("RAYMARCH_EMULATE", "OFF"),
            "RAYMARCH_SANITIZE": os.environ.get("RAYMARCH_SANITIZE", ""),
        }
        for tool in ("cmake", "ninja"):
            if not shutil.which(tool):
                sys.exit(f"raymarch needs {tool} to build: pip install {tool}, or build with isolation.")
        flags = [f"-D{key}={value}" for key, value in options.items()]
        env = os.environ | ({"CUDACXX": found} if (found := nvcc()) else {})
        try:
            subprocess.run(["cmake", "-G", "Ninja", str(ROOT), *flags], cwd=build, env=env, check=True)
            subprocess.run(["cmake", "--build", "."], cwd=build, check=True)
        except subprocess.CalledProcessError:
            sys.exit("raymarch: the native build failed; the compiler's first error is above.")
        if cuda == "AUTO" and not nvcc():
            print("raymarch: nvcc was not found, so only the CPU core was built.")


setup(
    ext_modules=[Extension("raymarch._C", sources=[]), Extension("raymarch._C64", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
