"""Bad scenes: each gets one clear SceneError, or a line in `problems` where the rest is usable."""

import json
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import arrays_scene, edit, facing, photo, ring, write_blender, write_scene

from raymarch.data.feature_files import read_feature_maps
from raymarch.data.maps import FeatureMaps
from raymarch.data.nerfstudio import read_cameras
from raymarch.data.pixels import PixelSource
from raymarch.data.pose_files import read_adjustments
from raymarch.data.scene import Scene, SceneError, load
from raymarch.data.similarity import Similarity
from raymarch.train.checkpoint import CheckpointError
from raymarch.train.nerfstudio_weights import read_weights


def refused(folder, *parts, **options):
    """Loading fails in one line that holds every part."""
    with pytest.raises(SceneError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def set_frame(i, **values):
    return lambda meta: meta["frames"][i].update(values)


# --- files ---


def test_a_folder_that_is_not_there(tmp_path):
    refused(tmp_path / "none", "none does not exist")


def test_a_folder_that_is_no_scene(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, "not a scene of a known format", "transforms.json", "transforms_train.json")
    refused(tmp_path / "notes.txt", "not a scene of a known format")


def test_a_folder_near_a_scene_is_told_where_it_is(tmp_path):
    folder = write_scene(tmp_path / "kitchen", count=3)
    refused(folder / "images", "not a scene of a known format", f"did you mean {folder}?")
    refused(tmp_path, f"did you mean {folder}?")


def test_photos_without_poses_are_told_what_finds_them(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    refused(tmp_path, "it holds 2 photos", "COLMAP")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"frames": [\n  {"file_path": }]}', ["line 2, column 17"]),
        ("", ["line 1, column 1"]),
        ("[1, 2]", ["JSON list", "not an object"]),
        ("{}", ["no list 'frames'"]),
        ('{"frames": {}}', ["no list 'frames'"]),
        ('{"frames": []}', ["lists no frames"]),
        ('{"frames": [3]}', ["frame 0", "file_path"]),
        ('{"frames": [{"file_path": 3}]}', ["frame 0", "file_path"]),
        ('{"frames": [{"file_path": "a.png"}]}', ["'a.png'", "transform_matrix"]),
        ("[" * 100000, ["cannot be read as JSON"]),
        ('{"w": ' + "1" * 5000 + "}", ["cannot be read as JSON"]),
    ],
)
def test_broken_json(tmp_path, text, parts):
    (tmp_path / "transforms.json").write_text(text)
    refused(tmp_path, "transforms.json", *parts)


def test_json_that_is_not_text(tmp_path):
    (tmp_path / "transforms.json").write_bytes(b"\xff\xfe\x00{")
    refused(tmp_path, "transforms.json", "cannot be read as JSON")


def test_no_image_left(tmp_path):
    folder = write_scene(tmp_path, count=3)
    for file in (folder / "images").iterdir():
        file.unlink()
    refused(folder, "no image is left", "3 files", "images/000.png")


@pytest.mark.parametrize("name", ["\x00", "a" * 5000, "\ud800", "", "/", "..", "images", "~"])
def test_a_file_path_that_no_file_can_have_is_a_missing_image(tmp_path, name):
    scene = load(edit(write_scene(tmp_path, count=3), set_frame(1, file_path=name)))
    assert len(scene.images) == 2
    assert "1 of 3 frames have no image" in scene.problems[0]


