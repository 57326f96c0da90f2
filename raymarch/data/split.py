"""Which photos are trained on and which are held out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from raymarch.data.error import SceneError

Split = tuple[tuple[int, ...], tuple[int, ...]]  # indices into the scene's images: train, test
RULES = "'every8' (any number), a fraction such as 0.9, 'file', 'filename', 'none' or a pair of index lists"
FRACTION = 0.9  # of the photos are trained on, by the word 'fraction'; nerfstudio's default


def split_images(rule, names: Sequence[str], hints: Sequence[str | None]) -> Split:
    """Split N images in the order given.

    None follows the file where it names a split and is `every8` otherwise. `everyK` holds out images 0, K,
    2K, ...; a fraction f trains on ceil(f N) images spread evenly (spec 12.5); `none` (or `all`) holds out
    nothing. `hints` is what the file says of each image: train, val, test or None. A single image is always
    trained on.
    """
    count = len(names)
    if rule is None:
        rule = "file" if "train" in hints and {"test", "val"} & set(hints) else "every8"
    if isinstance(rule, str):
        return _by_word(rule, names, hints)
    if isinstance(rule, float):
        return _by_fraction(rule, count)
    return _by_indices(rule, count)


def _by_word(rule: str, names: Sequence[str], hints: Sequence[str | None]) -> Split:
    count = len(names)
    if rule in ("all", "none"):
        return tuple(range(count)), ()
    if every := re.fullmatch(r"every([1-9]\d{0,8})", rule):
        step = int(every[1])
        if count == 1:
            return (0,), ()
        if step == 1:
            raise SceneError("split 'every1' holds out every image and leaves none to train on")
        return tuple(i for i in range(count) if i % step), tuple(range(0, count, step))
    if rule == "fraction" or re.fullmatch(r"[01]?\.\d{1,9}|1", rule):
        return _by_fraction(FRACTION if rule == "fraction" else float(rule), count)
    if rule == "file":
        return _by_hints(hints)
    if rule == "filename":
        return _by_hints([_hint_in(name) for name in names])
    raise SceneError(f"split must be {RULES}, not {rule!r}")


def _hint_in(name: str) -> str | None:
    last = name.rsplit("/", 1)[-1].lower()
    return "train" if "train" in last else "test" if re.search("eval|test|val", last) else None


def _by_hints(hints: Sequence[str | None]) -> Split:
    held = "test" if "test" in hints else "val"
    train = tuple(i for i, hint in enumerate(hints) if hint == "train")
    if not train:
        raise SceneError("the split asked for is not in the scene: no image is marked as a training image")
    return train, tuple(i for i, hint in enumerate(hints) if hint == held)


def _by_fraction(fraction: float, count: int) -> Split:
    if not 0 < fraction <= 1:
        raise SceneError(f"a split fraction lies between 0 and 1, not {fraction!r}")
    train = np.linspace(0, count - 1, math.ceil(count * fraction), dtype=int).tolist()
    return tuple(train), tuple(sorted(set(range(count)) - set(train)))


def _by_indices(rule, count: int) -> Split:
    try:
        train, test = (tuple(int(i) for i in part) for part in rule)
    except (TypeError, ValueError):
        raise SceneError(f"split must be {RULES}, not {rule!r}") from None
    for name, part in (("train", train), ("test", test)):
        if len(set(part)) != len(part) or any(not 0 <= i < count for i in part):
            raise SceneError(f"the {name} indices of a split must be different numbers in 0..{count - 1}")
    if not train:
        raise SceneError("the split leaves no image to train on")
    return train, test
