"""COLMAP models and LLFF: every lens against COLMAP's projection, layouts, rigs, and files that are cut."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from bench import seeds
from raymarch.data import colmap_files
from raymarch.data.colmap_files import IDENTITY, MODELS, PARAMETERS, Camera, Frame, Image, Rigid
from raymarch.data.error import SceneError
from raymarch.data.scene import describe, load
from raymarch.ops import rays

SCENES = Path(__file__).resolve().parents[2] / "shared" / "scenes"
WRITERS = {"bin": seeds.colmap_binary, "txt": seeds.colmap_text}
WIDTH, HEIGHT = 40, 30
EXTRA = {  # after the focal lengths and the centre
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (-0.06,),
    "RADIAL": (-0.06, 0.02),
    "OPENCV": (-0.06, 0.02, 0.004, -0.003),
    "OPENCV_FISHEYE": (-0.03, 0.01, -0.004, 0.001),
    "FULL_OPENCV": (-0.06, 0.02, 0.004, -0.003, 0.005, 0, 0, 0),
    "SIMPLE_RADIAL_FISHEYE": (-0.03,),
    "RADIAL_FISHEYE": (-0.03, 0.01),
    "THIN_PRISM_FISHEYE": (-0.03, 0.01, 0.004, -0.003, 0.002, -0.001, 0, 0),
    "RAD_TAN_THIN_PRISM_FISHEYE": (-0.03, 0.01, 0.002, -0.001, 0.001, -0.001, 0.004, -0.003, 0.002,
                                   -0.001, -0.002, 0.001),
    "SIMPLE_FISHEYE": (),
    "FISHEYE": (),
}  # fmt: skip
REFUSED = ("FOV", "SIMPLE_DIVISION", "DIVISION", "EUCM")


def focals(model):
    if model.startswith("SIMPLE_") or model in ("RADIAL", "RADIAL_FISHEYE"):
        return (26.0, 20.5, 14.0)
    return (26.0, 27.0, 20.5, 14.0)


def project(model, params, points):
    """COLMAP's documented projection of points [P, 3] in camera axes (x right, y down, z forward)."""
    if model == "EQUIRECTANGULAR":
        x, y, z = points.T
        theta, phi = np.arctan2(x, z), np.arctan2(-y, np.hypot(x, z))
        return np.stack([(theta / (2 * np.pi) + 0.5) * params[0], (0.5 - phi / np.pi) * params[1]], 1)
    u, v = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    count = len(focals(model))
    fx, fy, cx, cy = (params[0], *params[:3]) if count == 3 else params[:4]
    k = params[count:]
    if "FISHEYE" in model:
        r = np.hypot(u, v)
        u, v = u * np.arctan(r) / r, v * np.arctan(r) / r
    r = u * u + v * v
    if model in ("SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE"):
        d = 1 + sum(c * r ** (i + 1) for i, c in enumerate(k))
        u, v = u * d, v * d
    elif model in ("OPENCV", "FULL_OPENCV", "THIN_PRISM_FISHEYE"):
        k1, k2, p1, p2, *more = (*k, 0, 0)
        prism = more[2:4] if model.startswith("THIN") else (0, 0)
        d = k1 * r + k2 * r**2 + more[0] * r**3 + (more[1] * r**4 if model.startswith("THIN") else 0)
        du = u * d + 2 * p1 * u * v + p2 * (r + 2 * u * u) + prism[0] * r
        dv = v * d + 2 * p2 * u * v + p1 * (r + 2 * v * v) + prism[1] * r
        u, v = u + du, v + dv
    elif model.startswith("RAD_TAN"):
        d = 1 + sum(c * r ** (i + 1) for i, c in enumerate(k[:6]))
        x, y = u * d, v * d
        p0, p1, s0, s1, s2, s3 = k[6:]
        q = x * x + y * y
        u = x + 2 * p1 * x * y + p0 * (q + 2 * x * x) + s0 * q + s1 * q * q
        v = y + 2 * p0 * x * y + p1 * (q + 2 * y * y) + s2 * q + s3 * q * q
    return np.stack([fx * u + cx, fy * v + cy], 1)


