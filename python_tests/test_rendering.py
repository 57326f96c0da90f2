"""`raymarch render`: given poses, paths, every head, every format."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from raymarch.apps.demo import train_demo
from raymarch.apps.pictures import Look
from raymarch.apps.video import Video, has_video, write_frames
from raymarch.config import ConfigError
from raymarch.data.exr import channels
from raymarch.data.paths import read_camera_path
from raymarch.features.words import STORED, write_embeddings
from raymarch.train.checkpoint import newest, path_at, write
from raymarch.trained import TrainedScene

HEADS = "rgb,depth,opacity,normals,pca,similarity"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run whose world is not the scene frame."""
    folder = tmp_path_factory.mktemp("rendering") / "run"
    found = train_demo(40, "cpu", folder)
    tensors, meta = newest(folder)
    world = {"scale": 2.5, "rotation": [[0, -1, 0], [1, 0, 0], [0, 0, 1]], "translation": [1.0, -2, 3]}
    meta["scene"]["world_from_scene"] = world
    write(path_at(folder, 40), tensors, meta)
    names = dict(zip(found.truth.names, found.truth.feature_vectors, strict=True))
    write_embeddings(folder / STORED, names, {})
    return folder


@pytest.fixture(scope="module")
def scene(run):
    return TrainedScene(run, "cpu")


def render(run, *words):
    command = [sys.executable, "-m", "raymarch.apps", "render", run, "--device", "cpu", *words]
    return subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trajectory(scene, tmp_path_factory):
    """A transforms.json of three test cameras in world units, at a size of its own."""
    frames = []
    for i in range(3):
        pose = scene.world_from_scene.apply_poses(scene.camera("test", i).camera_to_worlds.double())[0]
        frames.append({"file_path": f"shot {i}.png", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]})
    fx = float(scene.camera("test", 0).intrinsics[0, 0]) / 2
    meta = {"fl_x": fx, "fl_y": fx, "cx": 24, "cy": 24, "w": 48, "h": 48, "frames": frames}
    file = tmp_path_factory.mktemp("cameras") / "transforms.json"
    file.write_text(json.dumps(meta))
    return file


def test_a_trajectory_of_given_poses_with_every_head(run, scene, trajectory, tmp_path):
    done = render(
        run, "--cameras", trajectory, "--out", tmp_path, "--heads", HEADS, "--text", "mug",
        "--negatives", "sky", "--formats", "png,exr,npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    for i in range(3):
        stored = np.load(tmp_path / f"shot {i}.npz")
        camera = scene.camera("test", i)
        small = type(camera)(
            camera.camera_to_worlds, camera.intrinsics / 2, camera.distortion, camera.lens, camera.size // 2
        )
        want = scene.render(small, ("rgb", "depth", "normals", "feature"))
        for name in ("rgb", "depth", "normals", "feature"):  # poses and depths in world units, the same frame
            np.testing.assert_allclose(stored[name], want[name].numpy(), rtol=2e-2, atol=2e-2)
        assert stored["similarity"].shape == (48, 48, 1)
        for head in HEADS.split(","):
            assert Image.open(tmp_path / f"shot {i}_{head}.png").size == (48, 48)
        depth = channels((tmp_path / f"shot {i}_depth.exr").read_bytes(), "depth")
        np.testing.assert_array_equal(depth["Y"], stored["depth"])
        rgb = np.array(Image.open(tmp_path / f"shot {i}_rgb.png"))
        assert np.abs(rgb / 255 - stored["rgb"]).max() < 0.51 / 255


def test_paths_are_saved_and_followed(run, tmp_path):
    path = tmp_path / "path.json"
    done = render(
        run,
        "--path",
        "orbit",
        "--frames",
        3,
        "--side",
        24,
        "--out",
        tmp_path / "a",
        "--save-path",
        path,
        "--fps",
        12,
    )
    assert done.returncode == 0, done.stderr
    stored = read_camera_path(path)
    assert stored.fps == 12 and stored.cameras.size.tolist() == [[24, 24]] * 3
    done = render(run, "--cameras", path, "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    for i in range(3):
        a, b = (np.array(Image.open(tmp_path / x / f"frame_{i:05d}_rgb.png")).astype(int) for x in "ab")
        assert np.abs(a - b).max() <= 2


def test_interpolation_between_named_views(run, scene, tmp_path):
    done = render(
        run, "--path", "interpolate", "--view", "train:3", "train:9", "--frames", 3, "--side", 24,
        "--heads", "rgb", "--out", tmp_path, "--formats", "npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3
    done = render(run, "--path", "interpolate", "--view", "test:3", "--out", tmp_path)
    assert done.returncode == 1 and "training views" in done.stderr


@pytest.mark.skipif(not has_video(), reason="PyAV is not installed")
def test_a_video_per_head(run, tmp_path):
    import av

    done = render(
        run,
        "--path",
        "spiral",
        "--frames",
        4,
        "--side",
        33,
        "--heads",
        "rgb,pca",
        "--formats",
        "mp4",
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for head in ("rgb", "pca"):
        with av.open(str(tmp_path / f"{head}.mp4")) as video:
            pictures = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
        assert len(pictures) == 4 and pictures[0].shape == (34, 34, 3) and pictures[0].std() > 3
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.skipif(not has_video(), reason="PyAV is not installed")
def test_a_video_shows_its_pictures_in_order(tmp_path):
    import av

    video = Video(tmp_path / "grey.mp4", 24)
    for level in (40, 120, 200):
        video.add(np.full((32, 32, 3), level, np.uint8))
    with av.open(str(video.close())) as found:
        levels = [f.to_ndarray(format="rgb24").mean() for f in found.decode(video=0)]
    assert levels == pytest.approx([40, 120, 200], abs=4)


def test_pictures_instead_of_a_video_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = ({"rgb": np.full((4, 6, 3), i, np.uint8)} for i in range(3))
    lines = list(write_frames(tmp_path, frames, 24))
    assert "raymarch[video]" in lines[0] and lines[1] == str(tmp_path / "rgb")
    assert np.array(Image.open(tmp_path / "rgb" / "00002.png")).max() == 2


def test_colours_do_not_change_from_frame_to_frame(scene):
    look = Look(scene, ("depth", "pca"))
    first, second = (look.frame(scene.camera("test", i)) for i in (0, 1))
    alone = Look(scene, ("depth", "pca")).pictures(second)
    look.pictures(first)
    for head, picture in look.pictures(second).items():
        np.testing.assert_array_equal(picture, alone[head])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--heads", "rgb,sound"), "sound"),
        (("--heads", "similarity"), "--text"),
        (("--heads", "predicted_normals"), "predicted_normals"),
        (("--heads", "similarity", "--text", "unicorn"), "unicorn"),
        (("--heads", "rgb", "--text", "mug"), "--text is for the head similarity"),
        (("--formats", "gif"), "gif"),
        (("--save-path", "x.json"), "--path"),
        (("--view", "test"), "test"),
        (("--cameras", "gone.json"), "there is no file gone.json"),
    ],
)
def test_what_cannot_be_rendered_is_told(run, tmp_path, words, told):
    done = render(run, "--out", tmp_path, *words)
    assert done.returncode == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_heads_need_no_command_line(scene):
    with pytest.raises(ConfigError, match="no 'smell'"):
        Look(scene, ("smell",))
    camera = scene.camera("test", 0)
    look = Look(scene, ("similarity",), ("mug", "lemon"))
    pictures = look.pictures(look.frame(camera))
    assert set(pictures) == {"similarity_0", "similarity_1"}
    assert torch.is_tensor(look.frame(camera)["similarity"])
