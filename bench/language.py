"""Text queries and held-out features: real CLIP text vectors painted onto scenes, distilled, and asked for.

    python -m bench.language SCENES [--device cpu] [--dry]

SCENES is a folder with `clip_text` (CLIP ViT-B/32 vectors of object names) and `head`. Every cell of a
feature map is the vector of what the photo shows there plus noise of its own, 0.3 of the vector's length;
training sees these maps and nothing else of the words. All figures are over held-out cameras.

- `synthetic`: the synthetic scene. `iou` is of the pixels where a word wins the paired softmax against all
  other names (threshold 0.5) with those that show the thing, per name; `cosine` is the mean cosine of
  rendered features with the true vector of each pixel, `allowed` that of the maps without their noise, read
  at the nearest cell, and `share` their ratio; `_centred` the same with the mean of the text vectors taken
  out, most of whose direction all share.
- `head`: 66 photos of a statue; its masks say where it is. `iou` of "sculpture" against six other words, and
  cosines on the statue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.record import merge
from raymarch.apps.demo import paced
from raymarch.config import override, preset
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import SyntheticScene, feature_maps, make_scene
from raymarch.features.query import mask, similarity
from raymarch.train.evaluate import render_image
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer

NOISE = 0.3  # of a vector's length, added to every cell: networks do not answer with the text's own vector
HEADS = frozenset({"rgb", "opacity", "feature"})
OTHERS = ("mug", "book", "chair", "banana", "dog", "curtain")  # that the statue is weighed against
PAINT = {  # what the synthetic scene's things are called in LVIS
    "sky": "curtain",
    "ground": "tablecloth",
    "red ball": "ball",
    "mug": "mug",
    "crate": "crate",
    "cone": "cone",
    "barrel": "barrel",
    "ring": "ring",
    "lemon": "lemon",
    "book": "book",
}
THINGS = ("red ball", "mug", "crate", "cone", "barrel", "ring", "lemon", "book")
Frames = list[dict[str, Tensor]]


def table(texts: Path, name: str) -> dict[str, Tensor]:
    """Unit text vectors by name."""
    vectors = np.load(texts / f"{name}_clip_a+cname.npy").astype(np.float32)
    names = json.loads((texts / f"{name}_names.json").read_text())
    return dict(zip(names, F.normalize(torch.from_numpy(vectors), dim=-1), strict=True))


def noisy(maps: Tensor, seed: int) -> Tensor:
    """Cells with noise of their own, in a network's scale (CLIP's vectors are about ten long)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(maps.shape, generator=generator) * NOISE / maps.shape[-1] ** 0.5
    return 10 * torch.where(maps.norm(dim=-1, keepdim=True) > 0, maps + noise, maps)


def trained(scene: Scene, steps: int, device: str = "cpu", **knobs: Any) -> Trainer:
    """The tiny preset with a feature field, poses as given."""
    config = preset("tiny")
    for name, value in {
        "train.trainer.steps": steps,
        "train.trainer.rays": 768,
        "model.fields.feature.width": 1,
        "model.losses.distortion": 0.0,
        "model.poses.mode": "off",
        **knobs,
    }.items():
        config = override(config, f"{name}={value}")
    config = replace(config, train=replace(config.train, optim=paced(config.train.optim, steps)))
    trainer = start(scene, config, device=device)
    trainer.train()
    return trainer


def held_out(trainer: Trainer, scene: Scene) -> Frames:
    """What the held-out cameras see, on the CPU."""
    cameras = subset(scene.cameras, scene.test, trainer.device)
    frames = (render_image(trainer.model, cameras, i, HEADS) for i in range(len(scene.test)))
    return [{name: image.cpu() for name, image in frame.items()} for frame in frames]


def looked_up(cells: Tensor, height: int, width: int) -> Tensor:
    """The map at every pixel."""
    rows = torch.arange(height) * cells.shape[0] // height
    columns = torch.arange(width) * cells.shape[1] // width
    return cells[rows][:, columns].float()


def iou(found: Tensor, real: Tensor) -> float:
    return float((found & real).sum() / (found | real).sum().clamp_min(1))


def synthetic(texts: Path, device: str = "cpu") -> tuple[SyntheticScene, Frames]:
    """The synthetic scene painted with LVIS words and distilled: the truth, and what held-out cameras see."""
    words = table(texts, "lvis_v1")
    truth = make_scene(views=30, test_views=4, size=96, seed=0)
    truth = replace(truth, feature_vectors=torch.stack([words[PAINT[name]] for name in truth.names]))
    maps = noisy(feature_maps(truth, 2).float(), 1)
    scene = Scene.from_arrays(
        truth.images,
        truth.intrinsics,
        truth.camera_to_worlds,
        features=FeatureMaps(tuple(maps), "clip"),
        split=(truth.train, truth.test),
        orientation="none",
        center="none",
        scale=1.0,
    )
    return truth, held_out(trained(scene, 600, device), scene)