def write(folder, writer, place="sparse/0", photos="images", **records):
    """A scene: the model's files, and a photo of noise for every image."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, data in writer(**records).items():
        (folder / place / name).write_bytes(data)
    for i, image in enumerate(records["images"].values()):
        camera = records["cameras"][image.camera]
        path = folder / photos / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        Picture.fromarray(noise).save(path)
    return folder


def refused(folder, *parts, **options):
    with pytest.raises(SceneError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# --- lenses and axes ---


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("model", [*EXTRA, "EQUIRECTANGULAR"])
def test_a_ray_through_a_pixel_meets_the_point_that_colmap_projects_there(tmp_path, model, kind):
    params = (40.0, 30.0) if model == "EQUIRECTANGULAR" else (*focals(model), *map(float, EXTRA[model]))
    poses = [seeds.from_opengl(pose) for pose in seeds.ring(3)]
    images = {i + 4: Image(f"{i}.png", 9, pose) for i, pose in enumerate(poses)}
    cameras = {9: Camera(model, WIDTH, HEIGHT, params)}
    scene = load(write(tmp_path, WRITERS[kind], cameras=cameras, images=images))
    world = np.random.default_rng(0).normal(0, 0.4, (20, 3))
    for i, pose in enumerate(poses):
        R, t = rotation(pose), np.array(pose.translation)
        xy = torch.from_numpy(project(model, params, world @ R.T + t)).float()
        c = scene.cameras
        numbers = torch.full((20,), i)
        origins, directions, *_ = rays(numbers, xy, c.camera_to_worlds, c.intrinsics, c.distortion, c.lens)
        back = scene.world_from_scene
        origins, directions = back.apply(origins.double()), back.rotate(directions.double())
        assert np.allclose(origins, -R.T @ t, atol=1e-5)  # world units are COLMAP's
        towards = torch.from_numpy(world) - origins
        along = (towards * directions).sum(-1, keepdim=True)
        assert (along > 0).all()
        assert (towards - along * directions).norm(dim=-1).max() < 2e-4


def rotation(pose):
    """Rodrigues' formula for a quaternion, another way than the reader's."""
    w, *v = np.array(pose.quaternion) / np.linalg.norm(pose.quaternion)
    x, y, z = v
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * K + 2 * K @ K


def one_camera(model, params):
    images = {1: Image("a.png", 1, seeds.from_opengl(seeds.ring(1)[0]))}
    return {"cameras": {1: Camera(model, WIDTH, HEIGHT, params)}, "images": images}


@pytest.mark.parametrize("model", REFUSED)
def test_lenses_without_an_equal_are_refused_by_name(tmp_path, model):
    params = (26.0, 27.0, 20.0, 15.0, 0.1, 0.1)[: PARAMETERS[model]]
    folder = write(tmp_path, seeds.colmap_binary, **one_camera(model, params))
    refused(folder, "a.png", f"a {model} lens", "image_undistorter")


@pytest.mark.parametrize(("model", "term"), [("FULL_OPENCV", "k4"), ("THIN_PRISM_FISHEYE", "sx1")])
def test_a_lens_is_refused_only_for_the_terms_that_have_no_equal(tmp_path, model, term):
    params = (*focals(model), *[0.0] * 7, 0.01)
    refused(write(tmp_path, seeds.colmap_binary, **one_camera(model, params)), f"a {model} lens with {term}")


def test_every_model_that_colmap_writes_is_met_one_way_or_the_other():
    assert {name for name, _ in MODELS} == {*EXTRA, *REFUSED, "EQUIRECTANGULAR"}
    for name, extra in EXTRA.items():
        assert PARAMETERS[name] == len(focals(name)) + len(extra)


def test_without_turning_the_world_is_nerfstudios_z_up(tmp_path):
    folder = write(tmp_path, seeds.colmap_binary, **seeds.small_model(rigged=False))
    scene = load(folder, orientation="none", center="none", scale="none")
    assert [name for name, _ in scene.world_from_scene.steps][-1] == "z_up"
    wanted = np.stack(seeds.ring(3))[:, :3]
    found = scene.cameras.camera_to_worlds.double().numpy()
    assert np.allclose(found, wanted[:, [0, 2, 1]] * np.array([1, 1, -1])[:, None], atol=1e-6)
    assert np.allclose(scene.world_from_scene.apply_poses(torch.from_numpy(found)), wanted, atol=1e-6)
    assert torch.allclose(scene.world_from_scene.apply(scene.points)[0], torch.tensor([0.1, 0.2, 0.3]))


# --- layouts ---


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("place", "photos"),
    [("sparse/0", "images"), ("sparse", "images"), (".", "images"), ("colmap/sparse/0", "images"),
     ("dense/sparse", "dense/images"), ("sparse/0", "input"), ("sparse/0", "."), ("sparse/0", "images_2")],
)  # fmt: skip
def test_models_and_photos_are_found_where_people_put_them(tmp_path, place, photos, kind):
    records = seeds.small_model()
    records["images"] = {i: replace(x, name=f"kamera ü/{x.name}") for i, x in records["images"].items()}
    folder = write(tmp_path, WRITERS[kind], place, photos, **records)
    scene = load(folder)
    assert scene.names == tuple(f"kamera ü/photo {i}.png" for i in range(3))
    assert "COLMAP" in scene.format and "SIMPLE_RADIAL" in scene.format
    assert "2 of the surface" in describe(scene)
    again = load(folder / place)  # the model's own folder
    assert torch.equal(again.cameras.camera_to_worlds, scene.cameras.camera_to_worlds)
    first = folder / place / f"images.{kind}"
    assert len(load(first).images) == 3


def test_binary_and_text_say_the_same(tmp_path):
    records = seeds.small_model(5)
    a = load(write(tmp_path / "a", seeds.colmap_binary, **records))
    b = load(write(tmp_path / "b", seeds.colmap_text, **records))
    assert torch.equal(a.cameras.camera_to_worlds, b.cameras.camera_to_worlds)
    assert torch.equal(a.cameras.intrinsics, b.cameras.intrinsics)
    assert torch.equal(a.points, b.points)
    assert "binary" in a.format and "text" in b.format


def test_other_models_beside_the_first_are_reported(tmp_path):
    folder = write(tmp_path, seeds.colmap_binary, **seeds.small_model())
    write(tmp_path, seeds.colmap_binary, "sparse/1", **seeds.small_model(2))
    assert any("not used: 1" in note for note in load(folder).notes)


def test_users_smaller_copies_are_read_and_the_lens_follows(tmp_path):
    records = one_camera("PINHOLE", (26.0, 27.0, 20.5, 14.0))
    folder = write(tmp_path, seeds.colmap_binary, **records)
    small = np.full((HEIGHT // 2, WIDTH // 2, 3), 77, np.uint8)
    (folder / "images_2").mkdir()
    Picture.fromarray(small).save(folder / "images_2" / "a.png")
    scene = load(folder, downscale=2)
    assert (scene.images[0] == 77).all()
    assert scene.cameras.intrinsics[0].tolist() == [13.0, 13.5, 10.25, 7.0]
    assert any("images_2" in note for note in scene.notes)
    assert not any("pixels" in problem for problem in scene.problems)


def test_two_images_with_one_name_in_different_folders_stay_apart(tmp_path):
    records = seeds.small_model(4)
    names = ("left/0.png", "right/0.png", "left/1.png", "right/1.png")
    records["images"] = {i: replace(x, name=names[i - 1]) for i, x in records["images"].items()}
    scene = load(write(tmp_path, seeds.colmap_binary, **records))
    assert scene.names == tuple(sorted(names))
    assert len({x.sum().item() for x in scene.images}) == 4


def test_a_name_that_is_not_utf8_is_found_and_printed(tmp_path):
    records = seeds.small_model(1)
    name = b"f\xfcchs.png".decode("utf-8", "surrogateescape")
    records["images"] = {1: replace(records["images"][1], name=name)}
    try:
        scene = load(write(tmp_path, seeds.colmap_binary, **records))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert scene.names == ("f\\udcfcchs.png",)
    describe(scene).encode()


def test_accents_may_be_spelled_either_way(tmp_path):
    apart, composed = "cafe\u0301.png", "caf\u00e9.png"
    records = seeds.small_model(1)
    records["images"] = {1: replace(records["images"][1], name=apart)}
    folder = write(tmp_path / "colmap", seeds.colmap_binary, **records)
    (folder / "images" / apart).rename(folder / "images" / composed)
    assert load(folder).names == (apart,)
    meta = json.loads(seeds.transforms(1))
    meta["frames"][0]["file_path"] = f"images/{apart}"
    (folder / "transforms.json").write_text(json.dumps(meta))
    assert load(folder).format.startswith("transforms.json")


def test_inspect_says_what_was_recognised_and_what_else_is_there(tmp_path):
    from raymarch.apps.inspecting import lines

    folder = write(tmp_path, seeds.colmap_binary, **seeds.small_model())
    (folder / "poses_bounds.npy").write_bytes(seeds.poses_bounds(seeds.ring(3), 12, 8, 10.0))
    (folder / "images" / "photo 1.png").unlink()
    text = "\n".join(lines(folder))
    for part in (
        "format    COLMAP sparse model in 0/ (binary; OPENCV, OPENCV_FISHEYE,",
        "6 rigs",
        "2 of 12 x 8",
        "held out: photo 0.png",
        "points    2 of the surface",
        "1 of 3 frames have no image",
        "also      poses_bounds.npy (LLFF)",
        "1 problem was found",
    ):
        assert part in text, text


# --- rigs ---


def rig_records():
    """Two cameras on a rig, seen twice; images.bin's own poses are those of the frames composed."""
    turn = Rigid((float(np.cos(0.2)), 0.0, float(np.sin(0.2)), 0.0), (0.1, -0.05, 0.02))
    moments = [seeds.from_opengl(pose) for pose in seeds.ring(2)]
    frames, images = {}, {}
    for i, moment in enumerate(moments):
        R = rotation(turn) @ rotation(moment)
        t = rotation(turn) @ np.array(moment.translation) + np.array(turn.translation)
        composed = Rigid(seeds.quaternion(R), tuple(t.tolist()))
        images[2 * i + 1] = Image(f"left/{i}.png", 1, moment)
        images[2 * i + 2] = Image(f"right/{i}.png", 2, composed)
        frames[i] = Frame(5, moment, ((1, 2 * i + 1), (2, 2 * i + 2)))
    cameras = {k: Camera("SIMPLE_PINHOLE", WIDTH, HEIGHT, (26.0, 20.0, 15.0)) for k in (1, 2)}
    return {"cameras": cameras, "images": images, "rigs": {5: {1: IDENTITY, 2: turn}}, "frames": frames}


