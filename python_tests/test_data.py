"""From disk or arrays to a Scene, and from a Scene to Pixels. Bad input is in test_bad_data.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raymarch.data import depth, images, nerfstudio, normalise
from raymarch.data.lens import intrinsics
from raymarch.data.listing import Lens
from raymarch.data.maps import FeatureMaps
from raymarch.data.pixels import PixelSource, bytes_needed
from raymarch.data.scene import Scene, SceneError, describe, load
from raymarch.data.similarity import Similarity, similarity
from raymarch.data.split import split_images
from raymarch.types import LENSES

SCENES = Path(__file__).resolve().parents[2] / "shared" / "scenes"
OWN_FRAME = {"orientation": "none", "center": "none", "scale": "none"}


def real(name):
    if not (SCENES / name).exists():
        pytest.skip("../shared/scenes is absent")
    return SCENES / name


def facing(position, target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0)):
    """A [4, 4] OpenGL pose looking at a point."""
    back = np.subtract(position, target).astype(float)
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def ring(count):
    return [facing((3 * np.cos(a), 0.4 * np.sin(3 * a), 3 * np.sin(a))) for a in np.arange(count) * 0.7]


def photo(width, height, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_scene(folder, count=9, width=12, height=8, **changes):
    """A small nerfstudio scene of noise; `changes` go to the file's top level."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    listed = []
    for i, pose in enumerate(ring(count)):
        Image.fromarray(photo(width, height, i)).save(folder / "images" / f"{i:03d}.png")
        listed.append({"file_path": f"images/{i:03d}.png", "transform_matrix": pose.tolist()})
    lens = {
        "fl_x": 10.0,
        "fl_y": 11.0,
        "cx": 6.5,
        "cy": 4.25,
        "w": width,
        "h": height,
        "k1": 0.01,
        "p2": 0.002,
    }
    meta = {**lens, "camera_model": "OPENCV", "frames": listed, **changes}
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))
    return folder


def edit(folder, change):
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    return folder


# --- orientation, centre, scale, split (spec 12.5, oracles O69, O71) ---


def test_the_up_axis_turns_as_the_oracle_says():
    turned = normalise.rotation_between(np.array([0.0, 1, 0]), np.array([0.0, 0, 1]))
    assert np.allclose(turned, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-12)


def test_opposite_directions_turn_by_half_a_turn():
    for a in np.eye(3):
        turned = normalise.rotation_between(-a, a)
        assert np.allclose(turned @ -a, a)
        assert np.isclose(np.linalg.det(turned), 1)


def test_three_cameras_are_turned_centred_and_scaled_as_nerfstudio_does():
    poses = np.stack([facing(p)[:3] for p in ((2, 1, 0), (0, 1, 3), (-1, 0.5, 1))])
    scene_from_file, problems = normalise.normalise(poses)
    rows = [
        (0.993158, 0.090116, 0.074268, -0.505174),
        (0.090116, -0.186959, -0.978226, 1.430061),
        (-0.074268, 0.978226, -0.193800, -0.532032),
    ]
    assert problems == []
    assert scene_from_file.scale == pytest.approx(0.591165, abs=1e-6)
    assert np.allclose(scene_from_file.matrix()[:3] / scene_from_file.scale, rows, atol=1e-6)
    assert [name for name, _ in scene_from_file.steps] == ["center", "orientation", "scale"]


@pytest.mark.parametrize("orientation", normalise.ORIENTATIONS)
@pytest.mark.parametrize("center", normalise.CENTERS)
def test_cameras_end_upright_within_the_unit_cube(orientation, center):
    poses = np.stack(ring(12))[:, :3] @ np.diag([1.0, 1, 1, 1])
    moved, _ = normalise.normalise(poses, orientation, center)
    found = moved.apply_poses(torch.from_numpy(poses))
    assert found[:, :, 3].abs().max() == pytest.approx(1)
    eye = torch.eye(3, dtype=torch.float64).expand(12, 3, 3)
    assert torch.allclose(found[:, :, :3].mT @ found[:, :, :3], eye, atol=1e-9)
    assert torch.allclose(torch.linalg.det(found[:, :, :3]), torch.ones(12, dtype=torch.float64))
    if orientation != "none":
        assert found[:, 2, 1].mean() > 0.9  # up is +z


