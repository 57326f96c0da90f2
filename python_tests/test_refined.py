"""Refined poses: read, reported, exported, taken over from elsewhere; held-out poses; the page of a run."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from raymarch.apps.demo import demo_config
from raymarch.apps.exporting import export_run
from raymarch.apps.frustums import frustum_chart
from raymarch.apps.posing import tell_poses
from raymarch.apps.run_page import write_run_page
from raymarch.config import ConfigError
from raymarch.data.alignment import perturb, rotation_angle
from raymarch.data.error import SceneError
from raymarch.data.nerfstudio import read_cameras
from raymarch.data.pose_files import quaternion, read_adjustments, write_poses
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity, similarity
from raymarch.data.synthetic import make_scene
from raymarch.model.poses import compose
from raymarch.ops.pose import pose
from raymarch.train.held_out import aligned_cameras, chequered, evaluate_refined, held_out_cameras
from raymarch.train.localize import Level, LocalizeConfig
from raymarch.train.refined import adjusted, named_adjustments, refined_poses, report_rows, with_adjustments
from raymarch.train.runs import OpenRun, start
from raymarch.types import LENSES, Cameras

SIZE, VIEWS = 24, 9
WORLD = similarity(2.0, [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], [5.0, -2, 1])


@pytest.fixture(scope="module")
def truth():
    return make_scene(VIEWS, 3, SIZE)


@pytest.fixture(scope="module")
def data(truth):
    return Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0, file_from_world=WORLD.invert(),
    )  # fmt: skip


def run_with(data, folder, xi, **poses):
    """A run of two steps whose adjustments are then set to xi [C, 6], in coordinates that are xi's own."""
    config = demo_config(2, 0)
    poses = {"gauge": "free", "precondition": False} | poses
    config = replace(config, model=replace(config.model, poses=replace(config.model.poses, **poses)))
    trainer = start(data, config, folder, "cpu")
    trainer.train()
    with torch.no_grad():
        trainer.model.poses.adjustment.copy_(xi)
    trainer.save()
    return folder


