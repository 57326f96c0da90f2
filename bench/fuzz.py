"""Broken files of every format into every parser: only a SceneError of one line may come out.

python -m bench.fuzz [--cases 100000] [--seed 0] [--only colmap] [--no-record]

Each case takes one small valid file (bench/seeds.py), damages it a few times (cut, flipped, overwritten,
doubled or removed bytes; numbers replaced by extreme ones; words of text swapped for odd ones), and parses it
from memory, or loads a folder that holds it. Anything but a result or a SceneError (WordsError of embeddings,
ValueError of a PLY) counts as a crash, and so does a message of several lines, a result with numbers that are
not finite, and a case that computes for over ten seconds. Count and time go into the record. Crashes are
printed with what repeats them.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from bench import record, seeds
from raymarch.data import colmap_files, exr, images, llff, nerfstudio
from raymarch.data.arrays import pose_array
from raymarch.data.feature_files import Photo, read_feature_maps
from raymarch.data.feature_writer import FeatureWriter
from raymarch.data.maps import feature_maps
from raymarch.data.nerfstudio import read_cameras
from raymarch.data.paths import read_camera_path
from raymarch.data.pose_files import read_adjustments
from raymarch.data.scene import Scene, SceneError, load
from raymarch.data.similarity import Similarity
from raymarch.export.ply import read_ply, write_ply
from raymarch.features.words import WordsError, read_embeddings

SLOW = 10.0  # seconds that no file of a few kilobytes may take
INTEGERS = (0, 1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1, (1 << 63) - 1)
REALS = (0.0, -0.0, 1e-320, 1e300, -1e38, float("nan"), float("inf"), -1.0, 1.5)
WORDS = (
    *("", "NaN", "-1", "1e999", "0", "null", "true", "{}", "[]", '"', "\\", "é", "\x00", "9" * 400, "1.5"),
    *("-", "PINHOLE", "../..", "a b", "\ud800", "Infinity", "[[1]]", "# ", "\n", "1e-320", "\u2028", "٣"),
)
Parser = Callable[[bytes], Any]


@dataclass(frozen=True)
class Target:
    """A valid file and what reads it."""

    name: str
    data: bytes
    parse: Parser
    text: bool = False


def damage(data: bytes, dice: random.Random, text: bool) -> bytes:
    """One to four changes. Text mostly stays text, so that parsers get beyond their first check."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        if text and dice.random() < 0.75:
            found = bytearray(_reworded(bytes(found), dice))
        else:
            _rewritten(found, dice)
    return bytes(found)


def _reworded(data: bytes, dice: random.Random) -> bytes:
    """A word or number of a text replaced, doubled or removed."""
    marks = [i for i, b in enumerate(data) if b in b' ,:{}[]"\n']
    if len(marks) < 2:
        return data
    k = dice.randrange(len(marks) - 1)
    first, last = marks[k] + 1, marks[min(len(marks) - 1, k + dice.choice((1, 1, 1, 2, 5)))]
    piece = data[first:last]
    choice = dice.random()
    if choice < 0.6:
        piece = dice.choice(WORDS).encode("utf-8", "surrogatepass")
    elif choice < 0.8:
        piece = piece + b" " + piece
    else:
        piece = b""
    return data[:first] + piece + data[last:]