@pytest.mark.parametrize("kind", WRITERS)
def test_rigs_and_frames_give_the_poses(tmp_path, kind):
    records = rig_records()
    plain = {k: v for k, v in records.items() if k in ("cameras", "images")}
    wanted = load(write(tmp_path / "plain", WRITERS[kind], **plain))
    found = load(write(tmp_path / "rig", WRITERS[kind], **records))
    assert found.problems == () and "1 rigs" in found.format
    assert torch.allclose(found.cameras.camera_to_worlds, wanted.cameras.camera_to_worlds, atol=1e-6)
    stale = {i: replace(x, camera_from_world=IDENTITY) for i, x in records["images"].items()}
    found = load(write(tmp_path / "stale", WRITERS[kind], **{**records, "images": stale}))
    assert torch.allclose(found.cameras.camera_to_worlds, wanted.cameras.camera_to_worlds, atol=1e-6)
    assert "4 images differ" in found.problems[0] and "left/0.png" in found.problems[0]


def test_a_sensor_without_a_place_on_its_rig_keeps_the_images_pose(tmp_path):
    records = rig_records()
    records["rigs"] = {5: {1: IDENTITY, 2: None}}
    wanted = load(write(tmp_path / "a", seeds.colmap_binary, **rig_records()))
    found = load(write(tmp_path / "b", seeds.colmap_binary, **records))
    assert torch.allclose(found.cameras.camera_to_worlds, wanted.cameras.camera_to_worlds, atol=1e-6)


