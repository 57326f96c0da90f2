"""raymarch: fused CUDA ray marching for neural radiance and feature fields.

`raymarch.load(run)` opens a trained scene; `raymarch.ops` holds the differentiable ops; `raymarch.model` is
the pipeline. Names are imported when first used, so that `import raymarch` stays quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymarch.config import override, preset
    from raymarch.data.scene import Scene
    from raymarch.train.runs import start
    from raymarch.trained import TrainedScene, load, perspective

__version__ = "0.1.0"

_HOMES = {
    "Scene": "raymarch.data.scene",
    "TrainedScene": "raymarch.trained",
    "load": "raymarch.trained",
    "override": "raymarch.config",
    "perspective": "raymarch.trained",
    "preset": "raymarch.config",
    "start": "raymarch.train.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymarch' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


__all__ = ["Scene", "TrainedScene", "load", "override", "perspective", "preset", "start"]
