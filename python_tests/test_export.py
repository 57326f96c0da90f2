"""Points, meshes and their files."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from raymarch.apps.demo import train_demo
from raymarch.apps.exporting_geometry import write_mesh
from raymarch.apps.numbers import told_to
from raymarch.data.paths import cameras_of, looking
from raymarch.data.similarity import similarity
from raymarch.export.mesh import MeshError, View, fuse, mesh_of, plain, surface
from raymarch.export.ply import coordinates, read_ply, write_ply
from raymarch.export.surface import Points, joined, matching, places, seen_points, solid
from raymarch.features.query import locate
from raymarch.trained import TrainedScene

RADIUS, CENTRE = 0.5, torch.tensor([0.1, -0.2, 0.3])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    train_demo(200, "cpu", folder)
    return folder


@pytest.fixture(scope="module")
def scene(run):
    return TrainedScene(run, "cpu")


def ball_views(count=14, size=80):
    """Exact views of a ball from all around; its colour tells x."""
    i = torch.arange(count).double() + 0.5
    z = 1 - 2 * i / count
    angle = i * np.pi * (3 - 5**0.5)
    flat = (1 - z * z).sqrt()
    eyes = CENTRE + 2 * torch.stack([flat * angle.cos(), flat * angle.sin(), z], 1)
    poses = looking(eyes, CENTRE.double().expand_as(eyes), torch.tensor([0.0, 0, 1]).double())
    numbers = torch.tensor([[1.5 * size, 1.5 * size, size / 2, size / 2]]).expand(count, 4)
    cameras = cameras_of(poses, numbers, size, size)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    local = torch.stack(
        [(x - size / 2) / (1.5 * size), (size / 2 - y) / (1.5 * size), -torch.ones_like(x)], -1
    )
    views = []
    for k in range(count):
        camera = type(cameras)(*(getattr(cameras, f)[k : k + 1] for f in cameras.__dataclass_fields__))
        pose = camera.camera_to_worlds[0]
        d = torch.nn.functional.normalize(local @ pose[:, :3].T, dim=-1)
        off = pose[:, 3] - CENTRE
        b = (d * off).sum(-1)
        disc = b * b - (off @ off - RADIUS**2)
        t = torch.where(disc > 0, -b - disc.clamp_min(0).sqrt(), 0)
        rgb = ((pose[:, 3] + t[..., None] * d - CENTRE) / (2 * RADIUS) + 0.5).clamp(0, 1)
        views.append(View(camera, t, rgb))
    return views


def test_a_ball_comes_back_as_a_ball():
    pytest.importorskip("skimage")
    volume = fuse(ball_views(), CENTRE - 0.7, CENTRE + 0.7, 64)
    points, faces, normals = surface(volume)
    away = points - CENTRE
    assert (away.norm(dim=1) - RADIUS).abs().quantile(0.99) < volume.step
    corners = points[faces]
    turned = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = (turned * (corners.mean(1) - CENTRE)).sum(1) > 0
    assert outward.float().mean() > 0.99  # triangles turn left seen from outside
    assert ((normals * away).sum(1) / away.norm(dim=1)).median() > 0.98
    area = turned.norm(dim=1).sum() / 2
    assert area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.05)  # whole, and once


def test_nothing_is_made_up_where_nobody_looked():
    pytest.importorskip("skimage")
    one = ball_views()[:1]
    points, *_ = surface(fuse(one, CENTRE - 0.7, CENTRE + 0.7, 48))
    eye = one[0].camera.camera_to_worlds[0, :, 3]
    towards = (points - CENTRE) @ torch.nn.functional.normalize(eye - CENTRE, dim=0)
    assert towards.min() > -0.1  # the far half of the ball is not there


def test_vertices_have_the_colours_of_the_views():
    pytest.importorskip("skimage")
    from raymarch.export.mesh import _sampled

    volume = fuse(ball_views(), CENTRE - 0.7, CENTRE + 0.7, 48)
    points, *_ = surface(volume)
    want = (points - CENTRE) / (2 * RADIUS) + 0.5
    assert (_sampled(volume, points) - want).abs().mean() < 0.03


def test_a_box_with_nothing_in_it_is_told():
    pytest.importorskip("skimage")
    with pytest.raises(MeshError, match="no surface is seen"):
        surface(fuse(ball_views()[:2], CENTRE + 3, CENTRE + 4, 16))
    with pytest.raises(MeshError, match="at least 8 voxels"):
        fuse(ball_views()[:1], CENTRE - 1, CENTRE + 1, 4)


def test_ply_files_come_back(tmp_path):
    columns = {"x": np.arange(5, dtype=np.float32), "red": np.arange(5, dtype=np.uint8)}
    faces = np.array([[0, 1, 2], [2, 3, 4]], np.int32)
    back, triangles = read_ply(write_ply(tmp_path / "a.ply", columns, faces, "hello"))
    assert {k: v.tolist() for k, v in back.items()} == {k: v.tolist() for k, v in columns.items()}
    assert triangles.tolist() == faces.tolist()
    assert read_ply(write_ply(tmp_path / "b.ply", columns))[1] is None
    with pytest.raises(ValueError, match="lengths"):
        write_ply(tmp_path / "c.ply", {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})
    assert not (tmp_path / "c.ply").exists()


def test_another_program_reads_our_ply(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    columns = dict(zip("xyz", corners.T, strict=True)) | {
        k: np.array([255, 0, 7], np.uint8) for k in ("red", "green", "blue")
    }
    found = trimesh.load(write_ply(tmp_path / "a.ply", columns, np.array([[0, 1, 2]])), process=False)
    np.testing.assert_allclose(found.vertices, corners)
    assert found.visual.vertex_colors[0, :3].tolist() == [255, 255, 255]


def test_places_are_where_the_true_depth_says(scene):
    """A pixel's point, seen from the same camera again, falls on the pixel, at that distance."""
    camera = scene.camera("train", 4)
    depth = torch.rand(96, 96) + 0.5
    points = places(scene, camera, depth)
    pose = scene.world_from_scene.apply_poses(camera.camera_to_worlds.double())[0].float()
    local = (points.float() - pose[:, 3]) @ pose[:, :3]
    torch.testing.assert_close(local.norm(dim=-1), depth, rtol=1e-4, atol=1e-4)
    fx, _, cx, _ = camera.intrinsics[0].tolist()
    x = local[..., 0] / -local[..., 2] * fx + cx
    torch.testing.assert_close(x, (torch.arange(96) + 0.5).expand(96, 96), rtol=0, atol=2e-2)


