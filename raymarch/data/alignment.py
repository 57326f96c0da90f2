"""Comparing camera poses that agree up to a similarity, and disturbing them by a known amount.

Poses found from images are known up to one rotation, translation and scale of the whole scene, so raw
differences mean nothing: align first, then compare.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CUES = ("centres", "centres+rotations")
FAR = 5.0  # times the median camera's error, from where on a camera stands out
LEAST_FAR = 0.05  # degrees and per cent of the scene's size: what the median counts as at least
ROUNDS = 4  # of fitting and leaving out


class Alignment(NamedTuple):
    """reference ~ scale * rotation * estimated + translation; errors are what remains."""

    scale: float
    rotation: Tensor  # [3, 3]
    translation: Tensor  # [3]
    aligned: Tensor  # [C, 3, 4] the estimated poses in the reference's frame
    rotation_error_deg: Tensor  # [C]
    translation_error: Tensor  # [C] in the reference's units

    def take_along(self, poses: Tensor) -> Tensor:
        """Other poses [..., 3, 4] of the estimated frame in the reference's; dtype and device are kept."""
        rotation, translation = self.rotation.to(poses), self.translation.to(poses)
        centres = self.scale * (poses[..., 3] @ rotation.T) + translation
        return torch.cat([rotation @ poses[..., :3], centres[..., None]], -1)


def rotation_angle(R: Tensor) -> Tensor:
    """The angle of rotations [..., 3, 3], in radians; exact for small ones too."""
    axis = torch.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], -1
    )
    return torch.atan2(axis.norm(dim=-1), R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


def nearest_rotation(M: Tensor) -> Tensor:
    """The rotation [3, 3] that maximises trace(R^T M); Kabsch's solution, reflections excluded."""
    U, _, Vh = torch.linalg.svd(M)
    flip = torch.ones(3, dtype=M.dtype)
    flip[2] = torch.sign(torch.linalg.det(U @ Vh))
    return (U * flip) @ Vh


def align(estimated: Tensor, reference: Tensor, cues: str = "centres+rotations") -> Alignment:
    """Fit a similarity from estimated to reference camera-to-world poses [C, 3, 4], by least squares.

    Umeyama's solution (1991) over the camera centres. With "centres+rotations" the three axes of each camera
    count as points as well, at one spread of the centres from it, which keeps the rotation determined for
    one camera, or for centres on a line. Scale comes from the centres alone; it is 1 where they coincide.
    Computed in float64 on the CPU.
    """
    if cues not in CUES:
        raise ValueError(f"align: cues is {cues!r}, expected one of {', '.join(CUES)}")
    if estimated.shape != reference.shape or estimated.shape[-2:] != (3, 4) or estimated.ndim != 3:
        raise ValueError(
            f"align: poses are {tuple(estimated.shape)} and {tuple(reference.shape)}, "
            "expected the same [C, 3, 4]"
        )
    if len(estimated) == 0:
        raise ValueError("align: there are no poses, expected at least one")
    a, b = estimated.detach().cpu().double(), reference.detach().cpu().double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("align: poses have numbers that are not finite")
    (Ra, ta), (Rb, tb) = (a[..., :3], a[..., 3]), (b[..., :3], b[..., 3])
    from_a, from_b = ta - ta.mean(0), tb - tb.mean(0)
    spread_a, spread_b = (x.square().sum(-1).mean().sqrt() for x in (from_a, from_b))
    # Spreads below this part of the scene's size are rounding, and say nothing about scale or direction.
    spreads = all(s > 1e-9 * (1 + t.abs().max()) for s, t in ((spread_a, ta), (spread_b, tb)))

    M = torch.zeros(3, 3, dtype=torch.float64)
    if spreads:
        M += torch.einsum("ci,cj->ij", from_b / spread_b, from_a / spread_a)
    if cues == "centres+rotations":
        M += torch.einsum("cik,cjk->ij", Rb, Ra)
    rotation = nearest_rotation(M)
    scale = 1.0
    if spreads:
        turned = from_a @ rotation.T
        scale = max(float((turned * from_b).sum() / turned.square().sum()), 0.0)
    translation = tb.mean(0) - scale * (rotation @ ta.mean(0))

    R, t = rotation @ Ra, scale * (ta @ rotation.T) + translation
    aligned = torch.cat([R, t[..., None]], -1)
    degrees = rotation_angle(R.transpose(-1, -2) @ Rb) * (180 / math.pi)
    return Alignment(scale, rotation, translation, aligned, degrees, (t - tb).norm(dim=-1))


def standing_out(turned: Tensor, moved: Tensor, size: float) -> Tensor:
    """Cameras [C] bool that are off by far more than the median, in degrees or in per cent of `size`."""
    parts = 100 * moved / size if size > 0 else moved
    far = torch.zeros(len(turned), dtype=torch.bool)
    for values in (turned, parts):
        far |= values > FAR * values.median().clamp_min(LEAST_FAR)
    return far


def align_most(estimated: Tensor, reference: Tensor, cues: str = "centres+rotations") -> Alignment:
    """`align`, in which cameras that stand out have no say: one wild camera bends a least-squares fit.

    Where none stands out, or fewer than three would be left, it is `align` itself.
    """
    found = align(estimated, reference, cues)
    a, b = estimated.detach().cpu().double(), reference.detach().cpu().double()
    size = float((b[..., 3] - b[..., 3].mean(0)).norm(dim=-1).max())
    agree = torch.ones(len(b), dtype=torch.bool)
    for _ in range(ROUNDS):
        rest = ~standing_out(found.rotation_error_deg, found.translation_error, size)
        if int(rest.sum()) < 3 or torch.equal(rest, agree):
            break
        agree = rest
        fit = align(a[agree], b[agree], cues)
        moved = fit.take_along(a)
        degrees = rotation_angle(moved[..., :3].transpose(-1, -2) @ b[..., :3]) * (180 / math.pi)
        away = (moved[..., 3] - b[..., 3]).norm(dim=-1)
        found = fit._replace(aligned=moved, rotation_error_deg=degrees, translation_error=away)
    return found


def perturb(camera_to_worlds: Tensor, rotation_deg: float, translation: float, seed: int = 0) -> Tensor:
    """Poses [C, 3, 4], each turned by exactly `rotation_deg` about a random axis through its centre and moved
    by exactly `translation` (scene units) in a random direction. The same seed gives the same noise.
    """
    if camera_to_worlds.ndim != 3 or camera_to_worlds.shape[-2:] != (3, 4):
        raise ValueError(f"perturb: poses are {tuple(camera_to_worlds.shape)}, expected [C, 3, 4]")
    poses = camera_to_worlds.detach().cpu().double()
    draws = torch.randn(len(poses), 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axis, direction = torch.nn.functional.normalize(draws, dim=-1).unbind(1)
    angle = math.radians(rotation_deg)
    K = torch.linalg.cross(axis[:, None], -torch.eye(3, dtype=torch.float64).expand(len(poses), 3, 3))
    turn = torch.eye(3, dtype=torch.float64) + math.sin(angle) * K + (1 - math.cos(angle)) * (K @ K)
    centres = poses[..., 3] + translation * direction
    return torch.cat([turn @ poses[..., :3], centres[..., None]], -1).to(camera_to_worlds)