def test_an_unreadable_image_is_named_or_skipped(tmp_path):
    folder = write_scene(tmp_path, count=3)
    (folder / "images" / "001.png").write_text("not a picture")
    refused(folder, "images/001.png", "cannot be read as an image")
    scene = load(folder, skip_unreadable=True)
    assert scene.names == ("images/000.png", "images/002.png")
    assert "images/001.png was skipped" in scene.problems[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_or_empty_image_is_named(tmp_path, suffix):
    folder = write_scene(tmp_path, count=2, width=64, height=64)
    file = folder / "images" / f"001.{suffix}"
    Image.fromarray(photo(64, 64)).save(file)
    edit(folder, set_frame(1, file_path=f"images/001.{suffix}"))
    whole = file.read_bytes()
    for size in (len(whole) // 2, 20, 0):
        file.write_bytes(whole[:size])
        refused(folder, f"001.{suffix}", "cannot be read as an image")


def test_every_image_unreadable(tmp_path):
    folder = write_scene(tmp_path, count=2)
    for file in (folder / "images").iterdir():
        file.write_bytes(b"")
    refused(folder, "no image is left", skip_unreadable=True)


def test_a_format_whose_decoder_runs_programs_is_not_opened(tmp_path):
    folder = write_scene(tmp_path, count=1)
    (folder / "images" / "000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n%%EOF\n")
    refused(folder, "000.png", "cannot be read as an image")


def test_a_picture_of_another_shape_than_the_file_says(tmp_path):
    folder = write_scene(tmp_path, count=2)
    Image.fromarray(photo(12, 12)).save(folder / "images" / "001.png")
    refused(folder, "images/001.png", "12 x 8", "12 x 12", "not the same picture scaled")


def test_a_picture_that_only_exif_would_turn_to_fit(tmp_path):
    folder = write_scene(tmp_path, count=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(8, 12)).save(folder / "images" / "001.png", exif=exif)
    refused(folder, "images/001.png", "EXIF")


def test_floating_point_photos(tmp_path):
    folder = write_scene(tmp_path, count=2)
    Image.fromarray(np.zeros((8, 12), np.float32)).save(folder / "images" / "a.tif")
    refused(edit(folder, set_frame(0, file_path="images/a.tif")), "a.tif", "floating-point")


# --- poses and lenses ---


def broken_poses():
    good = facing((1, 2, 3))
    nan, huge, short = good.copy(), good.copy(), good[:2]
    nan[1, 3] = np.nan
    huge[0, 3] = 1e200
    sheared = good.copy()
    sheared[0, 1] += 0.01
    scaled = good.copy()
    scaled[:3, :3] *= 2
    tilted = good.copy()
    tilted[3, 0] = 0.5
    zero = good.copy()
    zero[:3, :3] = 0
    return {
        "not finite": [nan, huge, np.full((4, 4), np.inf)],
        "has shape [2, 4]": [short],
        "not rigid": [sheared, zero],
        "uniform scale of 2": [scaled],
        "mirrors space": [good @ np.diag([-1, 1, 1, 1])],
        "ends in the row": [tilted],
    }


@pytest.mark.parametrize(("words", "pose"), [(w, p) for w, poses in broken_poses().items() for p in poses])
def test_a_pose_that_is_none_names_its_frame(tmp_path, words, pose):
    folder = edit(write_scene(tmp_path, count=3), set_frame(1, transform_matrix=pose.tolist()))
    refused(folder, "images/001.png", words)
    poses = ring(3)
    poses[1] = pose
    with pytest.raises(SceneError, match="image 1"):
        Scene.from_arrays([photo(4, 4)] * 3, np.ones(4), poses)


@pytest.mark.parametrize("pose", [None, 3, "abc", {}, [[1, 2], [3]], [["a"] * 4] * 4, [], [[[1]]]])
def test_a_pose_that_is_not_even_numbers(tmp_path, pose):
    refused(edit(write_scene(tmp_path, count=3), set_frame(2, transform_matrix=pose)), "images/002.png")


def test_an_unknown_camera_model_hears_of_its_neighbour(tmp_path):
    refused(
        write_scene(tmp_path, camera_model="OPENCV_FISHEYES"),
        "'OPENCV_FISHEYES'",
        "did you mean OPENCV_FISHEYE?",
    )
    refused(write_scene(tmp_path, camera_model="THIN_PRISM"), "known are SIMPLE_PINHOLE, PINHOLE")
    refused(write_scene(tmp_path, camera_model=["OPENCV"]), "unknown camera_model")
    refused(write_scene(tmp_path, ftheta_p0=0.1), "f-theta")
    with pytest.raises(SceneError, match="did you mean fisheye"):
        arrays_scene(lens="fish-eye")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fl_x": "wide"}, "fl_x"),
        ({"fl_x": True}, "fl_x"),
        ({"fl_x": float("inf")}, "fl_x"),
        ({"fl_x": 0.0}, "focal lengths positive"),
        ({"fl_x": -3.0}, "focal lengths positive"),
        ({"fl_x": None, "fl_y": None}, "no focal length"),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": 4.0}, "field of view of 4 radians"),
        ({"w": 12.5}, "whole number of pixels"),
        ({"w": 0}, "whole number of pixels"),
        ({"k1": float("nan")}, "k1"),
        ({"distortion_params": [1] * 9}, "distortion_params"),
        ({"camera_model": "FISHEYE624"}, "no distortion_params"),
        ({"applied_transform": [[1, 2], [3, 4]]}, "applied_transform"),
        ({"applied_scale": 0}, "applied_scale"),
        ({"orientation_override": "sideways"}, "orientation_override"),
        ({"train_filenames": "all"}, "train_filenames"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor"),
    ],
)
def test_numbers_that_no_lens_has(tmp_path, changes, words):
    refused(write_scene(tmp_path, **changes), words)


@pytest.mark.parametrize(
    "options",
    [
        {"downscale": 0}, {"downscale": 0.5}, {"downscale": float("nan")}, {"downscale": "2"},
        {"downscale": 9}, {"split": "every1"}, {"split": "every0"}, {"split": 1.5}, {"split": 3},
        {"split": ([], [1])}, {"split": ([0], [99])}, {"split": ([0, 0], [])}, {"split": "file"},
        {"orientation": "down"}, {"center": "middle"}, {"scale": "large"}, {"scale": -1.0},
        {"scale": float("inf")}, {"split": "every"},
    ],
)  # fmt: skip
def test_options_that_mean_nothing(tmp_path, options):
    refused(write_scene(tmp_path), **options)


# --- what lies beside photos ---


def test_a_mask_of_the_wrong_size_names_both(tmp_path):
    folder = write_scene(tmp_path, count=2)
    Image.fromarray(photo(6, 4)[:, :, 0]).save(folder / "mask.png")
    edit(folder, lambda meta: [frame.update(mask_path="mask.png") for frame in meta["frames"]])
    refused(folder, "mask.png has 6 x 4 pixels", "its image 12 x 8")


def test_masks_for_some_frames_only_or_absent_or_empty(tmp_path):
    folder = edit(write_scene(tmp_path, count=3), set_frame(1, mask_path="images/000.png"))
    refused(folder, "either every frame has a mask or none", "images/000.png")
    refused(edit(folder, set_frame(1, mask_path="gone.png")), "'gone.png'", "does not exist")
    refused(edit(folder, set_frame(1, mask_path=7)), "should be a file name")
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(folder / "black.png")
    edit(folder, lambda meta: [frame.update(mask_path="black.png") for frame in meta["frames"]])
    refused(folder, "masks keep no pixel")


def test_depth_maps_that_are_not_depth(tmp_path):
    folder = write_scene(tmp_path, count=2)
    cases = {
        "size.npy": (np.ones((3, 3)), "3 x 3 pixels"),
        "nan.npy": (np.full((8, 12), np.nan), "negative or not finite"),
        "minus.npy": (-np.ones((8, 12)), "negative or not finite"),
        "words.npy": (np.full((8, 12), "a"), "one number per pixel"),
        "objects.npy": (np.array([{}], dtype=object), "cannot be read as an array"),
    }
    for name, (values, words) in cases.items():
        np.save(folder / name, values)
        refused(edit(folder, set_frame(0, depth_file_path=name)), name, words)


def test_depth_along_the_axis_needs_a_perspective_lens(tmp_path):
    folder = write_scene(tmp_path, count=2, camera_model="OPENCV_FISHEYE")
    np.save(folder / "d.npy", np.ones((8, 12)))
    refused(edit(folder, set_frame(0, depth_file_path="d.npy")), "d.npy", "fisheye")


def test_feature_maps_that_do_not_fit():
    cases = [
        (torch.zeros(2, 2, 3, 4), "2 feature maps for 3 images"),
        (torch.zeros(3, 9, 3, 4), "3 x 9 cells"),
        (torch.zeros(3, 2, 3), "floats of shape"),
        (np.zeros((3, 2, 3, 4), np.int64), "floats of shape"),
        (torch.full((3, 2, 3, 4), 1e6), "65504"),
        (torch.full((3, 2, 3, 4), float("nan")), "not finite"),
        (
            [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)],
            r"differ in width.*4 channels.*5",
        ),
        (FeatureMaps(tuple(torch.zeros(3, 2, 3, 4).half()), mode="cubic"), "mode"),
    ]
    for features, words in cases:
        with pytest.raises(SceneError, match=words):
            arrays_scene(features=features)