def test_points_are_in_world_units(scene):
    """The same run in another world: points move along."""
    first = seen_points(scene, views=2, side=24)
    moved = similarity(3.0, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], [1, 2, 3])
    before = scene.world_from_scene
    try:
        scene.world_from_scene = moved
        second = seen_points(scene, views=2, side=24)
    finally:
        scene.world_from_scene = before
    assert len(first) == len(second) > 50
    torch.testing.assert_close(
        second.xyz, moved.apply(before.invert().apply(first.xyz)), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(second.normals, moved.rotate(first.normals), rtol=1e-4, atol=1e-4)
    assert first.pca.shape == first.rgb.shape


def test_points_keep_their_digits_far_from_the_origin(scene, tmp_path):
    """Coordinates of a map, in metres, of a scene as large as a table: float32 knows them to 25 cm."""
    near = seen_points(scene, views=2, side=24)
    assert {near.columns()[k].dtype for k in "xyz"} == {np.dtype(np.float32)}
    before = scene.world_from_scene
    away = torch.tensor([5e5, 4e6, 100.0], dtype=torch.float64)
    try:
        scene.world_from_scene = before.then("away", similarity(1.0, None, away))
        far = seen_points(scene, views=2, side=24)
    finally:
        scene.world_from_scene = before
    columns, _ = read_ply(write_ply(tmp_path / "far.ply", far.columns()))
    back = torch.from_numpy(np.stack([columns[k] for k in "xyz"], 1)) - away
    torch.testing.assert_close(back, near.xyz, rtol=0, atol=1e-6)
    found = locate(far.xyz, torch.ones(len(far)))
    torch.testing.assert_close(found.centroid - away, near.xyz.mean(0), rtol=0, atol=1e-6)
    assert b"property double y" in (tmp_path / "far.ply").read_bytes()


def test_coordinates_are_doubles_where_they_have_to_be():
    points = np.random.default_rng(0).random((500, 3)) * 100
    for offset, kind in ((0, np.float32), (1000, np.float32), (1e5, np.float64), (-1e5, np.float64)):
        found = coordinates(points + np.array([0, 0, offset]))
        assert list(found) == ["x", "y", "z"] and {v.dtype for v in found.values()} == {np.dtype(kind)}
        for k, name in enumerate("xyz"):
            want = points[:, k] + (offset if name == "z" else 0)
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-3)
    points[:5] = 1e6  # strays
    assert coordinates(points + np.array([0, 0, 1e5]))["x"].dtype == np.float64
    assert len(coordinates(np.zeros((0, 3)))["x"]) == 0 and len(coordinates(np.ones((1, 3)))["z"]) == 1