def test_the_focus_is_where_the_cameras_look():
    target = np.array([0.3, -0.2, 0.5])
    poses = np.stack([facing(p, target)[:3] for p in ((2, 1, 0), (0, 1, 3), (-1, 0.5, 1))])
    moved, _ = normalise.normalise(poses, "none", "focus", "none")
    assert np.allclose(moved.apply(torch.from_numpy(target)), 0, atol=1e-9)


def test_vertical_ignores_a_common_pitch():
    poses = np.stack([facing((3 * np.cos(a), 2.0, 3 * np.sin(a))) for a in np.arange(4) * 0.4])[:, :3]
    moved, _ = normalise.normalise(poses, "vertical")
    assert np.allclose(moved.rotate(torch.tensor([0.0, 1, 0], dtype=torch.float64)), [0, 0, 1], atol=1e-9)


def test_a_camera_far_outside_is_named():
    poses = np.tile(np.eye(4)[:3], (9, 1, 1))
    poses[:, :, 3] = np.random.default_rng(0).uniform(-1, 1, (9, 3))
    assert not any("as far out" in x for x in normalise.normalise(poses)[1])
    poses[6, :, 3] = [500, 0, 0]
    (told,) = [x for x in normalise.normalise(poses)[1] if "as far out" in x]
    assert told.startswith("camera 6 stands ")


def test_cameras_that_say_nothing_are_reported_not_divided_by_zero():
    still = np.stack([np.eye(4)[:3], np.diag([-1.0, -1, 1, 1])[:3]])
    moved, problems = normalise.normalise(still)
    assert len(problems) == 2
    assert moved.scale == 1


@pytest.mark.parametrize(
    ("rule", "count", "held"),
    [
        (0.95, 47, [22, 45]),
        (0.9, 10, [8]),
        ("every8", 10, [0, 8]),
        (0.95, 20, [18]),
        (0.95, 5, []),
        ("none", 3, []),
    ],
)
def test_splits_follow_the_oracles(rule, count, held):
    train, test = split_images(rule, [str(i) for i in range(count)], [None] * count)
    assert list(test) == held
    assert sorted(train + test) == list(range(count))


def test_splits_come_from_hints_names_and_indices():
    hints = ["train", "test", "val", "train"]
    names = ["a/train_0.png", "b/eval_1.png", "train/x.png", "train_3"]
    assert split_images(None, names, hints) == ((0, 3), (1,))
    assert split_images(None, names, ["train", "val", None, "train"]) == ((0, 3), (1,))
    assert split_images("filename", names, hints) == ((0, 3), (1,))
    assert split_images(((2, 0), [1]), names, hints) == ((2, 0), (1,))
    assert split_images("0.5", names, hints)[0] == (0, 3)
    assert split_images("every8", names[:1], [None]) == ((0,), ())


# --- similarity ---


def test_a_similarity_leads_there_and_back():
    turn = torch.from_numpy(normalise.rotation_between(np.array([1.0, 2, 3]), np.array([-1.0, 0.5, 2])))
    there = Similarity().then("a", similarity(translation=[1.0, 2, 3])).then("b", similarity(2.5, turn))
    points = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(there.invert().apply(there.apply(points)), points)
    assert [name for name, _ in there.invert().steps] == ["b", "a"]
    by_steps = points
    for _, step in there.steps:
        by_steps = step.apply(by_steps)
    assert torch.allclose(by_steps, there.apply(points))
    homogeneous = torch.cat([points, torch.ones(5, 1)], 1) @ there.matrix().T
    assert torch.allclose(homogeneous[:, :3], there.apply(points))
    again = Similarity.from_dict(json.loads(json.dumps(there.to_dict())))
    assert torch.equal(again.matrix(), there.matrix())
    assert [name for name, _ in again.steps] == ["a", "b"]


