"""Words find things: real CLIP text vectors painted onto scenes, distilled, and asked from held-out cameras.

Needs ../shared/scenes (not part of the repository); skipped where it is absent.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raymarch.apps.demo import paced
from raymarch.config import override, preset
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import feature_maps, make_scene
from raymarch.features.query import mask, similarity
from raymarch.train.evaluate import render_image
from raymarch.train.runs import start, subset

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenes"
TEXTS = SHARED / "clip_text"
NOISE = 0.3  # of a vector's length, added to every cell: networks do not answer with the text's own vector
HEADS = frozenset({"rgb", "opacity", "feature"})

pytestmark = pytest.mark.skipif(not TEXTS.is_dir(), reason=f"needs {TEXTS}")


def table(name):
    """Unit text vectors by name."""
    vectors = np.load(TEXTS / f"{name}_clip_a+cname.npy").astype(np.float32)
    names = json.loads((TEXTS / f"{name}_names.json").read_text())
    return dict(zip(names, F.normalize(torch.from_numpy(vectors), dim=-1), strict=True))


def noisy(maps, seed):
    """Cells with noise of their own, in a network's scale (CLIP's vectors are about ten long)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(maps.shape, generator=generator) * NOISE / maps.shape[-1] ** 0.5
    return 10 * torch.where(maps.norm(dim=-1, keepdim=True) > 0, maps + noise, maps)


def trained(scene, steps, **knobs):
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
    trainer = start(scene, config, device="cpu")
    trainer.train()
    return trainer


def held_out(trainer, scene):
    cameras = subset(scene.cameras, scene.test, trainer.device)
    return [render_image(trainer.model, cameras, i, HEADS) for i in range(len(scene.test))]


def looked_up(cells, height, width):
    """The map at every pixel."""
    rows = torch.arange(height) * cells.shape[0] // height
    columns = torch.arange(width) * cells.shape[1] // width
    return cells[rows][:, columns].float()


def iou(found, real):
    return float((found & real).sum() / (found | real).sum().clamp_min(1))


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


@pytest.fixture(scope="module")
def synthetic():
    """The synthetic scene painted with LVIS words and distilled: the truth, and what held-out cameras see."""
    words = table("lvis_v1")
    truth = make_scene(views=30, test_views=4, size=96, seed=0)
    vectors = torch.stack([words[PAINT[name]] for name in truth.names])
    truth = replace(truth, feature_vectors=vectors)
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
    return truth, held_out(trained(scene, 600), scene)


@pytest.mark.parametrize("name", ["red ball", "mug", "crate", "cone", "barrel", "ring", "lemon", "book"])
def test_a_word_finds_its_thing_in_views_nobody_trained_on(synthetic, name):
    truth, frames = synthetic
    at = truth.names.index(name)
    others = torch.cat([truth.feature_vectors[:at], truth.feature_vectors[at + 1 :]])
    word = (
        table("coco")["book"] if name == "book" else truth.feature_vectors[at]
    )  # worded by another data set
    found = torch.stack([mask(similarity(f["feature"], word, others)) for f in frames])
    real = truth.ids[list(truth.test)] == at
    assert iou(found, real) >= 0.8


def test_held_out_features_are_as_good_as_the_maps_allow(synthetic):
    truth, frames = synthetic
    clean_maps = feature_maps(truth, 2)  # without the noise that training saw
    middle = truth.feature_vectors.mean(0)  # text vectors share most of their direction: look past it too
    for shift in (0, middle):
        rendered, allowed = [], []
        for i, frame in zip(truth.test, frames, strict=True):
            clean = truth.feature_vectors[truth.ids[i].long()]
            cells = looked_up(clean_maps[i], *truth.ids[i].shape)
            rendered.append(F.cosine_similarity(frame["feature"] / 10 - shift, clean - shift, dim=-1).mean())
            allowed.append(F.cosine_similarity(cells - shift, clean - shift, dim=-1).mean())
        assert float(sum(rendered)) >= 0.95 * float(sum(allowed))


def test_a_statue_among_photos_is_found_by_its_word():
    words = table("lvis_v1")
    photos = load(SHARED / "head", downscale=4, center="focus")
    assert photos.masks is not None
    statue = words["sculpture"]
    images, maps = [], []
    for i, (image, kept) in enumerate(zip(photos.images, photos.masks, strict=True)):
        images.append(torch.cat([image[..., :3], 255 * kept[..., None].to(torch.uint8)], -1))
        maps.append(noisy(kept[..., None].float() * statue, i))
    scene = replace(
        photos,
        images=tuple(images),
        masks=None,  # outside them is nothing, which is more than not knowing
        background="white",
        features=FeatureMaps(tuple(x.half() for x in maps), "clip"),
    )
    # Cameras stand at 1.02 to 1.08 and the data set's near and far are 0.86 and 1.08: the head lies in here.
    # Without a box nothing keeps a white wall from standing behind the head.
    trainer = trained(scene, 300, **{"model.rays.box": "(-0.5, -0.5, -0.5, 0.5, 0.5, 0.5)"})
    others = torch.stack([words[w] for w in ("mug", "book", "chair", "banana", "dog", "curtain")])
    found, real, rendered, allowed = [], [], [], []
    for i, frame in zip(scene.test, held_out(trainer, scene), strict=True):
        kept = photos.masks[i]
        # A cosine knows no length, so what is barely there looks like what it is mixed with.
        hit = similarity(frame["feature"], statue, others) * frame["opacity"]
        found.append(mask(hit))
        real.append(kept)
        rendered.append(F.cosine_similarity(frame["feature"][kept], statue, dim=-1).mean())
        allowed.append(F.cosine_similarity(scene.features.maps[i][kept].float(), statue, dim=-1).mean())
    assert iou(torch.stack(found), torch.stack(real)) >= 0.8
    assert float(sum(rendered)) >= 0.95 * float(sum(allowed))