def test_a_mesh_keeps_its_digits_far_from_the_origin(scene, tmp_path):
    pytest.importorskip("skimage")
    options = {"resolution": 24, "views": 6, "side": 32}
    near = mesh_of(scene, **options)
    before = scene.world_from_scene
    away = torch.tensor([5e5, 4e6, 100.0], dtype=torch.float64)
    try:
        scene.world_from_scene = before.then("away", similarity(1.0, None, away))
        far = mesh_of(scene, **options)
    finally:
        scene.world_from_scene = before
    write_mesh(tmp_path / "far.ply", far)
    columns, faces = read_ply(tmp_path / "far.ply")
    back = torch.from_numpy(np.stack([columns[k] for k in "xyz"], 1)) - away
    assert np.array_equal(faces, near.faces.numpy())
    torch.testing.assert_close(back, near.vertices, rtol=0, atol=1e-5)


def test_numbers_are_told_as_finely_as_they_are_known():
    assert [told_to(v, 0.01) for v in (4e6 + 0.125, -0.5, 0.0)] == ["4000000.12", "-0.5", "0"]
    assert told_to(1.23456789, 1e-30) == "1.2345678899999999" and told_to(1.23456789, 0) == "1.235"
    assert told_to(float("nan"), 0.1) == "nan" and told_to(2.0, float("inf")) == "2"


def test_at_most_so_many_points_and_always_the_same(scene):
    one, two = (seen_points(scene, views=2, side=24, most=40) for _ in range(2))
    assert len(one) == 40 and torch.equal(one.xyz, two.xyz)


def test_edges_of_things_are_no_surface():
    depth = torch.ones(6, 6)
    depth[:, 3:] = 2
    frame = {"depth": depth, "opacity": torch.ones(6, 6)}
    camera = ball_views(1, 60)[0].camera
    keep = solid(frame, camera)
    assert keep[:, [0, 1, 4, 5]].all() and not keep[:, [2, 3]].any()
    frame["opacity"][0, 0] = 0.2
    assert not solid(frame, camera)[0, 0]
    frame["depth"] = 1 + 0.05 * torch.arange(6.0).expand(6, 6)  # a slanted wall
    assert solid(frame, camera)[1:].all()


def test_points_are_chosen_and_joined():
    points = Points(torch.rand(4, 3), torch.rand(4, 3))
    found = matching(points, torch.tensor([0.1, 0.9, 0.5, 0.4]), 0.5)
    assert found.similarity.tolist() == pytest.approx([0.9, 0.5]) and len(joined([found, found])) == 4
    assert joined([found, points]).similarity is None and "nx" not in points.columns()


def test_plain_cameras_have_no_lens(scene):
    camera = plain(scene.camera("train", 0))
    assert not camera.distortion.any() and not camera.lens.any()


def test_a_mesh_of_a_run_lies_on_what_it_sees(scene):
    pytest.importorskip("skimage")
    mesh = mesh_of(scene, resolution=40, views=10, side=48, box=(-0.6, -0.6, -0.3, 0.6, 0.6, 0.3))
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    assert (low > -0.65).all() and (high < 0.65).all()
    assert mesh.faces.max() < len(mesh.vertices) == len(mesh.colours) and len(mesh.faces) > 100
    with pytest.raises(MeshError, match="six numbers"):
        mesh_of(scene, 16, 2, 16, box=(0, 0, 0, 0, 1, 1))


def test_from_the_command_line(run, tmp_path):
    def raymarch(*words):
        command = [
            sys.executable,
            "-m",
            "raymarch.apps",
            "export",
            str(run),
            "--device",
            "cpu",
            *map(str, words),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = raymarch("--what", "points", "--views", 3, "--side", 32)
    assert done.returncode == 0, done.stderr
    columns, _ = read_ply(run / "export" / "points.ply")
    assert {"x", "nx", "red", "pca_red"} <= set(columns)
    for extra, word in ((("--poses", "colmap"), "--poses colmap"), (("--held-out",), "--held-out")):
        done = raymarch("--what", "mesh", *extra, "--out", tmp_path / "m.ply")
        assert done.returncode == 1 and done.stderr.startswith(f"raymarch: {word} is for camera poses")
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "m.ply").exists()
    done = raymarch("--what", "points", "--out", tmp_path / "points.glb")
    assert done.returncode == 1 and "ends in .ply" in done.stderr and not (tmp_path / "points.glb").exists()
    pytest.importorskip("skimage")
    done = raymarch(
        "--what",
        "mesh",
        "--views",
        8,
        "--side",
        48,
        "--resolution",
        32,
        "--out",
        tmp_path / "m.ply",
        "--box",
        "-0.6,-0.6,-0.3,0.6,0.6,0.3",
    )
    assert done.returncode == 0, done.stderr
    assert read_ply(tmp_path / "m.ply")[1] is not None