@pytest.mark.parametrize(
    "values", [{}, {"scale": -1.0}, {"scale": 1.0, "rotation": [[1]], "translation": [0, 0, 0]}]
)
def test_a_broken_similarity_is_refused(values):
    with pytest.raises(SceneError):
        Similarity.from_dict(values)


# --- from_arrays ---


def arrays_scene(count=3, width=6, height=4, **options):
    pictures = np.stack([photo(width, height, i) for i in range(count)])
    return Scene.from_arrays(
        pictures, [5.0, 5.0, 3.0, 2.0], np.stack(ring(count)), **{**OWN_FRAME, **options}
    )


def test_arrays_of_any_kind_make_the_same_scene():
    pictures, poses = np.stack([photo(6, 4, i) for i in range(3)]), np.stack(ring(3))
    matrix = np.array([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]])
    wanted = Scene.from_arrays(pictures, [5.0, 5.0, 3.0, 2.0], poses)
    others = [
        Scene.from_arrays(
            torch.from_numpy(pictures), torch.from_numpy(matrix), torch.from_numpy(poses[:, :3])
        ),
        Scene.from_arrays(list(pictures / 255), np.stack([matrix] * 3), poses.tolist()),
        Scene.from_arrays(
            pictures.astype(np.uint16) * 257, matrix, poses @ np.diag([1, -1, -1, 1]), convention="opencv"
        ),
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(wanted.images, other.images, strict=True))
        assert torch.allclose(wanted.cameras.camera_to_worlds, other.cameras.camera_to_worlds, atol=1e-6)
        assert torch.equal(wanted.cameras.intrinsics, other.cameras.intrinsics)
    assert wanted.cameras.camera_to_worlds.dtype == torch.float32
    assert wanted.cameras.size.tolist() == [[6, 4]] * 3


def test_world_units_come_back_from_the_scene_frame():
    poses = np.stack(ring(5))
    scene = Scene.from_arrays([photo(6, 4, i) for i in range(5)], [5.0, 5.0, 3.0, 2.0], poses)
    back = scene.world_from_scene.apply_poses(scene.cameras.camera_to_worlds.double())
    assert np.allclose(back, poses[:, :3], atol=1e-6)
    assert [name for name, _ in scene.world_from_scene.steps] == ["scale", "orientation", "center"]


def test_depth_and_normals_move_with_the_scene():
    truth = np.zeros((3, 4, 6, 3))
    truth[..., 1] = 1
    depths = np.full((3, 4, 6), 2.0)
    scene = arrays_scene(depths=depths, normals=truth, orientation="up", center="poses", scale=0.25)
    assert torch.allclose(scene.depths[0], torch.tensor(0.5))
    assert torch.allclose(
        scene.world_from_scene.rotate(scene.normals[1]), torch.tensor([0.0, 1, 0]), atol=1e-6
    )


def test_grey_and_alpha_become_one_channel_count():
    pictures = [photo(6, 4)[:, :, 0], photo(5, 3), photo(4, 4, channels=4)]
    scene = Scene.from_arrays(pictures, np.ones(4), np.stack(ring(3)))
    assert [tuple(x.shape) for x in scene.images] == [(4, 6, 4), (3, 5, 4), (4, 4, 4)]
    assert (scene.images[0][:, :, 3] == 255).all()
    assert torch.equal(scene.images[0][:, :, 0], scene.images[0][:, :, 2])


def test_a_description_names_what_matters():
    masks = np.ones((3, 4, 6), bool)
    masks[:, 0] = False
    scene = arrays_scene(masks=masks, features=torch.randn(3, 2, 3, 7), problems=["x is odd"], lens="fisheye")
    text = describe(scene)
    for part in (
        "3 (3 of 6 x 4)",
        "2 to train on, 1 held out",
        "3 fisheye",
        "7 wide, 3 x 2",
        "18 pixels (25.0%)",
        "never drawn",
        "x is odd",
    ):
        assert part in text


