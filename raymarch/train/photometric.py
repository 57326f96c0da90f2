"""A photo against a fixed field, for many poses at once: colours, their derivatives, Levenberg-Marquardt.

Every pose of a batch looks at the same cells of one photo, so K poses and N cells are one batch of K N rays.
A ray's colour depends on its own origin and direction alone; one backward pass per colour channel therefore
gives the derivative of every ray at once, and with it the whole Jacobian. Rendering and photo are blurred
alike, the Jacobian with them, which widens the basin. What differs between photo and rendering by a gain and
an offset per channel (exposure) is fitted and projected out. Nothing in an iteration waits for the device.

Letters: K poses, N cells = rows x columns. A pose moves by xi = (v, w): centre + v, axes exp(w) R; both along
the scene's axes (`compose="world"`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.model import Model
from raymarch.model.poses import compose
from raymarch.model.rays import generate
from raymarch.nn import HashGrid
from raymarch.ops.pose import pose
from raymarch.train.photos import View
from raymarch.train.residuals import Fit, blur_matrix, compare, project, solve
from raymarch.types import Cameras, Pixels

LONGEST_STEP = 0.15  # radians, and parts of the scene's size, in one iteration
EASIER, HARDER = 0.3, 4.0  # what success and failure do to the damping (Levenberg-Marquardt)
DAMPING = (1e-6, 1e-2, 1e6)  # least, first, most
CHUNK = 1 << 17  # rays in flight where nothing is differentiated


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No parameter asks for a gradient: backward passes go to the rays and nowhere else.

    Half copies of tables are brought up to date at once, for captured steps read them and do not look.
    """
    before = [(p, p.requires_grad) for p in model.parameters()]
    training = model.training
    model.eval()
    for p, _ in before:
        p.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, HashGrid):
            module.refresh()
    try:
        yield
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)
        model.train(training)


def copies(camera: Cameras, poses: Tensor) -> Cameras:
    """The one camera at each of the poses [K, 3, 4]."""
    count = len(poses)
    return Cameras(
        poses,
        camera.intrinsics.expand(count, -1).contiguous(),
        camera.distortion.expand(count, -1).contiguous(),
        camera.lens.expand(count).contiguous(),
        camera.size.expand(count, -1).contiguous(),
    )


def pixels_of(xy: Tensor, poses: int) -> Pixels:
    camera = torch.arange(poses, device=xy.device).repeat_interleave(len(xy))
    return Pixels(camera, xy.repeat(poses, 1))


def colours(model: Model, rays) -> Tensor:
    """What rays see, [R, 3], with a graph to their origins and directions where those ask for one."""
    samples, _ = model.sampler(rays, list(model.fields.proposals), update=False)
    field = model.fields(rays, samples, frozenset({"rgb"}), False)
    found = model.renderer(rays, samples, field).rgb
    assert found is not None
    return found