# --- bad files ---


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_cut_at_any_byte_is_one_clear_sentence(kind):
    files = WRITERS[kind](**seeds.small_model())
    for name, data in files.items():
        read = getattr(colmap_files, name.split(".")[0].removesuffix("3D"))
        whole = read(data, name, kind == "bin")
        for size in range(len(data)):
            try:
                part = read(data[:size], name, kind == "bin")
            except SceneError as error:
                assert "\n" not in str(error) and name in str(error)
                continue
            assert kind == "txt"  # a text file may end after any line
            assert len(part) <= len(whole)


def test_the_sentence_names_the_file_and_the_place(tmp_path):
    folder = write(tmp_path, seeds.colmap_binary, **seeds.small_model())
    path = folder / "sparse/0/images.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:230])
    refused(folder, "images.bin", "ends at byte 230", "image 2 of 3", "cut short")
    path.write_bytes(whole + b"more")
    refused(folder, "images.bin", "goes on for 4 bytes")
    path.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    refused(folder, "images.bin", f"{1 << 60} images")
    path.write_bytes(whole)
    (folder / "sparse/0/cameras.bin").write_bytes(struct.pack("<QIiQQ", 1, 1, 99, 4, 4))
    refused(folder, "cameras.bin", "unknown camera model number 99")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("cameras", "1 PINHOL 4 4 1 1 1 1", "unknown camera model 'PINHOL'"),
        ("cameras", "1 PINHOLE 4 4 1 1 1", "gives 3 numbers"),
        ("cameras", "1 PINHOLE 4 0 1 1 1 1", "4 x 0 pixels"),
        ("cameras", "1 PINHOLE 4 4 1 nan 1 1", "not finite"),
        ("cameras", "one PINHOLE 4 4 1 1 1 1", "'one' where a whole number"),
        ("cameras", "1 PINHOLE 4 4 1 1 1 1\n1 PINHOLE 4 4 1 1 1 1", "camera 1 twice"),
        ("images", "1 0 0 0 0 1 2 3 1 a.png\n", "quaternion of length zero"),
        ("images", "1 1 0 0 0 1 2 3 1\n", "no file name"),
        ("images", "1 1 0 0 0 1 2 3 77 a.png\n", "camera 77, which the model lacks"),
        ("images", "1 1 0 0 0 1 x 3 1 a.png\n", "line 1"),
        ("points3D", "1 0 0 inf 1 1 1 0", "not finite"),
        ("rigs", "1 1 RADAR 1", "'RADAR' where a sensor"),
        ("frames", "1 1 1 0 0 0 0 0 0 2 CAMERA 1 1", "values are missing"),
    ],
)
def test_text_files_that_say_something_else(tmp_path, file, text, words):
    folder = write(tmp_path, seeds.colmap_text, **seeds.small_model())
    (folder / "sparse/0" / f"{file}.txt").write_text(text)
    refused(folder, f"{file}.txt" if "lacks" not in words else "a.png", words)


