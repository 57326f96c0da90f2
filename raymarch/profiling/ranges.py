"""The pipeline's stages as ranges of time, put around code that knows nothing of it.

`STAGES` names each stage by the word that its file in `raymarch/model` has, with the functions that begin and
end it. While somebody listens (`listening`), those functions are replaced by ones that tell it; before and
after, the code runs as it is written, so what is off costs nothing. A test holds the table to the code.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from raymarch.ops import _op

PHASES = ("pre-processing", "model", "post-processing", "backward", "optimiser")


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the part of the pipeline it belongs to, whose it is, and where it happens."""

    name: str
    phase: str
    head: str  # shared, or the head that it is for
    places: tuple[str, ...]  # module:function or module:Class.method


TO_SAMPLES = "raymarch.model.rays_to_samples:RaysToSamples."
TO_FIELD = "raymarch.model.samples_to_field:SamplesToField."
TO_PIXELS = "raymarch.model.field_to_pixels:FieldToPixels."
STAGES = (
    Stage(
        "pixels",
        "pre-processing",
        "shared",
        ("raymarch.data.pixels:PixelSource.draw", "raymarch.data.window:PixelWindow.draw"),
    ),
    Stage("poses", "pre-processing", "shared", ("raymarch.model.poses:Poses.forward",)),
    Stage(
        "rays",
        "pre-processing",
        "shared",
        ("raymarch.model:generate", "raymarch.model.exact:generate", "raymarch.model.frames:generate"),
    ),
    Stage("sampler", "pre-processing", "shared", ("raymarch.model.sampler:Sampler.forward",)),
    Stage("fields.proposals", "pre-processing", "shared", ("raymarch.model.fields:ProposalField.forward",)),
    Stage("rays_to_samples", "pre-processing", "shared", (TO_SAMPLES + "__call__",)),
    Stage("fields.radiance", "model", "shared", ("raymarch.model.fields:RadianceField.forward",)),
    Stage("fields.feature", "model", "feature", ("raymarch.model.fields:FeatureField.forward",)),
    Stage("samples_to_field", "model", "shared", (TO_FIELD + "__call__",)),
    Stage(
        "samples_to_pixels",
        "model",
        "shared",
        ("raymarch.model.exact:pictures", "raymarch.model.reduced:pictures"),
    ),
    Stage("renderer", "post-processing", "shared", ("raymarch.model.renderer:Renderer.forward",)),
    Stage("field_to_pixels", "post-processing", "shared", (TO_PIXELS + "__call__",)),
    Stage(
        "losses",
        "post-processing",
        "shared",
        ("raymarch.model:Model.losses", "raymarch.train.trainer:sum_losses"),
    ),
    Stage("backward", "backward", "shared", ("torch:Tensor.backward",)),
    Stage("proposals_backward", "backward", "shared", (TO_SAMPLES + "proposals_backward",)),
    Stage("field_to_pixels_backward", "backward", "shared", (TO_PIXELS + "backward",)),
    Stage("samples_to_field_backward", "backward", "shared", (TO_FIELD + "backward",)),
    Stage("rays_to_samples_backward", "backward", "shared", (TO_SAMPLES + "backward",)),
    Stage(
        "optim",
        "optimiser",
        "shared",
        (
            "raymarch.train.optim:Adam.apply",
            "raymarch.train.optim:Adam.step",
            "raymarch.train.trainer:advance",
        ),
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}


class Listener(Protocol):
    """What is told where stages begin and end; calls nest."""

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str) -> None: ...


def place(path: str) -> tuple[Any, str]:
    """`module:Class.method` -> what holds the function, and its name there. LookupError where it is not."""
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    holder = importlib.import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    if not callable(vars(holder).get(name)):
        raise LookupError(f"{path} is no function; raymarch/profiling/ranges.py names places of stages")
    return holder, name


def _told(function: Callable, stage: str, listener: Listener) -> Callable:
    @functools.wraps(function)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        listener.begin(stage)
        try:
            return function(*args, **kwargs)
        finally:
            listener.end(stage)

    return ranged


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While open, `listener` is told of every stage that begins and ends."""
    replaced: list[tuple[Any, str, Callable]] = []
    try:
        for stage in STAGES:
            for path in stage.places:
                holder, name = place(path)
                function = vars(holder)[name]
                replaced.append((holder, name, function))
                setattr(holder, name, _told(function, stage.name, listener))
        yield
    finally:
        for holder, name, function in reversed(replaced):
            setattr(holder, name, function)


@contextmanager
def nvtx_ranges() -> Iterator[None]:
    """While open, stages and native kernels are NVTX ranges of the domain `raymarch`.

    Needs the package nvtx; ImportError says so where it is missing.
    """
    try:
        import nvtx
    except ImportError:
        raise ImportError("NVTX ranges need the package nvtx: pip install nvtx") from None

    class Marks:
        def begin(self, stage: str) -> None:
            nvtx.push_range(stage, domain="raymarch")

        def end(self, stage: str) -> None:
            nvtx.pop_range(domain="raymarch")

    def ranged(core: Any, kernel: str, args: tuple) -> None:
        nvtx.push_range(kernel, domain="raymarch")
        try:
            _op.call(core, kernel, args)
        finally:
            nvtx.pop_range(domain="raymarch")

    with listening(Marks()), _op.launches_through(ranged):
        yield