# --- transforms.json ---


def test_a_nerfstudio_scene_arrives_as_its_file_says(tmp_path):
    scene = load(write_scene(tmp_path))
    assert scene.names[0] == "images/000.png"
    assert scene.test == (0, 8)
    assert torch.equal(scene.images[4], torch.from_numpy(photo(12, 8, 4)))
    assert scene.cameras.intrinsics[0].tolist() == [10.0, 11.0, 6.5, 4.25]
    assert torch.allclose(scene.cameras.distortion[0, :6], torch.tensor([0.01, 0, 0, 0, 0, 0.002]))
    back = scene.world_from_scene.apply_poses(scene.cameras.camera_to_worlds.double())
    assert np.allclose(back, np.stack(ring(9))[:, :3], atol=1e-5)
    assert scene.problems == ()


def test_the_json_file_itself_is_a_scene_too(tmp_path):
    assert len(load(write_scene(tmp_path) / "transforms.json").images) == 9


def test_the_instant_ngp_dialect_is_read(tmp_path):
    folder = write_scene(tmp_path, fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None, camera_model=None,
                         camera_angle_x=0.9, aabb_scale=4)  # fmt: skip
    edit(folder, lambda meta: [f.update(file_path="./" + f["file_path"][:-4]) for f in meta["frames"]])
    scene = load(folder)
    focal = 6 / np.tan(0.45)
    assert torch.allclose(
        scene.cameras.intrinsics[3], torch.tensor([focal, focal, 6, 4], dtype=torch.float32)
    )
    assert scene.names[0] == "images/000.png"
    assert "aabb_scale" in scene.notes[0]


def test_a_frame_may_have_a_lens_of_its_own(tmp_path):
    def change(meta):
        own = {"fl_x": 7.0, "k1": 0.5, "camera_model": "OPENCV_FISHEYE"}
        meta["frames"][2].update(own)

    cameras = load(edit(write_scene(tmp_path), change)).cameras
    assert cameras.intrinsics[2].tolist() == [7.0, 11.0, 6.5, 4.25]
    assert LENSES[cameras.lens[2]] == "fisheye"
    assert LENSES[cameras.lens[1]] == "perspective"
    assert cameras.distortion[2, 0] == 0.5


@pytest.mark.parametrize(("model", "lens"), sorted(nerfstudio.MODELS.items()))
def test_every_camera_model_is_known(tmp_path, model, lens):
    terms = list(np.linspace(0.01, 0.12, 12)) if model == "FISHEYE624" else None
    scene = load(write_scene(tmp_path, count=2, camera_model=model, distortion_params=terms))
    assert LENSES[scene.cameras.lens[0]] == lens
    if terms:
        assert torch.allclose(scene.cameras.distortion[0], torch.tensor(terms, dtype=torch.float32))


def test_a_panorama_needs_no_focal_length(tmp_path):
    scene = load(write_scene(tmp_path, count=2, width=16, fl_x=None, fl_y=None, cx=None, cy=None,
                             camera_model="EQUIRECTANGULAR"))  # fmt: skip
    assert scene.cameras.intrinsics[0].tolist() == [8, 8, 8, 4]


def test_frames_are_sorted_by_file_and_missing_images_skipped_and_reported(tmp_path):
    def change(meta):
        meta["frames"].reverse()
        meta["frames"][1]["transform_matrix"][0][0] = float("nan")  # its image is gone: nobody minds

    folder = edit(write_scene(tmp_path), change)
    (folder / "images" / "007.png").unlink()
    scene = load(folder)
    assert scene.names == tuple(f"images/{i:03d}.png" for i in range(9) if i != 7)
    assert scene.problems == ("1 of 9 frames have no image and were skipped: images/007.png",)


