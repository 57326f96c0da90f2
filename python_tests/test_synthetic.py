"""The traced scene: its truth holds together."""

import numpy as np
import pytest
import torch

from raymarch.data import solids
from raymarch.data.synthetic import NAMES, feature_maps, make_scene, render_views, ring_of_cameras
from raymarch.data.things import GROUND, SKY


@pytest.fixture(scope="module")
def scene():
    return make_scene(views=10, test_views=3, size=48, noise_rotation_deg=2, noise_translation=0.03)


def rays_of(scene, image):
    fx, fy, cx, cy = scene.intrinsics.tolist()
    height, width = scene.ids.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    camera = torch.stack([(x - cx) / fx, (cy - y) / fy, -torch.ones_like(x)], dim=-1)
    pose = scene.camera_to_worlds[image]
    directions = torch.nn.functional.normalize(camera @ pose[:, :3].T, dim=-1)
    return pose[:, 3], directions


def points_of(scene, image):
    origin, directions = rays_of(scene, image)
    return origin + scene.depth[image][..., None] * directions


def test_shapes_dtypes_and_splits(scene):
    assert scene.images.shape == (13, 48, 48, 3) and scene.images.dtype == torch.uint8
    assert scene.normals.shape == (13, 48, 48, 3) and scene.depth.shape == scene.ids.shape == (13, 48, 48)
    assert scene.depth.dtype == scene.normals.dtype == scene.camera_to_worlds.dtype == torch.float32
    assert scene.train == tuple(range(10)) and scene.test == (10, 11, 12)
    assert len(scene.names) == len(scene.feature_vectors) >= 7 and "red ball" in scene.names


def test_every_name_is_seen(scene):
    shares = torch.bincount(scene.ids.flatten().long(), minlength=len(NAMES)) / scene.ids.numel()
    assert (shares > 0.01).all() and shares[1] < 0.7


def test_depth_puts_ground_and_sky_where_they_are(scene):
    for image in range(13):
        points, ids = points_of(scene, image), scene.ids[image]
        torch.testing.assert_close(
            points[ids == 1][:, 2], torch.full(((ids == 1).sum(),), GROUND), atol=2e-5, rtol=0
        )
        sky = points[ids == 0].norm(dim=-1)
        torch.testing.assert_close(sky, torch.full_like(sky, SKY), atol=1e-4, rtol=0)
        assert (points[ids > 1].norm(dim=-1) < 0.75).all()


def test_z_depth_is_the_part_of_depth_along_the_view(scene):
    _, directions = rays_of(scene, 4)
    along = directions @ -scene.camera_to_worlds[4][:, 2]
    torch.testing.assert_close(scene.z_depth[4], scene.depth[4] * along, rtol=1e-5, atol=1e-6)


def test_normals_are_unit_and_face_the_camera(scene):
    torch.testing.assert_close(scene.normals.norm(dim=-1), torch.ones(scene.ids.shape), rtol=0, atol=1e-5)
    for image in range(13):
        _, directions = rays_of(scene, image)
        assert ((directions * scene.normals[image]).sum(dim=-1) <= 1e-5).all()


def test_normals_are_those_of_the_depth_map(scene):
    """On smooth parts of an object, neighbours' points span the tangent plane."""
    fine = render_views(scene.camera_to_worlds[:1].numpy(), scene.intrinsics.numpy() * 4, 192, 192)
    focal, centre = float(scene.intrinsics[0]) * 4, 96
    y, x = np.meshgrid(np.arange(192) + 0.5, np.arange(192) + 0.5, indexing="ij")
    camera = np.stack([(x - centre) / focal, (centre - y) / focal, -np.ones_like(x)], axis=-1)
    points = camera * fine.z_depth[0][..., None] @ scene.camera_to_worlds[0, :, :3].numpy().T
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normal = np.cross(down, across)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    agreement = (normal * fine.normals[0, 1:-1, 1:-1]).sum(axis=-1)
    assert np.median(agreement[fine.ids[0, 1:-1, 1:-1] > 1]) > 0.999


def test_a_surface_has_one_colour_from_everywhere(scene):
    """Points of the ground seen by two cameras look alike: nothing shines, and no texture crawls."""
    points, ids = points_of(scene, 9), scene.ids[9]
    pose, (fx, fy, cx, cy) = scene.camera_to_worlds[8], scene.intrinsics.tolist()
    seen = (points - pose[:, 3]) @ pose[:, :3]
    column = (cx - fx * seen[..., 0] / seen[..., 2]).floor().long()
    row = (cy + fy * seen[..., 1] / seen[..., 2]).floor().long()
    both = (seen[..., 2] < 0) & (column >= 0) & (column < 48) & (row >= 0) & (row < 48) & (ids > 1)
    column, row = column[both], row[both]
    same = (points[both] - points_of(scene, 8)[row, column]).norm(dim=-1) < 0.01
    assert same.sum() > 50
    one, two = scene.images[9][both][same].float(), scene.images[8][row, column][same].float()
    assert (one - two).abs().mean() < 20


