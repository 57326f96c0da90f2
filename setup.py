"""Build the native core with CMake and ninja, then let setuptools do the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def run(self):
        ext = self.extensions[0]  # one CMake build makes every module
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "RAYMARCH_CUDA": os.environ.get("RAYMARCH_CUDA", "AUTO"),
            "RAYMARCH_CUDA_ARCHS": os.environ.get("RAYMARCH_CUDA_ARCHS", ""),
            "RAYMARCH_SANITIZE": os.environ.get("RAYMARCH_SANITIZE", ""),
        }
        flags = [f"-D{key}={value}" for key, value in options.items()]
        try:
            subprocess.run(["cmake", "-G", "Ninja", str(ROOT), *flags], cwd=build, check=True)
            subprocess.run(["cmake", "--build", "."], cwd=build, check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"raymarch: the native build failed; its first error is above ({error.cmd[0]}).")


setup(
    ext_modules=[Extension("raymarch._C", sources=[]), Extension("raymarch._C64", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
