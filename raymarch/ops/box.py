"""Rays against a box, axis-aligned or turned."""

from typing import Any

import torch
from torch import Tensor

from raymarch.ops._op import launch, op

MISS = 1e10  # near and far of a ray that misses


@op
def near_far_forward(
    origins: Tensor, directions: Tensor, box: Tensor, placement: Tensor | None
) -> tuple[Tensor, Tensor]:
    near, far = origins.new_empty(origins.shape[0]), origins.new_empty(origins.shape[0])
    launch("near_far", origins, directions, box, placement, near, far)
    return near, far


def near_far(
    origins: Tensor,
    directions: Tensor,
    box: Tensor,
    rotation: Tensor | None = None,
    translation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box: near and far, of the shape of origins [..., 3] without its last.

    box [2, 3] holds the two corners, low then high. With rotation [3, 3] (orthonormal) and translation [3]
    the box lies in a frame of its own: a point p of that frame is rotation p + translation in the world.
    Either may be given alone. Distances are in units of |direction|, clamped to 0 .. 1e10; a ray that misses,
    only touches, or has left the box gets 1e10 twice. Never NaN: a ray that runs along a face is inside.
    The slab method. No gradient. Raises ValueError where shapes disagree.
    """
    if origins.shape != directions.shape or origins.shape[-1:] != (3,):
        raise ValueError(
            f"near_far: origins and directions are {tuple(origins.shape)} and {tuple(directions.shape)}, "
            "expected the same [..., 3]"
        )
    placement = None
    if rotation is not None or translation is not None:
        like: dict[str, Any] = {"dtype": origins.dtype, "device": origins.device}
        turn = rotation.to(origins) if rotation is not None else torch.eye(3, **like)
        move = origins.new_zeros(3) if translation is None else translation.to(origins)
        if turn.shape != (3, 3) or move.shape != (3,):
            raise ValueError(
                f"near_far: rotation and translation are {tuple(turn.shape)} and {tuple(move.shape)}, "
                "expected (3, 3) and (3,)"
            )
        placement = torch.cat([turn, move[:, None]], dim=1).detach()
    flat = (x.detach().reshape(-1, 3).contiguous() for x in (origins, directions))
    near, far = near_far_forward(*flat, box.detach().to(origins).contiguous(), placement)
    return near.view(origins.shape[:-1]), far.view(origins.shape[:-1])