def test_photos_may_differ_in_size_and_lens_numbers_follow_a_scaled_photo(tmp_path):
    folder = write_scene(tmp_path)
    Image.fromarray(photo(24, 16)).save(folder / "images" / "003.png")
    scene = load(folder)
    assert scene.images[3].shape == (16, 24, 3)
    assert scene.cameras.intrinsics[3].tolist() == [20.0, 22.0, 13.0, 8.5]
    assert scene.cameras.size[3].tolist() == [24, 16]
    assert "images/003.png" in scene.problems[0]


@pytest.mark.parametrize("factor", [2, 3, 1.5, 5])
def test_downscaling_averages_areas_and_scales_intrinsics(tmp_path, factor):
    scene = load(write_scene(tmp_path, count=2, width=21, height=13), downscale=factor)
    width, height = int(21 / factor), int(13 / factor)
    assert scene.images[0].shape == (height, width, 3)
    assert torch.allclose(scene.cameras.intrinsics[0], torch.tensor([10.0, 11, 6.5, 4.25]) / factor)
    if factor == int(factor):
        blocks = photo(21, 13)[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        assert np.abs(scene.images[0].numpy() - blocks.mean((1, 3))).max() < 0.6  # PIL divides in fixed point


def test_a_frame_of_640_by_480_shrinks_as_the_reference_does(tmp_path):
    (tmp_path / "images").mkdir()
    folder = write_scene(tmp_path, count=2, width=640, height=480, fl_x=500.0, fl_y=500.0, cx=320.0, cy=240.0)
    cameras = load(folder, downscale=3).cameras
    assert cameras.size[0].tolist() == [213, 160]
    assert cameras.intrinsics[0, [0, 2]].tolist() == pytest.approx([166.6667, 106.6667], abs=1e-4)


def test_averaging_weighs_colours_by_alpha():
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0, 0] = (200, 100, 50, 255)
    small = np.array(images.shrink(Image.fromarray(picture), 2, Path("x")))
    assert small[0, 0, :3].tolist() == pytest.approx([200, 100, 50], abs=4)
    assert small[0, 0, 3] in (63, 64)


def test_grey_palette_sixteen_bit_and_alpha_images_are_read(tmp_path):
    folder = write_scene(tmp_path, count=6)
    grey = photo(12, 8)[:, :, 0]
    Image.fromarray(grey).save(folder / "images" / "000.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "images" / "001.png")
    Image.fromarray(photo(12, 8)).quantize(8).save(folder / "images" / "002.png")
    Image.fromarray(photo(12, 8, channels=4)).save(folder / "images" / "003.png")
    Image.fromarray(photo(12, 8)).convert("1").save(folder / "images" / "004.png")
    scene = load(folder)
    for i in (0, 1):
        assert torch.equal(scene.images[i][:, :, :3], torch.from_numpy(grey)[:, :, None].expand(-1, -1, 3))
    assert torch.equal(scene.images[3], torch.from_numpy(photo(12, 8, channels=4)))
    assert {x.shape[2] for x in scene.images} == {4}


def test_an_exif_turn_is_not_applied(tmp_path):
    folder = write_scene(tmp_path, count=2)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6
    Image.fromarray(photo(12, 8)).save(folder / "images" / "000.png", exif=exif)
    assert load(folder).images[0].shape == (8, 12, 3)


def test_masks_depths_and_splits_of_a_file_are_attached(tmp_path):
    folder = write_scene(tmp_path, count=4, k1=None, p2=None)
    mask = np.zeros((8, 12), np.uint8)
    mask[2:6] = 7
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.full((8, 12), 2000, np.uint16)).save(folder / "depth.png")
    np.save(folder / "depth.npy", np.full((8, 12), 2000.0))

    def change(meta):
        for i, frame in enumerate(meta["frames"]):
            frame.update(mask_path="mask.png", depth_file_path=f"depth.{'npy' if i else 'png'}")
            frame.update(split="test" if i == 2 else "train")

    scene = load(edit(folder, change), scale=0.5)
    assert (scene.train, scene.test) == ((0, 1, 3), (2,))
    assert scene.masks[0].sum() == 48 and scene.masks[0].dtype == torch.bool
    x, y = (4 + 0.5 - 6.5) / 10, (1 + 0.5 - 4.25) / 11
    assert scene.depths[0][1, 4] == pytest.approx(2 * 0.5 * np.sqrt(1 + x * x + y * y), rel=1e-6)
    assert torch.equal(scene.depths[0], scene.depths[1])