def test_feature_files_that_cannot_be_used(tmp_path):
    good = {"features": np.zeros((2, 2, 3, 4), np.float32), "file_names": np.array(["a", "b"])}
    np.savez(tmp_path / "good.npz", **good)
    np.savez(tmp_path / "pickled.npz", **{**good, "file_names": np.array(["a", "b"], dtype=object)})
    np.savez(tmp_path / "nameless.npz", features=good["features"])
    np.savez(tmp_path / "odd.npz", **{**good, "file_names": np.array(["a"])})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    assert read_feature_maps(tmp_path / "good.npz", ["b"]).maps[0].shape == (2, 3, 4)
    for name in ("pickled", "nameless", "odd", "cut", "none", "good"):
        with pytest.raises(SceneError, match=name):
            read_feature_maps(tmp_path / f"{name}.npz", ["c"] if name == "good" else ["a"])


def test_blender_scenes_with_a_broken_half(tmp_path):
    folder = write_blender(tmp_path)
    (folder / "transforms_test.json").write_text("{")
    refused(folder, "transforms_test.json", "line 1")


def test_positive_normals_cannot_be_turned(tmp_path):
    with pytest.raises(SceneError, match="orientation='none'"):
        arrays_scene(normals=np.ones((3, 4, 6, 3)), normals_positive_only=True, orientation="up")