def word_iou(texts: Path, truth: SyntheticScene, frames: Frames, name: str) -> float:
    """Of one thing, in views that nobody trained on; the book is worded by another data set."""
    at = truth.names.index(name)
    others = torch.cat([truth.feature_vectors[:at], truth.feature_vectors[at + 1 :]])
    word = table(texts, "coco")["book"] if name == "book" else truth.feature_vectors[at]
    found = torch.stack([mask(similarity(f["feature"], word, others)) for f in frames])
    return iou(found, truth.ids[list(truth.test)] == at)


def cosines(truth: SyntheticScene, frames: Frames, centred: bool) -> tuple[float, float]:
    """Mean cosines with the true vectors: of rendered features, and of the maps without their noise."""
    clean_maps = feature_maps(truth, 2)
    shift = truth.feature_vectors.mean(0) if centred else torch.zeros(1)
    rendered, allowed = [], []
    for i, frame in zip(truth.test, frames, strict=True):
        clean = truth.feature_vectors[truth.ids[i].long()]
        cells = looked_up(clean_maps[i], *truth.ids[i].shape)
        rendered.append(F.cosine_similarity(frame["feature"] / 10 - shift, clean - shift, dim=-1).mean())
        allowed.append(F.cosine_similarity(cells - shift, clean - shift, dim=-1).mean())
    return float(torch.stack(rendered).mean()), float(torch.stack(allowed).mean())


def statue(texts: Path, head: Path, device: str = "cpu") -> dict[str, float]:
    """The head, found by its word: IoU with its masks, and cosines on them."""
    words = table(texts, "lvis_v1")
    photos = load(head, downscale=4, center="focus")
    assert photos.masks is not None
    word = words["sculpture"]
    images, maps = [], []
    for i, (image, kept) in enumerate(zip(photos.images, photos.masks, strict=True)):
        assert kept is not None
        images.append(torch.cat([image[..., :3], 255 * kept[..., None].to(torch.uint8)], -1))
        maps.append(noisy(kept[..., None].float() * word, i).half())
    scene = replace(
        photos,
        images=tuple(images),
        masks=None,  # outside them is nothing, which is more than not knowing
        background="white",
        features=FeatureMaps(tuple(maps), "clip"),
    )
    # Cameras stand at 1.02 to 1.08 and the data set's near and far are 0.86 and 1.08: the head lies in here.
    # Without a box nothing keeps a white wall from standing behind the head.
    trainer = trained(scene, 300, device, **{"model.rays.box": "(-0.5, -0.5, -0.5, 0.5, 0.5, 0.5)"})
    others = torch.stack([words[w] for w in OTHERS])
    found, real, rendered, allowed = [], [], [], []
    for i, frame in zip(scene.test, held_out(trainer, scene), strict=True):
        kept = photos.masks[i]
        assert kept is not None
        # A cosine knows no length, so what is barely there looks like what it is mixed with.
        found.append(mask(similarity(frame["feature"], word, others) * frame["opacity"]))
        real.append(kept)
        rendered.append(F.cosine_similarity(frame["feature"][kept], word, dim=-1).mean())
        allowed.append(F.cosine_similarity(maps[i][kept].float(), word, dim=-1).mean())
    return {
        "iou": iou(torch.stack(found), torch.stack(real)),
        **shares(float(torch.stack(rendered).mean()), float(torch.stack(allowed).mean())),
    }


def shares(cosine: float, allowed: float) -> dict[str, float]:
    return {"cosine": cosine, "allowed": allowed, "share": cosine / allowed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry", action="store_true", help="print, but leave the record alone")
    args = parser.parse_args()
    texts = args.scenes / "clip_text"

    def tell(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        values = measure()
        print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}, flush=True)
        if not args.dry:
            merge("quality", {name: values}, f"python -m bench.language SCENES --device {args.device}")

    def painted() -> dict[str, Any]:
        truth, frames = synthetic(texts, args.device)
        each = {f"iou {name}": word_iou(texts, truth, frames, name) for name in THINGS}
        plain, centred = (shares(*cosines(truth, frames, how)) for how in (False, True))
        return {
            "iou_least": min(each.values()),
            **plain,
            **{f"{name}_centred": value for name, value in centred.items()},
            **each,
        }

    tell("language synthetic", painted)
    tell("language head", lambda: statue(texts, args.scenes / "head", args.device))


if __name__ == "__main__":
    main()