@pytest.fixture(scope="module")
def xi():
    return 0.01 * torch.randn(VIEWS, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(data, xi, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined") / "run"
    return run_with(data, folder, xi, compose="world", frozen=(2,))


def test_corrections_are_told_in_degrees_and_world_units(run, xi, truth):
    found = refined_poses(OpenRun(run, "cpu"))
    kept = torch.ones(VIEWS)
    kept[2] = 0  # frozen
    assert torch.equal(found.adjustment, xi * kept[:, None])
    degrees = xi[:, 3:].norm(dim=1) * 180 / math.pi * kept
    assert torch.allclose(found.turned.float(), degrees, atol=2e-4)
    assert torch.allclose(found.moved.float(), WORLD.scale * xi[:, :3].norm(dim=1) * kept, atol=1e-5)
    assert found.frozen[2] and sum(found.frozen) == 1
    assert torch.allclose(found.given, WORLD.apply_poses(truth.camera_to_worlds[:VIEWS].double()), atol=1e-5)
    assert torch.equal(found.given[2], found.refined[2])
    rows = report_rows(found)
    assert len(rows) == VIEWS and rows[2]["frozen"] and json.dumps(rows)


def test_common_drift_is_told_apart_and_one_wild_camera_is_named(data, tmp_path):
    common = torch.tensor([0.02, -0.03, 0.01, 0.0, 0.0, 0.0]).repeat(VIEWS, 1)
    common[4, 3:] = torch.tensor([0.1, 0.0, 0.0])
    found = refined_poses(OpenRun(run_with(data, tmp_path / "run", common, compose="world"), "cpu"))
    assert found.outliers == (4,)
    others = [i for i in range(VIEWS) if i != 4]
    assert found.moved[others].min() > 0.03 * WORLD.scale  # all of it common
    assert found.turned_alone[4] > 4 and found.turned_alone[others].max() < 1.5


def test_aligned_held_out_cameras_follow_the_training_cameras(data, truth, tmp_path):
    shift = torch.tensor([0.05, 0.02, -0.01])
    moved = torch.cat([shift, torch.zeros(3)]).repeat(VIEWS, 1)
    opened = OpenRun(run_with(data, tmp_path / "run", moved, compose="world"), "cpu")
    given, aligned = held_out_cameras(opened, "none"), held_out_cameras(opened, "align")
    assert torch.equal(given.camera_to_worlds, truth.camera_to_worlds[VIEWS:])
    went = aligned.camera_to_worlds - given.camera_to_worlds
    assert torch.allclose(went[..., 3], shift.expand(3, 3), atol=1e-5)
    assert went[..., :3].abs().max() < 1e-5
    assert torch.equal(aligned.camera_to_worlds, held_out_cameras(opened, "refine").camera_to_worlds)
    with pytest.raises(ValueError, match="expected one of none, align, refine"):
        held_out_cameras(opened, "both")


def test_every_pixel_of_a_refined_evaluation_is_judged_once(run, truth):
    dark = chequered(SIZE, SIZE + 5, torch.device("cpu"))
    assert dark.shape == (SIZE, SIZE + 5) and abs(float(dark.float().mean()) - 0.5) < 0.05
    opened = OpenRun(run, "cpu")
    images, names = [truth.images[VIEWS]], ["held out"]
    opened.test = opened.test[:1]
    ((row, frame, refined),) = list(evaluate_refined(opened, images, names))
    assert frame["rgb"].shape == (SIZE, SIZE, 3) and math.isfinite(row.psnr)
    assert refined.halves == 0 and refined.degrees == 0  # two steps of training explain no photo


def rows_of(path):
    return [x.split() for x in path.read_text().splitlines() if x and not x.startswith("#")]


def test_transforms_come_back_as_they_were_written(run, tmp_path):
    opened = OpenRun(run, "cpu")
    (file,) = export_run(run, tmp_path / "out", "transforms", True, "cpu")
    names, cameras = read_cameras(file, Similarity())
    assert list(names) == [opened.names[i] for i in (*opened.train, *opened.test)]
    want = WORLD.apply_poses(opened.train_cameras().camera_to_worlds.double())
    assert torch.allclose(cameras.camera_to_worlds[:VIEWS].double(), want, atol=1e-5)
    along = WORLD.apply_poses(aligned_cameras(opened).camera_to_worlds.double())
    assert torch.allclose(cameras.camera_to_worlds[VIEWS:].double(), along, atol=1e-5)
    assert torch.allclose(cameras.intrinsics[0], opened.cameras.intrinsics[0])


def rotation_of(q):
    x, y, z, w = q
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def test_colmap_and_tum_hold_the_same_poses(run, tmp_path):
    want = refined_poses(OpenRun(run, "cpu")).refined
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    list(export_run(run, tmp_path / "colmap", "colmap", False, "cpu"))
    list(export_run(run, tmp_path / "tum", "tum", False, "cpu"))
    images, tum = rows_of(tmp_path / "colmap" / "images.txt"), rows_of(tmp_path / "tum" / "poses.tum")
    assert len(images) == len(tum) == VIEWS
    assert len(rows_of(tmp_path / "colmap" / "cameras.txt")) == 1
    assert rows_of(tmp_path / "colmap" / "points3D.txt") == []
    for i in range(VIEWS):
        w, x, y, z, *t = map(float, images[i][1:8])
        turn = rotation_of((x, y, z, w))
        centre = -turn.T @ torch.tensor(t, dtype=torch.float64)
        assert torch.allclose(turn.T @ flip, want[i, :, :3], atol=1e-6)
        assert torch.allclose(centre, want[i, :, 3], atol=1e-6)
        stamp, *numbers = map(float, tum[i])
        assert stamp == i and torch.allclose(torch.tensor(numbers[:3]).double(), want[i, :, 3], atol=1e-6)
        assert torch.allclose(rotation_of(numbers[3:]) @ flip, want[i, :, :3], atol=1e-6)


@pytest.mark.parametrize("lens, terms, model", [
    ("perspective", [0.1, 0, 0, 0, 0.01, 0], "OPENCV"),
    ("perspective", [0.1, 0, 0.2, 0, 0.01, 0], "FULL_OPENCV"),
    ("fisheye", [0.1, 0.2, 0, 0, 0, 0], "OPENCV_FISHEYE"),
])  # fmt: skip
def test_lenses_have_their_colmap_model(tmp_path, lens, terms, model):
    write_poses(tmp_path, "colmap", ["a.png"], camera_with(lens, terms))
    assert rows_of(tmp_path / "cameras.txt")[0][1] == model


def camera_with(lens, terms=(0,) * 6):
    return Cameras(
        torch.eye(4)[None, :3], torch.tensor([[9.0, 9, 4, 4]]), torch.tensor([[*terms, *[0] * 6]]).float(),
        torch.tensor([LENSES.index(lens)]), torch.tensor([[8, 8]]),
    )  # fmt: skip


def test_what_cannot_be_exported_gets_one_sentence_and_no_file(run, tmp_path):
    with pytest.raises(SceneError, match="COLMAP has no model"):
        write_poses(tmp_path / "x", "colmap", ["a.png"], camera_with("equirectangular"))
    with pytest.raises(SceneError, match="transforms, colmap, tum"):
        write_poses(tmp_path / "x", "ply", ["a.png"], camera_with("perspective"))
    broken = replace(camera_with("perspective"), camera_to_worlds=torch.full((1, 3, 4), math.nan))
    with pytest.raises(SceneError, match="not finite"):
        write_poses(tmp_path / "x", "tum", ["a.png"], broken)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="--poses: expected one of"):
        list(export_run(run, None, "ply", False, "cpu"))


def test_an_export_that_names_nothing_writes_transforms(run, tmp_path):
    (written,) = export_run(run, tmp_path / "x", None, False, "cpu")
    assert (
        written == str(tmp_path / "x" / "transforms.json") and (tmp_path / "x" / "transforms.json").is_file()
    )


def test_quaternions_of_every_kind_of_turn():
    for w in torch.randn(40, 3, dtype=torch.float64) * 2:
        xi = torch.cat([torch.zeros(3, dtype=torch.float64), w])[None]
        turn = pose(xi)[0, :, :3]
        assert torch.allclose(rotation_of(quaternion(turn)), turn, atol=1e-9)
    half = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    assert torch.allclose(rotation_of(quaternion(half)), half.double())


@pytest.mark.parametrize("convention", ["camera", "world"])
def test_adjustments_of_either_convention_are_taken_over(data, xi, tmp_path, convention):
    matrices = pose(xi)
    save_file({"_model.camera_optimizer.pose_adjustment": xi}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", matrices=matrices.numpy())
    (tmp_path / "c.json").write_text(json.dumps(xi.tolist()))
    want = compose(data.cameras.camera_to_worlds[:VIEWS], matrices, convention)
    for name in ("a.safetensors", "b.npz", "c.json"):
        found = with_adjustments(data, named_adjustments(tmp_path / name, convention)).cameras
        assert torch.allclose(found.camera_to_worlds[:VIEWS], want, atol=1e-6), name
        assert torch.equal(found.camera_to_worlds[VIEWS:], data.cameras.camera_to_worlds[VIEWS:])
    other = compose(
        data.cameras.camera_to_worlds[:VIEWS], matrices, {"camera": "world", "world": "camera"}[convention]
    )
    assert (want - other).abs().max() > 1e-3  # the name matters


def test_six_numbers_of_either_mode_are_taken_over(data, xi, tmp_path):
    xi = 10 * xi  # SE3 differs in the second order
    save_file({"pose_adjustment": xi}, tmp_path / "a.safetensors")
    given = data.cameras.camera_to_worlds[:VIEWS]
    found = {}
    for mode in (None, "SO3xR3", "SE3"):
        named = named_adjustments(tmp_path / "a.safetensors", "camera", mode)
        found[mode] = with_adjustments(data, named).cameras.camera_to_worlds[:VIEWS]
        want = compose(given, pose(xi, mode or "SO3xR3"), "camera")
        torch.testing.assert_close(found[mode], want, rtol=0, atol=1e-6)
    assert (found["SE3"] - found["SO3xR3"]).abs().max() > 1e-3
    without = {"path": str(tmp_path / "a.safetensors"), "convention": "camera"}  # as older runs name them
    assert torch.equal(with_adjustments(data, without).cameras.camera_to_worlds[:VIEWS], found[None])


def test_adjustments_that_do_not_fit_get_one_sentence(data, tmp_path):
    def refused(words, values, convention="world", mode="SO3xR3"):
        with pytest.raises(SceneError, match=words) as told:
            adjusted(data, values, convention, mode)
        assert "\n" not in str(told.value)

    refused("camera or world, not 'left'", torch.zeros(VIEWS, 6), "left")
    refused("read as SO3xR3 or SE3", torch.zeros(VIEWS, 6), mode="so3")
    refused("expected one for each of 9 training photos or of all 12", torch.zeros(5, 6))
    refused("expected \\[C, 6\\]", torch.zeros(VIEWS, 7))
    refused("not finite", torch.full((VIEWS, 6), math.inf))
    refused("adjustment 0 is not rigid", torch.zeros(VIEWS, 3, 4))
    with pytest.raises(SceneError, match="needs --convention"):
        named_adjustments("x.npz", None)
    with pytest.raises(SceneError, match="none were given"):
        named_adjustments(None, "world")
    with pytest.raises(SceneError, match="--adjustments-mode says how"):
        named_adjustments(None, None, "SE3")
    (tmp_path / "a.pt").write_bytes(b"")
    np.savez(tmp_path / "objects.npz", a=np.array([object()]))
    np.savez(tmp_path / "none.npz", a=np.zeros((3, 2)))
    for name, words in {
        "a.pt": "never opened",
        "objects.npz": "cannot be read",
        "none.npz": "holds no array",
        "gone.json": "cannot be read",
    }.items():
        with pytest.raises(SceneError, match=words):
            read_adjustments(tmp_path / name)


def test_the_page_of_a_run_stands_alone(run, tmp_path):
    (run / "eval").mkdir(exist_ok=True)
    stored = {"step": 2, "poses": "align", "protocol": "as said", "mean": {"psnr": 21.5, "ssim": 0.5}}
    (run / "eval" / "metrics_align.json").write_text(json.dumps(stored))
    (run / "eval" / "metrics.json").write_text(json.dumps(stored | {"step": 1}))  # of another step
    page = write_run_page(run, "cpu").read_text()
    HTMLParser().feed(page)
    assert 'src="http' not in page and "Cameras from above" in page and "frozen" in page
    assert "PSNR, poses align" in page and "PSNR, poses none" not in page
    record = json.loads((run / "poses.json").read_text())
    assert len(record["cameras"]) == VIEWS and record["drift"]["scale"] == pytest.approx(1, abs=0.1)
    lines = list(tell_poses(run, tmp_path / "poses.json", "cpu"))
    assert len(lines) == VIEWS + 3 and "frozen" in lines[3]


def test_frustums_are_drawn_inside_the_picture(truth):
    before = perturb(truth.camera_to_worlds, 5.0, 0.05)
    names = [f"<{i}>" for i in range(len(before))]
    chart = frustum_chart(before, truth.camera_to_worlds, names, (1,))
    assert chart.count("<polygon") == 2 * len(before) and "&lt;1&gt;</text>" in chart and "<1>" not in chart
    numbers = [
        float(x) for part in chart.split('points="')[1:] for x in part.split('"')[0].replace(",", " ").split()
    ]
    assert all(math.isfinite(x) and 0 <= x <= 640 for x in numbers)
    alone = frustum_chart(before[:1], before[:1], ["one"])
    assert "nan" not in alone and "inf" not in alone


def test_a_frozen_camera_stays_through_training(data, tmp_path):
    config = demo_config(30, 0)
    config = replace(config, model=replace(config.model, poses=replace(config.model.poses, frozen=(0, 3))))
    trainer = start(data, config, tmp_path / "run", "cpu")
    trainer.train()
    found = refined_poses(OpenRun(tmp_path / "run", "cpu"))
    assert [i for i in range(VIEWS) if torch.equal(found.given[i], found.refined[i])] == [0, 3]
    assert rotation_angle(found.refined[1, :, :3].T @ found.given[1, :, :3]) > 0


def main(words):
    pytest.importorskip("tyro", reason="the command line needs tyro")
    from raymarch.apps.cli import main as run_command

    run_command([str(word) for word in words])


def said(capsys, *words):
    main(words)
    return capsys.readouterr().out


def refused(capsys, *words):
    """The one sentence a failing command says."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 1 and len(lines) == 1, lines
    return lines[0]


def test_the_command_line_reaches_all_of_it(run, truth, tmp_path, capsys, monkeypatch):
    few = LocalizeConfig(particles=8, rounds=1, levels=(Level(16, 16, 1.0, 1, 2),))
    monkeypatch.setattr("raymarch.trained.LocalizeConfig", lambda: few)
    cpu = ("--device", "cpu")
    assert "poses.tum" in said(capsys, "export", run, "--poses", "tum", "--out", tmp_path / "tum", *cpu)
    assert "all together" in said(capsys, "poses", run, "--out", tmp_path / "poses.json", *cpu)
    assert "index.html" in said(capsys, "report", run, *cpu)
    photo = tmp_path / "photo.png"
    for name in ("photo.png", "again.png"):
        Image.fromarray(truth.images[VIEWS].numpy()).save(tmp_path / name)
    pose_file = tmp_path / "pose.json"
    pose_file.write_text(json.dumps({"transform_matrix": torch.eye(4).tolist()}))
    photos = (photo, tmp_path / "again.png")
    with pytest.raises(SystemExit) as stopped:
        main(("localize", run, *photos, "--init", pose_file, "--out", tmp_path / "found", *cpu))
    told, wrong = capsys.readouterr()
    assert told.count("not found: the rendering explains") == 2  # two steps of training explain no photo
    assert stopped.value.code == 3
    assert wrong.strip() == "raymarch: not found: photo.png, again.png (2 of 2 photos)"
    stored = json.loads((tmp_path / "found" / "photo.json").read_text())
    assert stored["converged"] is False and np.array(stored["covariance"]).shape == (6, 6)
    assert (tmp_path / "found" / "photo_overlay.png").exists()
    assert "no photo at" in refused(capsys, "localize", run, tmp_path / "gone.jpg", *cpu)
    assert "is a folder: name the photos in it" in refused(capsys, "localize", run, tmp_path, *cpu)
    assert "fx,fy,cx,cy" in refused(capsys, "localize", run, photo, "--intrinsics", "1,2", *cpu)
    assert "outside the photo" in refused(capsys, "localize", run, photo, "--intrinsics", "9,9,99,9", *cpu)
    assert "there is no run" in refused(capsys, "localize", tmp_path / "nowhere", photo, *cpu)
    pose_file.write_text("{}")
    assert "neither camera_to_world nor" in refused(capsys, "localize", run, photo, "--init", pose_file, *cpu)
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(capsys, "localize", tmp_path / "empty", photo, *cpu)
