"""Six numbers per camera to a rigid motion: the exponential maps of pose refinement."""

from torch import Tensor

from raymarch.ops._op import differentiable, launch, op

MODES = {"SO3xR3": 0, "SE3": 1}
SMALL_ANGLES = ("exact", "nerfstudio")


@op
def pose_forward(xi: Tensor, mode: int, clamped: bool) -> Tensor:
    pose = xi.new_empty(xi.shape[0], 3, 4)
    launch("pose_forward", xi, mode, clamped, pose)
    return pose


@op
def pose_backward(xi: Tensor, mode: int, clamped: bool, grad_pose: Tensor) -> Tensor:
    grad_xi = xi.new_empty(xi.shape)
    launch("pose_backward", xi, mode, clamped, grad_pose, grad_xi)
    return grad_xi


def _backward(inputs, saved, grads, needs):
    return pose_backward(*inputs, grads[0]), None, None


_pose = differentiable(pose_forward, _backward)


def pose(xi: Tensor, mode: str = "SO3xR3", small_angle: str = "exact") -> Tensor:
    """xi [C, 6] = (translation, rotation vector in radians) -> [C, 3, 4] = [R | t]; differentiable.

    `SO3xR3` keeps the translation as it is; `SE3` is the exponential of the screw, t = V(w) rho (the
    textbook map, as in Barfoot, State Estimation for Robotics, ch. 7). Float32 or float64, contiguous.
    Both are exact and smooth at zero. `small_angle="nerfstudio"` reproduces that library's SO3xR3, which
    evaluates the coefficients no closer to zero than 0.01 rad, and its gradient.
    Raises ValueError for an unknown mode or for a wrong shape.
    """
    if mode not in MODES:
        raise ValueError(f"pose: mode is {mode!r}, expected one of {', '.join(MODES)}")
    if small_angle not in SMALL_ANGLES:
        raise ValueError(f"pose: small_angle is {small_angle!r}, expected one of {', '.join(SMALL_ANGLES)}")
    clamped = small_angle == "nerfstudio"
    if clamped and mode != "SO3xR3":
        raise ValueError(f"pose: small_angle 'nerfstudio' exists for mode SO3xR3 only, got {mode}")
    return _pose(xi.contiguous(), MODES[mode], clamped)
