"""Pose refinement: six numbers per training camera to an adjustment of its pose."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymarch.model.gauge import gauge, without
from raymarch.model.preconditioner import preconditioner
from raymarch.ops.pose import MODES, SMALL_ANGLES, pose
from raymarch.ops.rays import COMPOSES
from raymarch.types import Cameras


@dataclass(frozen=True)
class PosesConfig:
    """How camera poses are refined. The defaults are those of nerfacto in nerfstudio 1.1."""

    mode: str = "SO3xR3"  # off, SO3xR3 or SE3
    compose: str = "world"  # camera: pose x adjustment; world: turn about the centre, move along world axes
    translation_penalty: float = 1e-2  # times the mean length of the translations, scene units
    rotation_penalty: float = 1e-3  # times the mean angle, radians
    frozen: tuple[int, ...] = ()  # ids of cameras whose poses are kept
    trainable: tuple[int, ...] | None = (
        None  # ids of the only cameras to refine; None: all that are not frozen
    )
    # The cameras' common motion, which no picture can see, is: free; mean: adjustments have mean zero (world
    # only); similarity: the rig as a whole is not shifted, turned or scaled (model/gauge.py).
    gauge: str = "free"
    small_angle: str = "exact"  # or nerfstudio: its clamp at 0.01 rad, SO3xR3 only
    # Coarse to fine: the finest hash grid resolution that leads poses grows from `coarse_resolution` (0: all
    # lead from the start) at step `coarse_hold` to everything at step `coarse_until`.
    coarse_resolution: float = 0.0
    coarse_hold: int = 0
    coarse_until: int = 0
    finest_resolution: float = 2048.0  # where the growth ends
    blur_map: bool = False  # finer levels are hidden from the map as well (BARF), not from poses alone
    smooth_slope: bool = False  # poses follow smoothstep slopes of the map, which stays linear
    precondition: bool = False  # refine in coordinates that all move the picture equally (CamP)
    precondition_damping: float = 0.1  # of the coupling between a camera's six numbers
    precondition_spread: float = 3.0  # points lie between this part and this multiple of the focus's distance
    outlier_factor: float = 0.0  # cameras whose colour error is so many times the median lose weight; 0: off
    through_proposals: bool = True  # the interlevel loss moves poses, too
    through_directions: bool = True  # so does what colour makes of the viewing direction


MOST_AS_MATRIX = 128  # cameras whose coordinates and gauge are applied as one matrix
FINEST = 32.0  # log2 of a resolution beyond every grid


def detail_at(step: int, config: PosesConfig) -> float:
    """log2 of the finest grid resolution that leads poses at a step; grows by equal parts of octaves."""
    if config.coarse_resolution <= 0 or step >= config.coarse_until:
        return FINEST
    start, end = math.log2(config.coarse_resolution), math.log2(config.finest_resolution) + 1
    part = (step - config.coarse_hold) / max(config.coarse_until - config.coarse_hold, 1)
    return start + (end - start) * min(max(part, 0.0), 1.0)


def compose(camera_to_worlds: Tensor, adjustment: Tensor, how: str) -> Tensor:
    """Poses [C, 3, 4] with adjustments [C, 3, 4] applied, as `rays` applies them; always float32 arithmetic.

    camera: [R dR | t + R dt]; world: [dR R | t + dt]. Sums of products and not `@`, which autocast and TF32
    may round.
    """
    if how not in COMPOSES:
        raise ValueError(f"compose: how is {how!r}, expected one of {', '.join(COMPOSES)}")
    R, t = camera_to_worlds[..., :3], camera_to_worlds[..., 3:]
    dR, dt = adjustment[..., :3], adjustment[..., 3:]
    left, right = (R, dR) if how == "camera" else (dR, R)
    turned = (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)
    moved = t + ((R.unsqueeze(-1) * dt.unsqueeze(-3)).sum(-2) if how == "camera" else dt)
    return torch.cat([turned, moved], dim=-1)


def logarithm(R: Tensor, t: Tensor, mode: str) -> Tensor:
    """The six numbers [C, 6] whose `pose` has rotation R [C, 3, 3], by less than half a turn, and t [C, 3].

    float64. The rotation's logarithm is that of its quaternion's axis; of SE3, rho = V(w)^-1 t.
    """
    across = torch.stack(
        [R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], -1
    )  # 2 sin(angle) axis
    double = across.norm(dim=-1)
    angle = torch.atan2(double, R.diagonal(dim1=1, dim2=2).sum(-1) - 1)
    w = across * torch.where(double > 1e-9, angle / double.clamp_min(1e-9), 0.5)[:, None]
    if mode == "SE3":
        eye = torch.eye(3, dtype=R.dtype).expand_as(R)
        K = torch.linalg.cross(w[:, None, :].expand_as(R), eye, dim=-1).transpose(1, 2)
        half = torch.sinc(angle / (2 * math.pi))
        small = angle < 1e-2
        safe = torch.where(small, 1.0, angle)
        third = torch.where(small, 1 / 6 - angle.square() / 120, (safe - safe.sin()) / safe**3)
        V = eye + (half.square() / 2)[:, None, None] * K + third[:, None, None] * (K @ K)
        t = torch.linalg.solve(V, t[..., None])[..., 0]
    return torch.cat([t, w], -1)


class Poses(nn.Module):
    """The adjustments of `cameras` training cameras; ids are places in that list, not frame numbers.

    Their poses can be read in both of the usual ways: as the six numbers, `poses.adjustment` [C, 6] =
    (translation, rotation vector), or as matrices, `poses()` [C, 3, 4]; `optimized_camera_to_worlds` applies
    them. A frozen camera's adjustment is the identity with no gradient, whatever its six numbers say.
    """

    free: Tensor | None

    def __init__(self, config: PosesConfig, cameras: int):
        super().__init__()
        _check(config, cameras)
        self.config = config
        self.cameras = cameras
        moving = _moving(config, cameras)
        refines = config.mode != "off"
        self.adjustment = nn.Parameter(torch.zeros(cameras, 6)) if refines else None
        mask = torch.tensor(moving).reshape(cameras, 1) if refines and not all(moving) else None
        self.register_buffer("free", mask, persistent=False)
        self.whitening: Tensor | None
        start = torch.eye(6).expand(cameras, 6, 6).clone() if refines and config.precondition else None
        self.register_buffer("whitening", start)
        self.along: Tensor | None
        self.across: Tensor | None
        fixes = refines and config.gauge == "similarity" and mask is None  # frozen cameras hold the others
        for name in ("along", "across"):
            self.register_buffer(name, torch.zeros(cameras, 6, 7) if fixes else None)
        self._matrix: Tensor | None = None  # of `linear`, where there are few cameras

    @torch.no_grad()
    def _keep_matrix(self, device: torch.device) -> None:
        """Make the matrix of `linear` [6 C, 6 C], or make it again in its place, which CUDA graphs read."""
        numbers = 6 * self.cameras
        made = torch.eye(numbers, dtype=torch.float64, device=device)
        if self.whitening is not None:
            made = torch.block_diag(*self.whitening.to(device, torch.float64))
        if self.along is not None and self.across is not None:
            along, across = (x.to(device, torch.float64).view(numbers, 7) for x in (self.along, self.across))
            made = made - along @ (across.T @ made)
        if self._matrix is None or self._matrix.device != device:
            self._matrix = made.float()
        else:
            self._matrix.copy_(made)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self._matrix is not None:
            self._keep_matrix(self._matrix.device)

    def _matrix_on(self, device: torch.device) -> Tensor | None:
        """The matrix of `linear`, where it is small and not the identity: two launches instead of seven."""
        if self.cameras > MOST_AS_MATRIX or (self.whitening is None and self.along is None):
            return None
        if self._matrix is None or self._matrix.device != device:
            self._keep_matrix(device)
        return self._matrix

    def linear(self, numbers: Tensor) -> Tensor:
        """What `adjustment` [C, 6] means: coordinates and gauge taken out, frozen cameras not yet."""
        # Sums and not matrix products, which autocast and TF32 may round.
        if (matrix := self._matrix_on(numbers.device)) is not None and numbers.dtype == torch.float32:
            return (matrix * numbers.reshape(1, -1)).sum(1).view(-1, 6)
        xi = numbers
        if self.whitening is not None:
            xi = (self.whitening * xi[:, None, :]).sum(-1)
        if self.along is not None and self.across is not None:
            xi = without(xi, self.along, self.across)
        return xi

    def linear_backward(self, grad: Tensor) -> Tensor:
        """The gradient of `adjustment` [C, 6] from that of `linear`."""
        if (matrix := self._matrix_on(grad.device)) is not None and grad.dtype == torch.float32:
            return (matrix * grad.reshape(-1, 1)).sum(0).view(-1, 6)
        if self.along is not None and self.across is not None:
            grad = without(grad, self.across, self.along)
        return grad if self.whitening is None else (self.whitening * grad[:, :, None]).sum(1)

    def _xi(self) -> Tensor | None:
        if self.adjustment is None:
            return None
        xi = self.linear(self.adjustment)
        if self.free is not None:  # frozen cameras hold the others in place
            return torch.where(self.free, xi, 0.0)
        return xi - xi.mean(0) if self.config.gauge == "mean" else xi

    def six_numbers(self) -> Tensor | None:
        """Translation and rotation vector of every camera [C, 6], frozen ones zero. None if the mode is off.

        `adjustment` itself, unless its coordinates are preconditioned.
        """
        return self._xi()

    def precondition(self, cameras: Cameras) -> None:
        """Measure how the cameras' numbers are coupled, each one's and all together, as the config asks.

        Before training, at the poses that it begins with.
        """
        if self.whitening is not None:
            config = self.config
            found = preconditioner(
                cameras, config.compose, config.precondition_damping, config.precondition_spread
            )
            self.whitening.copy_(found)
        if self.along is not None and self.across is not None:
            for mine, found in zip(
                (self.along, self.across), gauge(cameras.camera_to_worlds, self.config.compose), strict=True
            ):
                mine.copy_(found)
        if self._matrix is not None:
            self._keep_matrix(self._matrix.device)

    @torch.no_grad()
    def go_to(self, given: Tensor, wanted: Tensor) -> None:
        """Set the adjustments so that poses `given` [C, 3, 4] become `wanted`, in place.

        Frozen cameras stay, and what the gauge takes out (to first order a common motion) is left out.
        """
        if self.adjustment is None:
            raise ValueError("poses: mode is off, so there are no adjustments to set")
        R, t = given[..., :3].cpu().double(), given[..., 3].cpu().double()
        to, at = wanted[..., :3].cpu().double(), wanted[..., 3].cpu().double()
        back = R.transpose(1, 2)
        moved = at - t
        if self.config.compose == "camera":
            turn, moved = back @ to, (back @ moved[..., None])[..., 0]
        else:
            turn = to @ back
        xi = logarithm(turn, moved, self.config.mode)
        if self.whitening is not None:
            xi = torch.linalg.solve(self.whitening.cpu().double(), xi[..., None])[..., 0]
        if self.free is not None:
            xi = torch.where(self.free.cpu(), xi, 0.0)
        self.adjustment.copy_(xi)

    def forward(self, cameras: Tensor | None = None) -> Tensor | None:
        """Adjustments [C, 3, 4], or those of the cameras asked for, by id. None where the mode is off."""
        xi = self._xi()
        if xi is None:
            return None
        xi = xi if cameras is None else xi[cameras]
        return pose(xi, self.config.mode, self.config.small_angle)

    def optimized_camera_to_worlds(self, camera_to_worlds: Tensor) -> Tensor:
        """The poses [C, 3, 4] of all training cameras, refined."""
        if camera_to_worlds.shape != (self.cameras, 3, 4):
            raise ValueError(
                f"poses: camera_to_worlds is {tuple(camera_to_worlds.shape)}, expected {(self.cameras, 3, 4)}"
            )
        adjustment = self()
        if adjustment is None:
            return camera_to_worlds
        return compose(camera_to_worlds, adjustment, self.config.compose)

    def regulariser(self) -> Tensor | None:
        """Penalty on the size of the adjustments: lengths, not squares. None where none is asked for."""
        xi, config = self._xi(), self.config
        if xi is None or (config.translation_penalty == 0 and config.rotation_penalty == 0):
            return None
        lengths = torch.linalg.vector_norm(xi.view(self.cameras, 2, 3), dim=-1).mean(0)
        return config.translation_penalty * lengths[0] + config.rotation_penalty * lengths[1]

    @torch.no_grad()
    def sizes(self) -> tuple[Tensor, Tensor]:
        """How far each camera was moved [C], in scene units, and turned [C], in degrees."""
        xi, adjustment = self._xi(), self()
        if xi is None or adjustment is None:
            return torch.zeros(self.cameras), torch.zeros(self.cameras)
        return adjustment[..., 3].norm(dim=-1), xi[:, 3:].norm(dim=-1) * (180 / math.pi)


def _check(config: PosesConfig, cameras: int) -> None:
    for name, value, words in (
        ("mode", config.mode, ("off", *MODES)),
        ("compose", config.compose, tuple(COMPOSES)),
        ("small_angle", config.small_angle, SMALL_ANGLES),
        ("gauge", config.gauge, ("free", "mean", "similarity")),
    ):
        if value not in words:
            raise ValueError(f"poses: {name} is {value!r}, expected one of {', '.join(words)}")
    if config.gauge == "mean" and config.compose != "world":
        raise ValueError("poses: gauge 'mean' needs compose 'world': camera axes have no common motion")
    if config.small_angle != "exact" and config.mode == "SE3":
        raise ValueError("poses: small_angle 'nerfstudio' exists for mode SO3xR3 only, got SE3")
    if config.precondition and not (config.precondition_spread > 1 and config.precondition_damping >= 0):
        raise ValueError(
            f"poses: precondition_spread is {config.precondition_spread:g} and precondition_damping "
            f"{config.precondition_damping:g}, expected more than 1 and at least 0"
        )
    if config.coarse_until > 0 and config.coarse_resolution > 0 and config.finest_resolution <= 0:
        raise ValueError(f"poses: finest_resolution is {config.finest_resolution:g}, expected more than 0")
    for name, ids in (("frozen", config.frozen), ("trainable", config.trainable or ())):
        if wrong := [i for i in ids if not 0 <= i < cameras]:
            raise ValueError(f"poses: {name} names camera {wrong[0]}, expected 0 to {cameras - 1}")


def _moving(config: PosesConfig, cameras: int) -> list[bool]:
    frozen = set(config.frozen)
    wanted = set(range(cameras)) - frozen if config.trainable is None else set(config.trainable)
    if both := sorted(frozen & wanted):
        raise ValueError(
            f"poses: camera {both[0]} is named by both frozen and trainable, expected one of them"
        )
    if config.mode != "off" and cameras > 0 and not wanted:
        raise ValueError(f"poses: all {cameras} cameras are frozen; mode 'off' says that")
    return [i in wanted for i in range(cameras)]