def test_depth_along_the_axis_is_undistorted_before_it_is_ray_distance():
    """Where the lens has an image that is known, and where it has none: beyond its fold rays are plain."""
    terms = np.array([0.0578421, -0.0805099, 0.01, 0, -0.000980296, 0.00015575, *[0.0] * 6])
    u, v = 0.31, -0.52
    r, (k1, k2, k3, _, p1, p2) = u * u + v * v, terms[:6]
    d = 1 + r * (k1 + r * (k2 + r * k3))
    x = u * d + 2 * p1 * u * v + p2 * (r + 2 * u * u)
    y = v * d + 2 * p2 * u * v + p1 * (r + 2 * v * v)
    # The middle of the one pixel lies at (x, y) of the distorted plane.
    found = depth.ray_distance(np.full((1, 1), 2.0), np.array([1, 1, 0.5 - x, 0.5 - y]), terms)
    assert found.dtype == np.float32
    assert found[0, 0] == pytest.approx(2 * np.sqrt(1 + u * u + v * v), rel=1e-6)
    folded = depth.ray_distance(np.ones((1, 1)), np.array([1, 1, -0.5, -0.5]), np.array([-1.0, *[0.0] * 11]))
    assert folded[0, 0] == pytest.approx(np.sqrt(3), rel=1e-6)


def test_what_was_applied_before_the_file_is_undone_in_world_units(tmp_path):
    rows = [[1.0, 0, 0, 0], [0, 0, 1, 0.5], [0, -1, 0, 0]]
    scene = load(write_scene(tmp_path, applied_transform=rows, applied_scale=2.0))
    assert [name for name, _ in scene.world_from_scene.steps][-2:] == ["applied_scale", "applied_transform"]
    in_file = 2.0 * (
        np.array(rows) @ [*scene.world_from_scene.apply(scene.cameras.camera_to_worlds[3, :, 3]), 1]
    )
    assert np.allclose(in_file, ring(9)[3][:3, 3], atol=1e-5)


def test_an_orientation_in_the_file_beats_the_default_and_a_word_beats_both(tmp_path):
    folder = write_scene(tmp_path, orientation_override="none")
    assert torch.equal(
        load(folder, scale="none", center="none").world_from_scene.rotation, torch.eye(3).double()
    )
    assert not torch.equal(load(folder, orientation="up").world_from_scene.rotation, torch.eye(3).double())


def test_cameras_to_render_are_read_without_photos(tmp_path):
    folder = write_scene(tmp_path)
    scene = load(folder)
    for file in (folder / "images").iterdir():
        file.unlink()
    names, cameras = nerfstudio.read_cameras(folder / "transforms.json", scene.world_from_scene)
    assert len(names) == 9
    for field in ("camera_to_worlds", "intrinsics", "distortion", "lens", "size"):
        assert torch.allclose(getattr(cameras, field), getattr(scene.cameras, field), atol=1e-6)