# --- arrays ---


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "at least one image"),
        (3, "must be a list"),
        (np.zeros((1, 3, 4, 6), np.uint8), r"shape \[3, 4, 6\]"),
        (np.zeros((1, 4, 0, 3), np.uint8), "shape"),
        (np.zeros((1, 4, 6, 3), np.int64), "int64"),
        (np.full((1, 4, 6, 3), np.nan), "not a finite number"),
        (np.full((1, 4, 6, 3), 200.0), r"floats must lie in 0..1"),
    ],
)
def test_images_that_are_none(images, words):
    with pytest.raises(SceneError, match=words):
        Scene.from_arrays(images, np.ones(4), ring(1))


def test_arrays_that_disagree():
    pictures, poses = [photo(6, 4)] * 3, np.stack(ring(3))
    cases = [
        ({"poses": poses[:2]}, "2 poses for 3 images"),
        ({"poses": None}, "poses must be a list"),
        ({"intrinsics": np.ones((2, 4))}, r"shape \[2, 4\]"),
        ({"intrinsics": np.ones((2, 3, 3))}, "intrinsics"),
        ({"intrinsics": "wide"}, "intrinsics must be numbers"),
        ({"intrinsics": [[5.0, 0.3, 3], [0, 5, 2], [0, 0, 1]]}, "skew"),
        ({"intrinsics": [[50.0, 0, 30], [0, 50, 20], [0, 0, 10]]}, r"row \[0.0, 0.0, 10.0\]"),
        ({"intrinsics": [5.0, np.nan, 1, 1]}, "image 0"),
        ({"distortion": np.ones(13)}, "distortion"),
        ({"distortion": np.ones((2, 4))}, "distortion"),
        ({"distortion": [np.nan]}, "distortion"),
        ({"lens": ["fisheye"]}, "1 lens words for 3 images"),
        ({"names": ["a"]}, "1 names for 3 images"),
        ({"masks": np.ones((3, 6, 4), bool)}, r"masks of image 0: expected shape \[4, 6\]"),
        ({"masks": np.ones((2, 4, 6), bool)}, "2 masks for 3 images"),
        ({"depths": -np.ones((3, 4, 6))}, "negative"),
        ({"depths": np.full((3, 4, 6), "x")}, "expected numbers"),
        ({"normals": np.ones((3, 4, 6))}, "normals of image 0"),
        ({"convention": "maya"}, "convention"),
        ({"background": "grey"}, "background"),
    ]
    for change, words in cases:
        given = {"images": pictures, "intrinsics": np.ones(4), "poses": poses, **change}
        with pytest.raises(SceneError, match=words):
            Scene.from_arrays(**given)