def test_a_model_without_its_photos_or_its_cameras(tmp_path):
    folder = write(tmp_path, seeds.colmap_binary, **seeds.small_model())
    for path in (folder / "images").iterdir():
        path.unlink()
    refused(folder, "no image is left", "3 files", "photo 0.png")
    (folder / "sparse/0/cameras.bin").unlink()
    refused(folder / "sparse/0/images.bin", "both cameras and images")
    (folder / "sparse/0/images.bin").write_bytes(struct.pack("<Q", 0))
    refused(folder, "not a scene of a known format")


# --- LLFF ---


def write_llff(folder, count=4, photos="images", scale=1):
    (folder / photos).mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (30 // scale, 40 // scale, 3), dtype=np.uint8)
        Picture.fromarray(noise).save(folder / photos / f"{i}.png")
    (folder / "poses_bounds.npy").write_bytes(seeds.poses_bounds(seeds.ring(count), 40, 30, 26.0))
    return folder


@pytest.mark.parametrize(("photos", "scale"), [("images", 1), ("images_2", 2)])
def test_llff_axes_and_sizes(tmp_path, photos, scale):
    scene = load(write_llff(tmp_path, photos=photos, scale=scale))
    back = scene.world_from_scene.apply_poses(scene.cameras.camera_to_worlds.double())
    assert np.allclose(back, np.stack(seeds.ring(4))[:, :3], atol=1e-5)
    wanted = np.array([26.0, 26.0, 20.0, 15.0]) / scale
    assert scene.cameras.intrinsics[0].tolist() == wanted.tolist()
    assert scene.problems == () and scene.names[0] == f"{photos}/0.png"
    near_far = scene.near_far * scene.world_from_scene.scale
    assert torch.allclose(near_far, torch.tensor([0.5, 9.0]).expand(4, 2))


def test_llff_files_that_are_none(tmp_path):
    folder = write_llff(tmp_path)
    file = folder / "poses_bounds.npy"
    whole = file.read_bytes()
    for size in (0, 9, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(folder, "poses_bounds.npy", "cannot be read")
    rows = np.load(Path(write_llff(tmp_path / "b") / "poses_bounds.npy"))
    cases = [
        (rows[:, :15], "shape [4, 15]"),
        (rows[:3], "3 rows", "images 4"),
        (np.where(np.arange(17) == 3, np.nan, rows), "not finite in row 0"),
        (np.where(np.arange(17) == 14, -1, rows), "focal length"),
        (np.where(np.arange(17) == 16, 0.1, rows), "near < far"),
        (rows.astype(complex), "complex"),
    ]
    for values, *parts in cases:
        np.save(file, values)
        refused(folder, "poses_bounds.npy", *parts)


# --- real ones ---


def real(name):
    if not (SCENES / name).exists():
        pytest.skip("../shared/scenes is absent")
    return SCENES / name


def test_llff_head_is_the_head_of_its_transforms_json():
    folder = real("head")
    a, b = load(folder, downscale=8), load(folder / "poses_bounds.npy", downscale=8)
    assert a.names == b.names and a.test == b.test
    assert torch.allclose(a.cameras.camera_to_worlds, b.cameras.camera_to_worlds, atol=1e-5)
    assert torch.allclose(a.cameras.intrinsics, b.cameras.intrinsics, rtol=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(a.masks, b.masks, strict=True))


def test_real_points_and_cameras_of_colmap():
    folder = real("miku") / "colmap_full_res"
    data = (folder / "cameras.bin").read_bytes()
    (camera,) = colmap_files.cameras(data, "cameras.bin", True).values()
    assert (camera.model, camera.width, camera.height) == ("SIMPLE_RADIAL", 4032, 3024)
    points = colmap_files.points((folder / "points3D.bin").read_bytes(), "points3D.bin", True)
    assert len(points) == 25784
    # They lie before the cameras that were exported with them.
    cameras = json.loads((real("miku") / "cameras_3dgs.json").read_text())
    ahead = np.array(cameras[0]["rotation"])[:, 2]
    assert ((points - np.array(cameras[0]["position"])) @ ahead > 0).mean() > 0.9