def test_progress_counts_every_photo(tmp_path):
    seen = []
    load(write_scene(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_features_are_matched_to_photos_by_name(tmp_path):
    folder = write_scene(tmp_path, count=3)
    maps = np.random.default_rng(0).normal(size=(3, 2, 3, 5)).astype(np.float32)
    names = [f"images/{i:03d}.png" for i in (2, 0, 1)]
    np.savez(folder / "maps.npz", features=maps, file_names=np.array(names))
    found = load(folder, features=folder / "maps.npz").features
    assert torch.equal(found.maps[0], torch.from_numpy(maps[1]).half())
    assert found.width == 5


# --- Blender ---


def write_blender(folder, truth=True):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        (folder / split).mkdir()
        listed = []
        for i in range(count):
            Image.fromarray(photo(10, 10, i, 4)).save(folder / split / f"r_{i}.png")
            listed.append({"file_path": f"./{split}/r_{i}", "transform_matrix": ring(9)[i].tolist()})
            if truth and split == "test":
                Image.fromarray(np.full((10, 10), 1500, np.uint16)).save(
                    folder / split / f"r_{i}_dist_mm.png"
                )
                Image.fromarray(photo(10, 10, 9, 4)).save(folder / split / f"r_{i}_normal_pos.png")
        meta = {"camera_angle_x": 0.6911112070, "frames": listed}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder


def test_a_blender_scene_keeps_its_frame_its_split_and_its_alpha(tmp_path):
    scene = load(write_blender(tmp_path))
    assert [scene.names[i] for i in scene.train] == [f"train/r_{i}.png" for i in range(3)]
    assert [scene.names[i] for i in scene.test] == [f"test/r_{i}.png" for i in range(2)]
    assert scene.background == "white"
    assert scene.images[0].shape == (10, 10, 4)
    assert scene.world_from_scene.scale == 1
    assert np.allclose(scene.cameras.camera_to_worlds[scene.train[2]], ring(9)[2][:3])
    assert "transforms_val.json" in scene.notes[0]
    train, test = scene.train[0], scene.test[0]
    assert scene.depths[train] is None and torch.allclose(scene.depths[test], torch.tensor(1.5))
    alpha = photo(10, 10, 9, 4)[:, :, 3]
    assert np.array_equal(scene.normals[test][:, :, 0].isfinite().numpy(), alpha == 255)
    assert scene.normals_positive_only


def test_the_blender_focal_length_is_the_oracles():
    lens = Lens(angle_x=0.6911112070)
    assert intrinsics(lens, 800, 800, "lego")[0] == pytest.approx(1111.111031, abs=1e-6)


# --- real scenes ---


def test_fox_is_fifty_photos_of_which_every_eighth_is_held_out():
    scene = load(real("fox"), downscale=8)
    assert len(scene.images) == 50
    assert [scene.names[i] for i in scene.test][:2] == ["images/0001.jpg", "images/0012.jpg"]
    assert scene.cameras.size.unique(dim=0).tolist() == [[67, 120]]
    assert scene.cameras.camera_to_worlds[:, :, 3].abs().max() == pytest.approx(1)
    assert scene.cameras.camera_to_worlds[:, 2, 1].mean() > 0.9


def test_fox_at_full_size_reports_its_seventeen_missing_photos():
    scene = load(real("fox_full"), downscale=8)
    assert len(scene.images) == 50 and len(scene.test) == 7
    assert scene.problems[0].startswith("17 of 67 frames have no image and were skipped: images/0005.jpg")
    small = load(real("fox"), downscale=4)
    assert torch.allclose(scene.cameras.camera_to_worlds, small.cameras.camera_to_worlds, atol=1e-5)
    assert torch.allclose(scene.cameras.intrinsics, small.cameras.intrinsics, rtol=1e-4)


def test_real_feature_maps_fit_the_fox():
    folder = real("fox")
    scene = load(folder, downscale=8, features=folder / "r2d2_features_60x34.npz")
    assert tuple(scene.features.maps[0].shape) == (60, 34, 32)


def test_the_chair_comes_with_depth_and_normals_of_its_test_views():
    scene = load(real("chair"), downscale=4)
    assert (len(scene.train), len(scene.test)) == (100, 25)
    depths = [scene.depths[i] for i in scene.test]
    seen = torch.cat([x[x > 0] for x in depths])
    assert seen.min() > 2 and seen.max() < 6
    normal = scene.normals[scene.test[0]]
    assert normal[normal.isfinite()].max() <= 1


def test_the_head_is_masked():
    scene = load(real("head"), downscale=4)
    assert len(scene.test) == 9
    source = PixelSource(scene, scene.train)
    assert 0.1 < len(source.valid) / int(source.starts[-1]) < 0.5


# --- pixels ---


def test_a_pixel_source_lays_photos_out_end_to_end(device):
    pictures = [photo(6, 4), photo(5, 3, 1), photo(3, 2, 2)]
    scene = Scene.from_arrays(pictures, np.ones(4), np.stack(ring(3)), split="none")
    source = PixelSource(scene, [2, 0], device)
    assert source.starts.tolist() == [0, 6, 30]
    assert source.widths.tolist() == [3, 6]
    assert torch.equal(source.cameras.camera_to_worlds.cpu(), scene.cameras.camera_to_worlds[[2, 0]])
    assert source.bytes == 3 * 30 == bytes_needed(scene, [2, 0])
    assert source.size(1) == (6, 4)
    whole = source.image(1)
    assert whole.rgb.device.type == device.type
    assert torch.allclose(whole.rgb.cpu(), torch.from_numpy(pictures[0]).reshape(-1, 3) / 255)
    assert whole.xy[:7].tolist() == [[x + 0.5, 0.5] for x in range(6)] + [[0.5, 1.5]]
    assert (whole.camera == 1).all()


def drawable():
    return pytest.importorskip("raymarch.ops.pixels")


def test_drawn_pixels_show_what_lies_there(device):
    drawable()
    pictures = [photo(6, 4, channels=4), photo(5, 3, 1, 4), photo(3, 2, 2, 4)]
    depths = [np.full((4, 6), 1.0), None, np.full((2, 3), 3.0)]
    scene = Scene.from_arrays(
        pictures, np.ones(4), np.stack(ring(3)), split="none", depths=depths, **OWN_FRAME
    )
    source = PixelSource(scene, [2, 0, 1], device)
    pixels = source.draw(torch.tensor([3, 5], device=device), 500)
    assert pixels.rgb.shape == (500, 4)
    for camera, (x, y), rgb, distance in zip(
        pixels.camera.tolist(), pixels.xy.tolist(), pixels.rgb.cpu(), pixels.depth.tolist(), strict=True
    ):
        i = source.indices[camera]
        assert torch.allclose(rgb, scene.images[i][int(y), int(x)] / 255)
        assert distance == (1.0, 0.0, 3.0)[i]
    assert pixels.camera.unique().tolist() == [0, 1, 2]
    again = source.draw(torch.tensor([3, 5], device=device), 500)
    assert torch.equal(again.xy, pixels.xy)
    assert not torch.equal(source.draw(torch.tensor([3, 6], device=device), 500).xy, pixels.xy)


def test_masked_pixels_are_never_drawn(device):
    drawable()
    masks = np.zeros((3, 4, 6), bool)
    masks[:, 1, 2:4] = True
    source = PixelSource(arrays_scene(masks=masks), [0, 2], device)
    pixels = source.draw(torch.tensor([0, 0], device=device), 300)
    assert sorted(set(map(tuple, pixels.xy.tolist()))) == [(2.5, 1.5), (3.5, 1.5)]
    assert pixels.camera.unique().tolist() == [0, 1]


def test_features_are_read_at_the_drawn_pixels(device):
    drawable()
    maps = tuple(torch.randn(2, 3, 8).half() for _ in range(3))
    source = PixelSource(arrays_scene(features=FeatureMaps(maps)), [1, 2], device)
    pixels = source.draw(torch.tensor([0, 1], device=device), 64)
    for camera, (x, y), feature in zip(
        pixels.camera.tolist(), pixels.xy.tolist(), pixels.feature.cpu(), strict=True
    ):
        assert torch.allclose(feature, maps[source.indices[camera]][int(y) // 2, int(x) // 2].float())
    assert source.feature_width == 8
    assert source.image(0).feature is None
    assert source.image(0, features=True).feature.shape == (24, 8)
