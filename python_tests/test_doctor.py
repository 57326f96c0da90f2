"""The doctor on machines that are not well, played by small stand-ins."""

import subprocess
import sys

import pytest

from raymarch.apps import doctor


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PATH with nothing on it but what a test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    return tmp_path


def with_gpu(folder, name="NVIDIA H200", capability="9.0", cuda="13.0"):
    program(
        folder,
        "nvidia-smi",
        f'if [ $# -eq 0 ]; then echo "| CUDA Version: {cuda} |"; else echo "{name}, {capability}, 580.1"; fi',
    )


def fixes():
    return {f.name: f.fix for f in doctor.report() if f.fix and f.name not in doctor.OPTIONAL}


def test_a_machine_without_gpu_and_nvcc_is_well(machine, capsys):
    assert doctor.main() == 0
    text = capsys.readouterr().out
    for word in ("raymarch", "torch", "none visible", "not found", "CPU", "Nothing is wrong."):
        assert word in text
    assert all(f"{name} " in text for name in doctor.OPTIONAL)


def test_every_fix_is_one_line():
    for finding in doctor.report():
        assert "\n" not in finding.value + finding.fix


def core(monkeypatch, **facts):
    import raymarch._C as _C

    for name, value in facts.items():
        monkeypatch.setattr(_C, name, value)


def test_a_gpu_that_the_core_was_not_built_for(machine, monkeypatch):
    with_gpu(machine)
    core(monkeypatch, has_cuda=False)
    assert "RAYMARCH_CUDA=ON" in fixes()["core"]
    core(monkeypatch, has_cuda=True, cuda_archs="80,86", cuda_version="13.0.88")
    assert "core" not in fixes()
    with_gpu(machine, "NVIDIA GeForce RTX 2080", "7.5")
    assert "RAYMARCH_CUDA_ARCHS=75" in fixes()["core"]


def test_a_driver_older_than_the_core(machine, monkeypatch):
    with_gpu(machine, cuda="12.4")
    core(monkeypatch, has_cuda=True, cuda_archs="90", cuda_version="13.0.88")
    assert "update the driver" in fixes()["core"]


def test_a_torch_without_cuda_beside_a_gpu(machine, monkeypatch):
    import torch

    with_gpu(machine)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build" in fixes()["torch"]


@pytest.mark.parametrize(
    "mistake", ["raise OSError('no GPU here')", "raise SystemExit(3)", "import no_such_part"]
)
def test_a_package_that_fails_to_import_is_reported_not_raised(machine, monkeypatch, mistake):
    (machine / "viser.py").write_text(f"print('chatter')\n{mistake}\n")
    monkeypatch.syspath_prepend(str(machine))
    monkeypatch.delitem(sys.modules, "viser", raising=False)
    (found,) = [f for f in doctor.report() if f.name == "viser"]
    assert found.fix and "Traceback" not in found.value


def test_a_torchvision_of_another_torch_breaks_nothing_but_extraction(machine, tmp_path):
    (machine / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (machine / "open_clip.py").write_text("import torchvision\n")
    (machine / "timm.py").write_text("import torchvision\n")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import raymarch, raymarch.trained
from raymarch.apps import doctor
from raymarch.features.encoder import EncoderError, open_encoder
for f in doctor.report():
    if f.name in ("torchvision", "open_clip", "timm"):
        assert "does not import: torchvision was built for another torch" in f.fix, f
        assert "nms does not exist" in f.value, f
for name in ("clip", "dino"):
    try:
        open_encoder(name)
    except EncoderError as error:
        assert "does not load (operator torchvision::nms" in str(error), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code, str(machine)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_broken_nvidia_smi_is_no_gpu(machine):
    program(machine, "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    assert doctor.visible_gpus() == []
    program(machine, "nvidia-smi", "echo something else")
    assert doctor.visible_gpus() == []


@pytest.mark.parametrize(
    "built, arch, runs",
    [([80], 86, True), ([86], 80, False), ([80, 90], 89, True), ([90], 100, True), ([90], 89, False)],
)
def test_which_gpus_a_build_runs_on(built, arch, runs):
    assert doctor.runs_on(built, arch) is runs