@torch.no_grad()
def look(model: Model, camera: Cameras, poses: Tensor, view: View) -> Tensor:
    """The cells as seen from every pose, [K, rows, columns, 3]; in chunks, without derivatives."""
    per = max(1, CHUNK // len(view.xy))
    parts = []
    for some in poses.split(per):
        rays = generate(pixels_of(view.xy, len(some)), copies(camera, some), None, model.config.rays, False)
        parts.append(colours(model, rays).view(-1, view.rows, view.columns, 3))
    return torch.cat(parts)


class Aligner:
    """Moves K poses of one camera towards a photo. Its buffers stay, so that a CUDA graph can hold a step."""

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int],
        poses: int,
        blur: float,
        scale: float,
        size: float,
        device: torch.device,
        graph: bool,
        pool: Any = None,
    ):
        """shape: rows, columns. blur: in cells. scale: of the robust loss. size: of the scene, scene units.

        `pool` is graph memory shared with other aligners, which must not run at the same time.
        """
        self.pool = pool
        self.model, self.scale, self.device = model, scale, device
        self.rows, self.columns = shape
        self.wants_graph = graph and device.type == "cuda" and model.native
        cells = self.rows * self.columns
        self.down, self.across = (blur_matrix(n, blur, device) for n in shape)
        self.target = torch.zeros(cells, 3, device=device)
        self.keep = torch.ones(cells, device=device)
        self.share = torch.ones(cells, device=device)  # of what a blur gathers, the part that is kept
        self.pixels = pixels_of(torch.zeros(cells, 2, device=device), poses)
        zeros = torch.zeros(poses, device=device)
        self.cameras = Cameras(
            torch.zeros(poses, 3, 4, device=device),  # the poses being tried
            torch.zeros(poses, 4, device=device),
            torch.zeros(poses, 12, device=device),
            torch.zeros(poses, dtype=torch.int64, device=device),
            torch.ones(poses, 2, dtype=torch.int64, device=device),
        )
        self.poses = torch.zeros(poses, 3, 4, device=device)  # the best so far, and what is known there
        self.cost, self.damping, self.explained = zeros.clone(), zeros.clone(), zeros.clone()
        self.spread = zeros.clone()  # root mean square of the residuals
        self.hessian = torch.zeros(poses, 6, 6, dtype=torch.float64, device=device)
        self.slope = torch.zeros(poses, 6, dtype=torch.float64, device=device)
        self.units = torch.tensor([1 / size, 1.0], dtype=torch.float64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def blurred(self, image: Tensor) -> Tensor:
        """[K, N, ...] -> the same, every channel blurred over the grid's cells that are kept."""
        flat = image.flatten(2) * self.keep[:, None]
        return (self._blurred(flat) / self.share[:, None]).view(image.shape)

    def _blurred(self, image: Tensor) -> Tensor:
        """[K, N, channels], all cells."""
        count, channels = image.shape[0], image.shape[2]
        rows = self.down @ image.reshape(count, self.rows, self.columns * channels)
        return (self.across @ rows.view(count, self.rows, self.columns, channels)).view(image.shape)

    def look_at(self, view: View) -> None:
        """Compare with this photo from now on."""
        self.keep.copy_(view.keep)
        self.share.copy_(self._blurred(view.keep.view(1, -1, 1)).flatten().clamp_min(1e-6))
        self.pixels.xy.copy_(view.xy.repeat(len(self.poses), 1))
        self.target.copy_(self.blurred(view.target.view(1, -1, 3))[0])

    def seen(self, camera: Cameras, poses: Tensor, view: View) -> Tensor:
        """Blurred renderings [K, N, 3] of any number of poses, without derivatives."""
        return self.blurred(look(self.model, camera, poses, view).flatten(1, 2))

    def load(self, camera: Cameras, view: View, poses: Tensor) -> None:
        """Begin with another photo, camera and poses."""
        many = copies(camera, poses)
        for name in ("camera_to_worlds", "intrinsics", "distortion", "lens", "size"):
            getattr(self.cameras, name).copy_(getattr(many, name))
        self.look_at(view)
        self.poses.copy_(poses)
        self.cost.fill_(torch.inf)
        self.hessian.zero_()
        self.slope.zero_()
        self.damping.fill_(DAMPING[1])

    def judge(self, seen: Tensor) -> Fit:
        """Blurred renderings [K, N, 3] against the photo."""
        return compare(seen, self.target, self.keep, self.scale)

    def linearise(self) -> tuple[Tensor, Tensor]:
        """Blurred colours [K, N, 3] at the poses being tried, and their derivative [K, N, 3, 6]."""
        with torch.no_grad():
            rays = generate(self.pixels, self.cameras, None, self.model.config.rays, False)
        origins, directions = rays.origins.requires_grad_(), rays.directions.requires_grad_()
        with torch.enable_grad():
            rgb = colours(self.model, rays)
            parts = []
            for channel in range(3):
                seed = torch.zeros_like(rgb)
                seed[:, channel] = 1
                slopes = torch.autograd.grad(rgb, (origins, directions), seed, retain_graph=channel < 2)
                parts.append(self._of_pose(rays, *slopes))
        count = len(self.poses)
        jacobian = torch.stack(parts, 1).view(count, -1, 3, 6)
        return self.blurred(rgb.detach().view(count, -1, 3)), self.blurred(jacobian)

    def _of_pose(self, rays, to_origin: Tensor, to_direction: Tensor) -> Tensor:
        """d colour / d xi [R, 6] of rays whose colour changes so with origin and direction.

        w turns a direction d by w x d and an eye at c + e by w x e; g . (w x d) = w . (d x g).
        """
        centre = self.cameras.camera_to_worlds[..., 3].index_select(0, rays.camera)
        arm = torch.linalg.cross(rays.origins.detach() - centre, to_origin)
        turn = torch.linalg.cross(rays.directions.detach(), to_direction) + arm
        return torch.cat([to_origin, turn], -1)

    def normal_equations(self, jacobian: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
        """J^T W J [K, 6, 6] and J^T W r [K, 6], means over cells and channels, in float64."""
        j = project(jacobian, fit).flatten(1, 2)
        weighted = j * fit.weight.flatten(1)[..., None]
        count = 3 * self.keep.sum()
        hessian = (weighted.transpose(1, 2) @ j) / count
        hessian = (hessian + hessian.transpose(1, 2)) / 2
        slope = (weighted * fit.residual.flatten(1)[..., None]).sum(1) / count
        return hessian.double(), slope.double()

    def _damped(self, damping: Tensor) -> Tensor:
        diagonal = self.hessian.diagonal(dim1=1, dim2=2)
        floor = 1e-6 * diagonal.amax(1, keepdim=True) + 1e-12
        return self.hessian + torch.diag_embed(damping[:, None] * diagonal + floor)

    def step(self) -> None:
        """Judge the poses being tried, keep those that are better, and try the next. Waits for nothing."""
        seen, jacobian = self.linearise()
        with torch.no_grad():
            fit = self.judge(seen)
            hessian, slope = self.normal_equations(jacobian, fit)
            better = fit.cost < self.cost
            for kept, new in (
                (self.poses, self.cameras.camera_to_worlds),
                (self.cost, fit.cost),
                (self.explained, fit.explained),
                (self.spread, fit.spread),
                (self.hessian, hessian),
                (self.slope, slope),
            ):
                kept.copy_(torch.where(better.view(-1, *[1] * (kept.ndim - 1)), new, kept))
            # Not `where` of two numbers, which copies them from the host.
            self.damping.mul_(HARDER + (EASIER - HARDER) * better.float()).clamp_(DAMPING[0], DAMPING[2])
            self.cameras.camera_to_worlds.copy_(self._moved(self.damping.double()))

    def _moved(self, damping: Tensor) -> Tensor:
        """The best poses after one damped step, no longer than LONGEST_STEP."""
        xi = self.newton_step(damping)
        lengths = (xi.view(-1, 2, 3).norm(dim=-1) * self.units).amax(1, keepdim=True)
        xi = xi * (LONGEST_STEP / lengths.clamp_min(LONGEST_STEP))
        return compose(self.poses, pose(xi.float()), "world")

    def newton_step(self, damping: Tensor) -> Tensor:
        """Where the model of the best poses says that they should move, [K, 6]."""
        return -solve(self._damped(damping), self.slope[..., None])[..., 0]

    def run(self, steps: int) -> None:
        """Judge the poses as loaded and after each of `steps` steps."""
        if self.wants_graph:
            self._run_graph(steps + 1)
            return
        for _ in range(steps + 1):
            self.step()

    def _run_graph(self, count: int) -> None:
        """The first steps run as they are, which loads kernels; one more is captured, and replayed after."""
        if self._graph is None:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(min(2, count)):
                    self.step()
            torch.cuda.current_stream(self.device).wait_stream(side)
            torch.cuda.synchronize(self.device)
            count -= min(2, count)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=side):
                self.step()
            self._graph = graph
        for _ in range(count):
            self._graph.replay()

    def sandwich(self, blocks: int = 5) -> Tensor:
        """Covariance [K, 6, 6] of xi at the best poses (scene units and radians), float64.

        H^-1 (sum_b s_b s_b^T) H^-1, with H the Gauss-Newton matrix and s_b the slope that one of blocks x
        blocks squares of the photo contributes: residuals within a square may be correlated in any way, those
        of different squares are taken for independent (Liang and Zeger 1986), with the usual correction for
        few squares. Errors of the field that bend the whole picture are beyond it.
        """
        self.cameras.camera_to_worlds.copy_(self.poses)
        seen, jacobian = self.linearise()
        with torch.no_grad():
            fit = self.judge(seen)
            j = project(jacobian, fit)
            count = 3 * self.keep.sum()
            slopes = (j * (fit.weight * fit.residual)[..., None]).sum(2) / count  # [K, N, 6]
            row = torch.arange(self.rows, device=self.device) * blocks // self.rows
            column = torch.arange(self.columns, device=self.device) * blocks // self.columns
            square = (row[:, None] * blocks + column[None]).flatten()
            member = F.one_hot(square, blocks * blocks).float()
            sums = torch.einsum("nb,kni->kbi", member, slopes).double()
            inverse = solve(
                self._damped(torch.zeros_like(self.damping).double()), _eye(len(sums), self.device)
            )
            few = blocks**2 / (blocks**2 - 6)
            return few * (inverse @ (sums.transpose(1, 2) @ sums) @ inverse)


def _eye(count: int, device: torch.device) -> Tensor:
    return torch.eye(6, dtype=torch.float64, device=device).expand(count, 6, 6)