def test_a_pixel_source_of_nothing():
    scene = arrays_scene(masks=np.stack([np.ones((4, 6)), np.zeros((4, 6)), np.ones((4, 6))]), split="none")
    for indices, words in (([], "at least one"), ([7], "photo 7"), ([1], "keep no pixel")):
        with pytest.raises(SceneError, match=words):
            PixelSource(scene, indices)


def test_cameras_without_a_size(tmp_path):
    folder = write_scene(tmp_path, count=1, w=None)
    (folder / "images" / "000.png").unlink()
    with pytest.raises(SceneError, match="no size"):
        read_cameras(folder / "transforms.json", Similarity())


# --- anything at all ---

ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    float("nan"),
    "",
    "x",
    "OPENCV",
    [],
    {},
    [[]],
    [1, 2, 3],
    {"w": 1},
    "\x00",
)
KEYS = (
    "w", "h", "fl_x", "cx", "k1", "camera_model", "camera_angle_x", "x_fov", "distortion_params",
    "applied_transform", "applied_scale", "orientation_override", "train_filenames", "test_filenames",
    "is_fisheye", "frames", "file_path", "transform_matrix", "mask_path", "depth_file_path", "split",
)  # fmt: skip


def mutate(meta, dice):
    """Change, add or drop something somewhere."""
    spot = dice.choice([meta, *meta["frames"]]) if isinstance(meta.get("frames"), list) else meta
    if not isinstance(spot, dict):
        return
    if dice.random() < 0.3 and isinstance(spot.get("transform_matrix"), list):
        row = dice.choice(spot["transform_matrix"] or [[]])
        if isinstance(row, list) and row:
            row[dice.randrange(len(row))] = dice.choice(ODD)
        return
    key = dice.choice(KEYS)
    if dice.random() < 0.2:
        spot.pop(key, None)
    else:
        spot[key] = dice.choice(ODD)


def test_whatever_a_file_says_only_a_scene_error_comes_out(tmp_path):
    folder = write_scene(tmp_path, count=3)
    text = (folder / "transforms.json").read_text()
    dice, loaded = random.Random(0), 0
    for _ in range(1200):
        if dice.random() < 0.8:
            meta = json.loads(text)
            for _ in range(dice.randint(1, 3)):
                mutate(meta, dice)
            broken = json.dumps(meta)
        else:
            at = dice.randrange(len(text))
            broken = (
                text[:at]
                + dice.choice(["", "}", "9", '"', "\n", "\udcff", "-"])
                + text[at + dice.randint(0, 3) :]
            )
        (folder / "transforms.json").write_bytes(broken.encode("utf-8", "surrogatepass"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                scene = load(folder, threads=1)
            except SceneError as error:
                assert "\n" not in str(error)
                continue
        loaded += 1
        assert scene.cameras.camera_to_worlds.isfinite().all()
        assert scene.cameras.intrinsics.isfinite().all()
        assert scene.train
    assert 100 < loaded < 1100


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path):
    """A few hundred kilobytes of zeros are as many megabytes unpacked."""
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, pose_adjustment=np.zeros((1 << 23, 6)))
    for read in (read_adjustments, lambda path: read_feature_maps(path, ["a"])):
        with pytest.raises(SceneError, match=r"bomb\.npz.*would unpack from \d+ to 402\d+ bytes"):
            read(bomb)
    with pytest.raises(CheckpointError, match="would unpack"):
        read_weights(bomb)
    np.savez_compressed(bomb, pose_adjustment=np.zeros((9, 6)))
    assert read_adjustments(bomb).shape == (9, 6)