def _rewritten(found: bytearray, dice: random.Random) -> None:
    size = len(found)
    if not size:
        found += bytes(dice.randrange(256) for _ in range(8))
        return
    at = dice.randrange(size)
    kind = dice.randrange(8)
    if kind == 0:
        del found[at:]
    elif kind == 1:
        found[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        found[at] = dice.randrange(256)
    elif kind == 3:
        value = dice.choice(INTEGERS)
        width, code = dice.choice(((4, "<I"), (8, "<Q")))
        found[at : at + width] = struct.pack(code, value & ((1 << (8 * width)) - 1))
    elif kind == 4:
        found[at : at + 8] = struct.pack("<d", dice.choice(REALS))
    elif kind == 5:
        del found[at : at + dice.choice((1, 1, 4, 8, 50))]
    elif kind == 6:
        found[at:at] = found[max(0, at - dice.choice((1, 8, 40))) : at]
    else:
        other = dice.randrange(size)
        found[at : at + 16] = found[other : other + 16]


def _finite(scene: Scene) -> None:
    assert scene.train
    assert scene.cameras.camera_to_worlds.isfinite().all()
    assert scene.cameras.intrinsics.isfinite().all()
    assert scene.cameras.distortion.isfinite().all()
    assert all(depth is None or depth.isfinite().all() for depth in scene.depths or ())


def from_file(folder: Path, name: str, read: Callable[[Path], Any]) -> Parser:
    """Readers that take a path: one file, written again and again."""

    def parse(data: bytes) -> Any:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return parse


def from_scene(folder: Path, name: str) -> Parser:
    """The whole road from a folder in which one file is damaged."""
    whole = (folder / name).read_bytes()

    def parse(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            _finite(load(folder, threads=1))
        finally:
            (folder / name).write_bytes(whole)

    return parse


def frames_of(data: bytes) -> Any:
    path = Path("transforms.json")
    meta = nerfstudio.json_object(data, path)
    frames = nerfstudio.frame_list(meta, path)
    return pose_array([frame.pose for frame in frames], [frame.name for frame in frames]) if frames else None


def targets(folder: Path) -> list[Target]:
    """Every parser with a file that it reads."""
    readers: dict[str, Any] = {
        "cameras": colmap_files.cameras,
        "images": colmap_files.images,
        "points3D": colmap_files.points,
        "rigs": colmap_files.rigs,
        "frames": colmap_files.frames,
    }
    found = []
    for kind, writer in (("bin", seeds.colmap_binary), ("txt", seeds.colmap_text)):
        for name, data in writer(**seeds.small_model()).items():
            read = readers[name.split(".")[0]]
            found.append(
                Target(
                    f"colmap {name}",
                    data,
                    lambda broken, read=read, name=name, kind=kind: read(broken, name, kind == "bin"),  # type: ignore[misc]
                    kind == "txt",
                )
            )
    found.append(Target("transforms.json", seeds.transforms(applied_scale=2.0), frames_of, True))
    rows = seeds.poses_bounds(seeds.ring(3), 12, 8, 10.0)
    found.append(Target("poses_bounds.npy", rows, lambda broken: llff.read_rows(broken, "poses_bounds.npy")))
    plane = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    for compression in ("NONE", "RLE", "ZIP"):
        data = seeds.exr({"R": plane, "G": plane, "B": plane, "A": plane}, compression)
        found.append(Target(f"exr {compression}", data, lambda broken: exr.channels(broken, "x.exr")))
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    photo = from_file(folder, "photo.bin", lambda path: images.read_photo(path, 2))
    mask = from_file(folder, "mask.png", images.read_mask)
    depth = from_file(folder, "depth.npy", images.read_numbers)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        found.append(Target(f"photo {kind}", seeds.picture(noise, kind), photo))
    found.append(Target("mask PNG", seeds.picture(noise[:, :, 0]), mask))
    found.append(Target("depth PNG", seeds.picture(noise[:, :, 0].astype(np.uint16) * 200),
                        from_file(folder, "depth.png", images.read_numbers)))  # fmt: skip
    found.append(Target("depth npy", seeds.array(plane), depth))
    return found + _features(folder) + _others(folder, plane) + _scenes(folder, noise)


def _features(folder: Path) -> list[Target]:
    """Every layout of feature files, read and checked against photos as `load` does."""
    names, rng = ["a", "b/ü.png"], np.random.default_rng(0)
    maps = [rng.standard_normal((2, 3, 4)).astype(np.float16) for _ in names]

    def read(path: Path) -> Any:
        found = read_feature_maps(path, names)
        return feature_maps(found, [(30, 20)] * len(names), names)

    stacked, words = np.stack(maps), np.array(names)
    packed: dict[str, np.ndarray] = {
        "features_int8": np.ones((2, 2, 3, 4), np.int8),
        "scale": np.full(4, 0.1, np.float32),
    }
    plain = safetensors.numpy.save(dict(zip(names, maps, strict=True)))
    ours = FeatureWriter(
        folder / "ours.safetensors",
        {"encoder": "clip", "weights": "tag", "size": 336},
        [Photo(name, "0" * 64, 2, 3) for name in names],
        4,
    )
    for i, one in enumerate(maps):
        ours.write(i, torch.from_numpy(one))
    ours.finish()
    made = (folder / "ours.safetensors").read_bytes()
    npz = from_file(folder, "maps.npz", read)
    found = [
        Target("features npy", seeds.array(stacked), from_file(folder, "maps.npy", read)),
        Target("features npz stacked", _archive({"features": stacked, "file_names": words}), npz),
        Target("features npz packed", _archive(packed | {"file_names": words}), npz),
        Target("features npz named", _archive(dict(zip(names, maps, strict=True))), npz),
    ]
    for kind, data in (("others", plain), ("ours", made)):
        parse = from_file(folder, f"{kind}.safetensors", read)
        begin = 8 + int.from_bytes(data[:8], "little")

        def headed(header: bytes, parse: Parser = parse, rest: bytes = data[begin:]) -> Any:
            return parse(len(header).to_bytes(8, "little") + header + rest)

        found.append(Target(f"features safetensors {kind}", data, parse))
        found.append(Target(f"features safetensors {kind}, header", data[8:begin], headed, True))
    return found


def _others(folder: Path, plane: np.ndarray) -> list[Target]:
    """Files that single commands read: paths, poses, embeddings, adjustments, point clouds."""
    flat = [float(x) for row in seeds.ring(1)[0] for x in row]
    path = {"camera_path": [{"camera_to_world": flat, "fov": 50.0, "aspect": 1.5}] * 2, "fps": 24.0}
    path |= {"camera_type": "perspective", "render_height": 8, "render_width": 12}
    cloud = {name: plane[0] for name in ("x", "y", "z")} | {"red": np.arange(5, dtype=np.uint8)}
    write_ply(folder / "cloud.ply", cloud, np.array([[0, 1, 2]], np.int32), "made here")
    vectors = {"mug": np.ones(4, np.float32), "öl": np.ones(4, np.float32)}
    moved = {"pose_adjustment": np.full((3, 6), 0.01, np.float32)}
    found = [
        Target("camera_path.json", json.dumps(path).encode(),
               from_file(folder, "camera_path.json", read_camera_path), True),
        Target("poses transforms.json", seeds.transforms(),
               from_file(folder, "poses.json", lambda file: read_cameras(file, Similarity())), True),
        Target("ply", (folder / "cloud.ply").read_bytes(), from_file(folder, "cloud.ply", _ply)),
        Target("adjustments json", json.dumps({k: v.tolist() for k, v in moved.items()}).encode(),
               from_file(folder, "moved.json", read_adjustments), True),
    ]  # fmt: skip
    for name, arrays, read in (("embeddings", vectors, _words), ("adjustments", moved, read_adjustments)):
        for ending, data in (("npz", _archive(arrays)), ("safetensors", safetensors.numpy.save(arrays))):
            found.append(Target(f"{name} {ending}", data, from_file(folder, f"{name}.{ending}", read)))
    return found


def _archive(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _words(path: Path) -> Any:
    try:
        return read_embeddings(path)
    except WordsError as error:
        raise SceneError(str(error)) from None


def _ply(path: Path) -> Any:
    try:
        return read_ply(path)
    except ValueError as error:
        raise SceneError(str(error)) from None


def _scenes(folder: Path, noise: np.ndarray) -> list[Target]:
    """Whole folders, one of each format."""
    found: list[Target] = []

    def scene(name: str, files: dict[str, bytes], broken: list[str], photos: list[str], text: bool) -> None:
        root = folder / name
        for path, data in files.items() | {(p, seeds.picture(noise)) for p in photos}:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        found.extend(Target(f"scene {name} {x}", files[x], from_scene(root, x), text) for x in broken)

    photos = [f"images/{i:03d}.png" for i in range(3)]
    mask = {"masks/001.png": seeds.picture(noise[:, :, 0])}
    steps = {"depths/002.png": seeds.picture(noise[:, :, 0].astype(np.uint16) * 200)}
    scene("nerfstudio", {"transforms.json": seeds.transforms()}, ["transforms.json"], photos, True)
    scene("beside", {"transforms.json": seeds.transforms(), **mask, **steps}, [*mask, *steps], photos, False)
    meta = json.loads(seeds.transforms(folder="train", camera_angle_x=0.7, fl_x=None, fl_y=None))
    blender = {"transforms_train.json": json.dumps(meta).encode()}
    scene("blender", blender, list(blender), [f"train/{i:03d}.png" for i in range(3)], True)
    names = [f"images/{image.name}" for image in seeds.small_model()["images"].values()]
    for kind, writer in (("bin", seeds.colmap_binary), ("txt", seeds.colmap_text)):
        files = {f"sparse/0/{name}": data for name, data in writer(**seeds.small_model()).items()}
        scene(f"colmap {kind}", files, list(files), names, kind == "txt")
    rows = {"poses_bounds.npy": seeds.poses_bounds(seeds.ring(3), 12, 8, 10.0)}
    scene("llff", rows, list(rows), photos, False)
    return found


@dataclass
class Count:
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    slowest: float = 0.0


def one(target: Target, data: bytes, count: Count) -> str | None:
    """Parse once; what went wrong, or None."""
    began = time.process_time()  # of all threads; other programs may be busy
    fault = None
    try:
        target.parse(data)
        count.accepted += 1
    except SceneError as error:
        count.refused += 1
        if len(str(error).splitlines()) != 1:
            fault = f"a message of {len(str(error).splitlines())} lines: {str(error)!r:.300}"
    except Exception:
        fault = traceback.format_exc(limit=-4)
    took = time.process_time() - began
    count.cases += 1
    count.slowest = max(count.slowest, took)
    if fault is None and took > SLOW:
        fault = f"took {took:.1f} seconds"
    count.crashes += fault is not None
    return fault


def run(cases: int, seed: int, only: str = "", show: int = 5) -> dict[str, Count]:
    """Spread the cases over the targets; those in memory get three times as many as whole scenes."""
    found: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they then refuse
        chosen = [target for target in targets(Path(folder)) if only in target.name]
        if not chosen:
            raise SystemExit(f"bench.fuzz: no parser's name contains {only!r}")
        for target in chosen:
            fault = one(target, target.data, Count())
            if fault:
                raise SystemExit(f"bench.fuzz: {target.name} refuses its own valid file: {fault}")
        order = [t for t in chosen for _ in range(1 if t.name.startswith("scene") else 3)]
        for case in range(cases):
            dice = random.Random(f"{seed} {case}")
            target = order[case % len(order)]
            broken = damage(target.data, dice, target.text)
            count = found.setdefault(target.name, Count())
            fault = one(target, broken, count)
            if fault and count.crashes <= show:
                print(f"case {case} of seed {seed}, {target.name}: {fault}", flush=True)
    return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parsers whose name contains this")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    began = time.perf_counter()
    found = run(options.cases, options.seed, options.only)
    seconds = time.perf_counter() - began
    for name, count in found.items():
        print(f"{name:40} {count.cases:7} cases {count.refused:7} refused {count.crashes:4} crashes "
              f"{count.slowest:7.3f} s slowest")  # fmt: skip
    total = sum(count.cases for count in found.values())
    result = {
        "parsers": len(found),
        "cases": total,
        "refused": sum(count.refused for count in found.values()),
        "accepted": sum(count.accepted for count in found.values()),
        "crashes": sum(count.crashes for count in found.values()),
        "slowest_seconds": round(max(count.slowest for count in found.values()), 3),
        "seconds": round(seconds, 1),
    }
    print(result)
    if not options.no_record:
        command = f"python -m bench.fuzz --cases {options.cases} --seed {options.seed}"
        command += f" --only {options.only!r}" if options.only else ""
        record.merge("checks", {f"fuzz {options.only}".strip(): result}, command)
    return 1 if result["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