def test_cameras_are_rigid_and_within_unit_distance(scene):
    rotation = scene.camera_to_worlds[:, :, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(13, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(13), rtol=0, atol=1e-6)
    assert 0.8 < scene.camera_to_worlds[:, :, 3].norm(dim=-1).max() <= 1.0001
    assert scene.depth.min() > 0.15


def test_noise_has_the_size_that_was_asked_for(scene):
    truth, moved = scene.camera_to_worlds, scene.perturbed_camera_to_worlds
    assert torch.equal(truth[10:], moved[10:])
    between = truth[:10, :, :3].mT @ moved[:10, :, :3]
    angle = torch.rad2deg(torch.acos(((between.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1)))
    torch.testing.assert_close(angle, torch.full((10,), 2.0), rtol=0, atol=0.02)
    shift = (truth[:10, :, 3] - moved[:10, :, 3]).norm(dim=-1)
    torch.testing.assert_close(shift, torch.full((10,), 0.03), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_scene_and_another_does_not(scene):
    again = make_scene(views=10, test_views=3, size=48, noise_rotation_deg=2, noise_translation=0.03)
    assert torch.equal(again.images, scene.images) and torch.equal(again.depth, scene.depth)
    assert torch.equal(again.perturbed_camera_to_worlds, scene.perturbed_camera_to_worlds)
    other = make_scene(views=2, test_views=0, size=16, seed=1)
    assert not torch.equal(other.camera_to_worlds[0], scene.camera_to_worlds[0])


def test_held_out_cameras_are_none_of_the_training_ones():
    train, test = ring_of_cameras(40)[:, :, 3], ring_of_cameras(8, held_out=True)[:, :, 3]
    assert np.linalg.norm(train[:, None] - test[None], axis=-1).min() > 0.01


def test_feature_maps_hold_the_vector_of_what_is_seen(scene):
    vectors = scene.feature_vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert (vectors @ vectors.T - torch.eye(len(vectors))).abs().max() < 0.2
    full, coarse = feature_maps(scene), feature_maps(scene, 4)
    assert full.shape == (13, 48, 48, 32) and full.dtype == torch.float16
    torch.testing.assert_close(full.float(), vectors[scene.ids.long()], rtol=0, atol=1e-3)
    pooled = full.float().reshape(13, 12, 4, 12, 4, 32).mean(dim=(2, 4))
    torch.testing.assert_close(coarse.float(), pooled, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="stride 5 does not divide images of 48 x 48"):
        feature_maps(scene, 5)


def arrays(*values):
    return [np.array(v, np.float32).reshape(-1, 3) for v in values]


SPHERE = np.array([1, 1, 1], np.float32)


@pytest.mark.parametrize(
    ("solid", "origin", "direction", "distance", "normal"),
    [
        ((solids.ellipsoid, SPHERE), (0, 0, 3), (0, 0, -1), 2, (0, 0, 1)),
        ((solids.ellipsoid, SPHERE), (0, 0, 0), (0, 0, -1), 1, (0, 0, 1)),
        ((solids.ellipsoid, SPHERE), (0, 0, 3), (0, 0, 1), np.inf, None),
        ((solids.box, SPHERE), (3, 0.5, 0.5), (-1, 0, 0), 2, (1, 0, 0)),
        ((solids.box, SPHERE), (3, 1.5, 0.5), (-1, 0, 0), np.inf, None),
        ((solids.box, SPHERE), (0, 0, 0), (0, 1, 0), 1, (0, -1, 0)),
        ((solids.frustum, 1.0, 1.0, -1.0, 1.0), (3, 0, 0.5), (-1, 0, 0), 2, (1, 0, 0)),
        ((solids.frustum, 1.0, 0.5, -1.0, 1.0), (0, 0.3, 3), (0, 0, -1), 2, (0, 0, 1)),
        ((solids.frustum, 1.0, 0.0, -1.0, 1.0), (3, 0, 0), (-1, 0, 0), 2.5, (0.894427, 0, 0.447214)),
        ((solids.cup, 1.0, 0.1, -1.0, 1.0), (0, 0, 3), (0, 0, -1), 3.9, (0, 0, 1)),
        ((solids.cup, 1.0, 0.1, -1.0, 1.0), (0, 0, 0), (1, 0, 0), 0.9, (-1, 0, 0)),
        ((solids.ring, 1.0, 0.25), (3, 0, 0), (-1, 0, 0), 1.75, (1, 0, 0)),
        ((solids.ring, 1.0, 0.25), (0, 0, 3), (0, 0, -1), np.inf, None),
        ((solids.ring, 1.0, 0.25), (0, -1, 3), (0, 0, -1), 2.75, (0, 0, 1)),
    ],
)
def test_rays_meet_solids_where_geometry_says(solid, origin, direction, distance, normal):
    t, normals = solid[0](*arrays(origin, direction), *solid[1:])
    np.testing.assert_allclose(t[0], distance, rtol=1e-5, atol=1e-5)
    if normal is not None:
        np.testing.assert_allclose(normals[0], normal, atol=2e-4)
