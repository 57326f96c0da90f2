"""The command line and the demo, as a newcomer meets them."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch


def raymarch(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "raymarch.apps", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


def refused(*words):
    """The one sentence a failing command says."""
    done = raymarch(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo of a few steps: the page, not the quality."""
    out = tmp_path_factory.mktemp("demo") / "raymarch_demo"
    done = raymarch("demo", "--out", out, "--steps", 8, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(out / "index.html")
    return out


def test_help_answers_at_once():
    began = time.perf_counter()
    done = raymarch("--help")
    assert done.returncode == 0 and "train" in done.stdout
    assert time.perf_counter() - began < 5  # 1 s on an idle machine; the suite may share its cores


def test_help_does_not_import_torch():
    code = """
import sys
sys.argv = ["raymarch", "--help"]
from raymarch.apps.cli import main
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_stands_alone(demo):
    page = (demo / "index.html").read_text()
    HTMLParser().feed(page)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    record = json.loads((demo / "metrics.json").read_text())
    for key in ("psnr", "depth_error", "iou_red_ball", "iou_mug", "rotation_error_after_deg"):
        assert isinstance(record["metrics"][key]["value"], float)
        assert record["metrics"][key]["definition"]


def test_the_demo_run_opens_from_python(demo):
    import raymarch as package

    scene = package.load(demo / "run", device="cpu")
    frame = scene.render(scene.camera("test", 0), heads=("rgb", "depth", "normals", "feature"))
    assert frame["rgb"].shape == (96, 96, 3) and frame["depth"].shape == (96, 96)
    found = scene.query(torch.rand(10, 3) - 0.5)
    assert found["density"].shape == (10,) and found["feature"].shape == (10, 32)
    with pytest.raises(ValueError, match="no head 'predicted_normals'"):
        scene.render(scene.camera("test", 0), heads=("predicted_normals",))
    assert "depth" in scene.render(scene.camera("test", 0), "depth")  # one word, not five letters
    with pytest.raises(ValueError, match="holds 6 cameras, expected one"):
        scene.render(scene.test_cameras())


def test_a_run_renders_from_the_command_line(demo, tmp_path):
    done = raymarch(
        "render", demo / "run", "--out", tmp_path, "--view", "test:0", "--heads", "rgb,depth,normals,feature",
        "--formats", "png,exr,npz", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {p.name for p in tmp_path.iterdir()}
    assert {"test_0000_rgb.png", "test_0000_depth.png", "test_0000_depth.exr", "test_0000.npz"} <= names
    first, *others = done.stdout.strip().split(", ")
    assert {first, *(str(tmp_path / x) for x in others)} == {str(p) for p in tmp_path.iterdir()}


def test_the_reduced_mode_says_what_it_costs(demo, tmp_path):
    texts = tmp_path / "texts.npy"
    np.save(texts, np.eye(2, 32, dtype=np.float32))
    words = (
        "render",
        demo / "run",
        "--out",
        tmp_path,
        "--view",
        "test:0",
        "--mode",
        "reduced",
        "--device",
        "cpu",
    )
    done = raymarch(*words, "--heads", "rgb,similarity", "--embeddings", texts)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^reduced: .* [\d.]+ dB against the exact mode on test_0000$", done.stdout, re.M)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"test_0000_similarity_0.png", "test_0000_similarity_1.png"} <= names
    assert "--embeddings" in refused(*words, "--heads", "similarity")


def photo_scene(folder, frames=6, size=20):
    """A small nerfstudio scene on disk."""
    from PIL import Image

    from raymarch.data.synthetic import make_scene

    truth = make_scene(views=frames, test_views=0, size=size)
    folder.mkdir()
    listed = []
    for i in range(frames):
        Image.fromarray(truth.images[i].numpy()).save(folder / f"{i:02d}.png")
        pose = torch.cat([truth.camera_to_worlds[i], torch.tensor([[0.0, 0, 0, 1]])])
        listed.append({"file_path": f"{i:02d}.png", "transform_matrix": pose.tolist()})
    fx, fy, cx, cy = truth.intrinsics.tolist()
    meta = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": size, "h": size, "frames": listed}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def test_train_eval_resume_on_a_folder_of_photos(tmp_path):
    scene, run = photo_scene(tmp_path / "photos"), tmp_path / "run"
    short = ("--set", "train.trainer.rays=64", "--device", "cpu")
    done = raymarch("train", scene, "--preset", "tiny", "--steps", 12, "--out", run, *short)
    assert done.returncode == 0, done.stderr
    done = raymarch("eval", run, "--device", "cpu")
    assert done.returncode == 0 and "not refined" in done.stdout, done.stderr
    assert json.loads((run / "eval" / "metrics.json").read_text())["mean"]["psnr"] > 3
    done = raymarch("resume", run, "--steps", 20, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "step-000000020" in str(list((run / "checkpoints").iterdir()))
    assert "already holds a run" in refused(
        "train", scene, "--preset", "tiny", "--out", run, "--device", "cpu"
    )


def test_bad_input_gets_one_sentence(tmp_path):
    scene = photo_scene(tmp_path / "photos")
    assert "did you mean" in refused("train", scene, "--preset", "tiny", "--set", "model.sampler.sample=3")
    assert "nowhere" in refused("train", tmp_path / "nowhere")
    assert "no run" in refused("eval", tmp_path / "nowhere")
    (scene / "transforms.json").write_text('{"frames": [')
    assert "transforms.json" in refused("train", scene)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_asked_for_where_there_is_none(tmp_path):
    scene = photo_scene(tmp_path / "photos")
    assert "--device cpu" in refused("train", scene, "--preset", "tiny", "--device", "cuda")
