"""Whatever turned, moved and scaled the scene is undone on everything that comes out."""

import numpy as np
import pytest
import torch
from test_data import photo
from test_train import config, run_to

from bench import seeds
from raymarch.data.normalise import CENTERS, ORIENTATIONS
from raymarch.data.scene import Scene, load
from raymarch.data.similarity import Similarity, similarity
from raymarch.train.evaluate import render_image
from raymarch.train.runs import start
from raymarch.trained import TrainedScene


def world_poses(count=6):
    """Cameras of a world that is turned, far from the origin, and in other units."""
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    turn = turn * torch.det(turn)
    place = similarity(7.0, turn, [40.0, -20.0, 5.0])
    poses = torch.from_numpy(np.stack(seeds.ring(count))[:, :3])
    return place.apply_poses(poses)


def made(**options):
    poses = world_poses()
    pictures = np.stack([photo(8, 6, i) for i in range(len(poses))])
    return poses, Scene.from_arrays(pictures, [6.0, 6.0, 4.0, 3.0], poses, **options)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("scale", ["auto", "none", 0.3])
def test_every_step_leads_back(orientation, center, scale):
    applied = Similarity().then("applied_transform", similarity(rotation=[[0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    applied = applied.then("applied_scale", similarity(scale=2.5))
    world = world_poses()
    in_file = applied.apply_poses(world)
    pictures = np.stack([photo(8, 6, i) for i in range(len(world))])
    scene = Scene.from_arrays(pictures, [6.0, 6.0, 4.0, 3.0], in_file, orientation=orientation, center=center,
                              scale=scale, file_from_world=applied)  # fmt: skip
    back = scene.world_from_scene.apply_poses(scene.cameras.camera_to_worlds.double())
    assert torch.allclose(back, world, atol=2e-4)
    names = [name for name, _ in scene.world_from_scene.steps]
    assert names == ["scale", "orientation", "center", "applied_scale", "applied_transform"]
    for inner, outer in zip(
        scene.world_from_scene.steps, scene.world_from_scene.invert().steps[::-1], strict=True
    ):
        both = outer[1].apply(inner[1].apply(torch.eye(3, dtype=torch.float64)))
        assert torch.allclose(both, torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_queries_keep_their_digits_far_from_the_origin(tmp_path):
    """Coordinates of a map, in metres: float32 knows them to 6 cm."""
    _, near = made()
    away = torch.tensor([5e5, 4e6, 100.0], dtype=torch.float64)
    poses = world_poses()
    poses[:, :, 3] += away
    far = Scene.from_arrays([x.numpy() for x in near.images], [6.0, 6.0, 4.0, 3.0], poses)
    settings = config(steps=5, **{"model.fields.feature.width": 0, "model.poses.mode": "off"})
    points = world_poses()[:, :, 3] * 0.9
    found = []
    for name, scene, shift in (("near", near, 0 * away), ("far", far, away)):
        run_to(start(scene, settings, tmp_path / name, device="cpu"), 5).save()
        found.append(TrainedScene(tmp_path / name, "cpu").query(points + shift)["density"])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


def test_renderings_and_queries_are_in_the_world(tmp_path):
    _, scene = made(orientation="up", center="poses", scale="auto")
    settings = config(steps=5, **{"model.fields.feature.width": 0, "model.poses.mode": "off"})
    run_to(start(scene, settings, tmp_path / "run", device="cpu"), 5).save()
    opened = TrainedScene(tmp_path / "run", "cpu")
    back = opened.world_from_scene
    assert back.scale > 5 and not torch.allclose(back.rotation, torch.eye(3, dtype=torch.float64), atol=0.1)
    camera = opened.camera("test", 0)
    raw = render_image(opened.model, camera, 0, frozenset({"rgb", "depth", "opacity", "normals"}))
    found = opened.render(camera, ("rgb", "depth", "normals"))
    assert torch.equal(found["rgb"], raw["rgb"])
    assert torch.allclose(found["depth"], raw["depth"] * back.scale)
    assert torch.allclose(found["expected_depth"], raw["expected_depth"] * back.scale)
    assert torch.allclose(found["normals"], raw["normals"] @ back.rotation.float().T, atol=1e-6)
    assert not torch.allclose(found["normals"], raw["normals"], atol=0.1)
    inside = torch.rand(20, 3) - 0.5
    density = opened.model.fields.at(inside)["density"]
    asked = opened.query(back.apply(inside))["density"]
    assert torch.allclose(asked, density / back.scale, rtol=2e-2, atol=1e-6)


def test_depths_and_points_of_files_come_back(tmp_path):
    from test_colmap import write

    folder = write(tmp_path / "s", seeds.colmap_binary, **seeds.small_model(3))
    (folder / "depths").mkdir()
    for i in range(3):
        np.save(folder / "depths" / f"photo {i}.npy", np.full((8, 12), 1.25))
    scene = load(folder, depth_kind="ray")
    assert torch.allclose(scene.depths[0] * scene.world_from_scene.scale, torch.tensor(1.25))
    points = scene.world_from_scene.apply(scene.points.double())
    assert np.allclose(points, seeds.small_model()["points"], atol=1e-5)
