"""From pixels to rays: lens models, distortion, the pose, and the gradients of pose and lens."""

import torch
from torch import Tensor

from raymarch.ops._op import differentiable, launch, op
from raymarch.types import LENSES

COMPOSES = {"camera": 0, "world": 1}
TANGENTIALS = ("opencv", "nerfstudio_0.3")
EYE_DISTANCE = 0.064  # between the eyes of a stereo panorama, in scene units


@op
def rays_forward(
    camera_to_worlds: Tensor,
    camera: Tensor,
    xy: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None,
    compose: int,
    eye_distance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays = xy.shape[0]
    origins, directions = xy.new_empty(rays, 3), xy.new_empty(rays, 3)
    area, norm = xy.new_empty(rays), xy.new_empty(rays)
    converged = torch.empty(rays, dtype=torch.bool, device=xy.device)
    cameras = (camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose, eye_distance)
    launch("rays_forward", *cameras, origins, directions, area, norm, converged)
    return origins, directions, area, norm, converged


@op
def rays_backward(
    camera_to_worlds: Tensor,
    camera: Tensor,
    xy: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None,
    compose: int,
    eye_distance: float,
    grad_origins: Tensor | None,
    grad_directions: Tensor | None,
    to_poses: bool,
    to_adjustment: bool,
    same_every_time: bool,
) -> tuple[Tensor, Tensor]:
    grad_poses = camera_to_worlds.new_empty(camera_to_worlds.shape if to_poses else 0)
    grad_adjustment = camera_to_worlds.new_empty(camera_to_worlds.shape if to_adjustment else 0)
    cameras = (camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose, eye_distance)
    sums = (grad_poses if to_poses else None, grad_adjustment if to_adjustment else None)
    launch("rays_backward", *cameras, grad_origins, grad_directions, same_every_time, *sums)
    return grad_poses, grad_adjustment


@op
def rays_lens_backward(
    camera_to_worlds: Tensor,
    camera: Tensor,
    xy: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None,
    compose: int,
    grad_directions: Tensor,
    same_every_time: bool,
) -> Tensor:
    """The gradient of intrinsics and distortion, one after the other [C, 16]."""
    grad = camera_to_worlds.new_empty(camera_to_worlds.shape[0], 16)
    cameras = (camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose)
    launch("rays_lens_backward", *cameras, grad_directions, same_every_time, grad)
    return grad


def views_backward(views, grad_origins, grad_directions, needs):
    """Gradients of the nine arguments that rays are cast with, None where `needs` asks for none."""
    same = torch.are_deterministic_algorithms_enabled()
    found: list[Tensor | None] = [None] * 9
    if needs[0] or needs[6]:
        poses, adjustment = rays_backward(*views, grad_origins, grad_directions, needs[0], needs[6], same)
        found[0], found[6] = poses if needs[0] else None, adjustment if needs[6] else None
    if needs[3] or needs[4]:
        if grad_directions is None:
            grad_directions = views[2].new_zeros(views[2].shape[0], 3)
        lenses = rays_lens_backward(*views[:8], grad_directions, same)
        found[3], found[4] = lenses[:, :4] if needs[3] else None, lenses[:, 4:] if needs[4] else None
    return found


def _backward(inputs, saved, grads, needs):
    if needs[2]:
        raise RuntimeError("rays: gradients reach cameras, not pixels")
    return tuple(views_backward(inputs, grads[0], grads[1], needs))


_rays = differentiable(rays_forward, _backward)


def flip_tangential(distortion: Tensor, lens: Tensor) -> Tensor:
    """Distortion [C, 12] as nerfstudio 0.3 understood it: p1 with its sign reversed, fisheye624 unchanged.

    That release undistorted in a frame with y up with OpenCV's coefficients, which hold with y down.
    """
    sign = torch.ones_like(distortion)
    sign[:, 4] = torch.where(lens == LENSES.index("fisheye624"), 1.0, -1.0)
    return distortion * sign


def rays(
    camera: Tensor,
    xy: Tensor,
    camera_to_worlds: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None = None,
    compose: str = "camera",
    distortion_delta: Tensor | None = None,
    tangential: str = "opencv",
    eye_distance: float = EYE_DISTANCE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The ray of each pixel: origins [R, 3], unit directions [R, 3], area, directions_norm, converged [R].

    camera [R] int64 picks one of C cameras; xy [R, 2] float pixels, x right, y down, first centre (0.5, 0.5).
    camera_to_worlds [C, 3, 4], intrinsics [C, 4] = fx fy cx cy, lens [C] int64 (index into LENSES), and
    distortion [C, 12]: k1 k2 k3 k4 p1 p2 (OpenCV's polynomial; of the angle for `fisheye`) or, for
    `fisheye624`, k0..k5 p0 p1 s0..s3. Panoramas and orthophotos ignore it. `distortion_delta` [C, 12] is
    added; the negative of `distortion` turns it off. Lenses may be mixed; floats are float32 (or float64).

    adjustment [C, 3, 4] = [dR | dt] refines the poses. compose="camera": the product pose x adjustment,
    [R dR | t + R dt], in the camera's own axes. compose="world": [dR R | t + dt], the camera turns about its
    centre and moves along the world's axes. An eye off the centre, or an orthophoto's pixel, moves with it.

    area: |d - right neighbour| x |d - lower neighbour|, the pixel's solid angle. directions_norm: length of
    the direction before normalisation, by which z depth becomes distance (1 where a lens has no z depth).
    converged: false where no point before the lens's fold has this image; the ray then ignores distortion.

    Gradients flow from origins and directions to camera_to_worlds and adjustment and, for perspective and
    fisheye lenses, to intrinsics and distortion (by the implicit function theorem where distortion was
    undone, 0 where converged is false), summed over the rays of each camera inside the kernel; the same sum
    every time on the CPU and, on CUDA, under torch.use_deterministic_algorithms(True).

    tangential="nerfstudio_0.3" reverses the sign of p1, as that release did. eye_distance (scene units) is
    that of the stereo panoramas. Raises ValueError for unknown words and wrong shapes, and on the CPU for a
    camera or lens that does not exist, and for gradients of another lens; on CUDA such numbers are NaN.
    """
    if compose not in COMPOSES:
        raise ValueError(f"rays: compose is {compose!r}, expected one of {', '.join(COMPOSES)}")
    if tangential not in TANGENTIALS:
        raise ValueError(f"rays: tangential is {tangential!r}, expected one of {', '.join(TANGENTIALS)}")
    if distortion_delta is not None:
        distortion = distortion + distortion_delta
    if tangential == "nerfstudio_0.3":
        distortion = flip_tangential(distortion, lens)
    if adjustment is not None:
        adjustment = adjustment.contiguous()
    origins, directions, area, norm, converged = _rays(
        camera_to_worlds.contiguous(),
        camera,
        xy,
        intrinsics,
        distortion,
        lens,
        adjustment,
        COMPOSES[compose],
        float(eye_distance),
    )
    return origins, directions, area.detach(), norm.detach(), converged
