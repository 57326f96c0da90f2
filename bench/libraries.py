"""Other libraries' own functions for the rows of bench.peers, where installed, by their public API.

Each function takes the row's inputs once, imports its library (ImportError: not installed) and returns how to
call it. Where a library wants an object around the numbers, a stand-in with the fields that its function
reads is given, so that its time is that of the formula alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench import plain
from raymarch.ops.mlp import shapes


@dataclass(frozen=True)
class Bound:
    """A way of computing a row, ready to call with the row's inputs.

    outputs: which of the row's outputs it gives, where not all; parameters: tensors of its own that take the
    place of the row's; reference: what it must give, where its rule is another than the row's;
    gradient_tolerance: where its gradients differ by convention at isolated points.
    """

    call: Callable[..., Any]
    outputs: tuple[int, ...] | None = None
    parameters: tuple[Tensor, ...] = ()
    reference: Callable[..., Any] | None = None
    gradient_tolerance: float | None = None
    note: str = ""


def need_cuda(args: Sequence[Any], what: str) -> None:
    if not any(isinstance(a, Tensor) and a.is_cuda for a in args):
        raise ImportError(f"{what} takes part on a GPU only")


# nerfstudio

# What its modules import at their top for viewing and for photos, and no row uses.
UNUSED = ("viser", "cv2")


class Unused(MetaPathFinder, Loader):
    """Empty packages in the place of those of UNUSED that are not installed; any name in them is a class."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in UNUSED else None

    def create_module(self, spec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        def named(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = named  # type: ignore[method-assign]


@contextmanager
def without_viewer() -> Iterator[None]:
    """While open, nerfstudio can be imported without what no row uses; then no trace of that is left."""
    finder = Unused()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if getattr(getattr(module, "__spec__", None), "loader", None) is finder:
                del sys.modules[name]


def nerfstudio_weights(sigma, delta) -> Bound:
    from nerfstudio.cameras.rays import RaySamples

    def call(sigma, delta):
        return RaySamples.get_weights(SimpleNamespace(deltas=delta[..., None]), sigma[..., None])[..., 0]

    return Bound(call)


def nerfstudio_composite(w, t, rgb) -> Bound:
    from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer

    colour, opacity = RGBRenderer(background_color="white").train(), AccumulationRenderer()
    median, mean = DepthRenderer("median"), DepthRenderer("expected")

    def call(w, t, rgb):
        w = w[..., None]
        samples = SimpleNamespace(frustums=SimpleNamespace(starts=t[:, :-1, None], ends=t[:, 1:, None]))
        seen = colour(rgb=rgb, weights=w), opacity(weights=w)[:, 0]
        return *seen, median(w, samples)[:, 0].detach(), mean(w, samples)[:, 0]

    return Bound(call)


def nerfstudio_features(w, t, f) -> Bound:
    from nerfstudio.model_components.renderers import SemanticRenderer

    renderer = SemanticRenderer()
    return Bound(lambda w, t, f: renderer(f, w[..., None]))


def _bins(bin_starts, bin_ends, spacing_starts, spacing_ends, spacing_to_euclidean_fn):
    """In the place of a bundle's get_ray_samples: the edges, and no objects around them."""
    s = torch.cat([spacing_starts[..., 0], spacing_ends[..., -1:, 0]], -1)
    return s, torch.cat([bin_starts[..., 0], bin_ends[..., -1:, 0]], -1)


def nerfstudio_spaced(near, far, samples) -> Bound:
    from nerfstudio.model_components.ray_samplers import UniformLinDispPiecewiseSampler

    sampler = UniformLinDispPiecewiseSampler(num_samples=samples).eval()

    def call(near, far, samples):
        bundle = SimpleNamespace(
            origins=near[:, None], nears=near[:, None], fars=far[:, None], get_ray_samples=_bins
        )
        s, t = sampler.generate_ray_samples(bundle)
        return s.expand(len(t), -1), t

    return Bound(call)


def nerfstudio_pdf(s, w, near, far, samples) -> Bound:
    from nerfstudio.model_components.ray_samplers import PDFSampler

    sampler = PDFSampler(num_samples=samples, include_original=False).eval()

    def call(s, w, near, far, samples):
        before = SimpleNamespace(
            spacing_starts=s[:, :-1, None],
            spacing_ends=s[:, 1:, None],
            spacing_to_euclidean_fn=lambda x: plain.t_from_s(x, near, far),
        )
        bundle = SimpleNamespace(get_ray_samples=_bins)
        return sampler.generate_ray_samples(bundle, before, w[..., None])

    return Bound(call)


def nerfstudio_contract(x) -> Bound:
    from nerfstudio.field_components.spatial_distortions import SceneContraction

    return Bound(SceneContraction(order=float("inf")))


def nerfstudio_unit_positions(origins, directions, t) -> Bound:
    from nerfstudio.cameras.rays import Frustums
    from nerfstudio.field_components.spatial_distortions import SceneContraction

    contraction = SceneContraction(order=float("inf"))

    def call(origins, directions, t):
        frustums = SimpleNamespace(
            origins=origins[:, None],
            directions=directions[:, None],
            starts=t[:, :-1, None],
            ends=t[:, 1:, None],
            offsets=None,
        )
        return (contraction(Frustums.get_positions(frustums)) + 2.0) / 4.0

    return Bound(call)


def nerfstudio_harmonics(d) -> Bound:
    from nerfstudio.utils.spherical_harmonics import components_from_spherical_harmonics

    return Bound(lambda d: components_from_spherical_harmonics(3, d))


def nerfstudio_hashgrid(x, table, grid, stored) -> Bound:
    from nerfstudio.field_components.encodings import HashEncoding

    levels, base, top, log2_size = grid
    encoding = HashEncoding(levels, base, top, log2_size, table.shape[1], implementation="torch").to(x.device)
    with torch.no_grad():
        encoding.hash_table.copy_(table)
    encoding.scalings, encoding.hash_offset = (
        encoding.scalings.to(x.device),
        encoding.hash_offset.to(x.device),
    )
    return Bound(
        lambda x, table, grid, stored: encoding(x),
        parameters=(encoding.hash_table,),
        gradient_tolerance=5e-2,
        note="no slope where a point lies on a level's lattice",
    )


def nerfstudio_mlp(x, params, hidden, layers, outputs, last, padding) -> Bound:
    from nerfstudio.field_components.mlp import MLP

    out = torch.nn.Sigmoid() if last == "sigmoid" else None
    network = MLP(x.shape[1], layers + 1, hidden, outputs, out_activation=out, implementation="torch").to(
        x.device
    )
    at = 0
    with torch.no_grad():
        for i, (layer, (rows, columns)) in enumerate(
            zip(network.layers, shapes(x.shape[1], hidden, layers, outputs), strict=True)
        ):
            matrix = params[at : at + rows * columns].view(rows, columns)
            used = x.shape[1] if i == 0 else columns
            layer.weight.copy_(matrix[: layer.out_features, :used])
            layer.bias.copy_(padding * matrix[: layer.out_features, used:].sum(1))
            at += rows * columns
    return Bound(lambda x, *rest: network(x), parameters=tuple(network.parameters()))


def nerfstudio_distortion(s, w) -> Bound:
    from nerfstudio.model_components.losses import lossfun_distortion

    return Bound(lossfun_distortion)


def nerfstudio_interlevel(s, w, s_proposal, w_proposal) -> Bound:
    from nerfstudio.model_components.losses import lossfun_outer

    return Bound(lambda s, w, a, b: lossfun_outer(s, w, a, b).mean(-1))


def nerfstudio_orientation(w, normals, directions) -> Bound:
    from nerfstudio.model_components.losses import orientation_loss

    return Bound(lambda w, n, d: orientation_loss(w[..., None], n, d))


def nerfstudio_near_far(origins, directions, box) -> Bound:
    from nerfstudio.utils.math import intersect_aabb

    return Bound(lambda o, d, box: intersect_aabb(o, d, box.flatten()))


def nerfstudio_pose(xi) -> Bound:
    from nerfstudio.cameras.lie_groups import exp_map_SO3xR3

    return Bound(exp_map_SO3xR3)


def nerfstudio_rays(camera, xy, poses, intrinsics, k, *others) -> Bound:
    from nerfstudio.cameras.cameras import Cameras

    fx, fy, cx, cy = intrinsics.cpu().unbind(-1)
    cameras = Cameras(
        poses.cpu(),
        fx[:, None],
        fy[:, None],
        cx[:, None],
        cy[:, None],
        width=64,
        height=48,
        distortion_params=k.cpu(),
    ).to(xy.device)

    def call(camera, xy, *cameras_of_the_row):
        bundle = cameras.generate_rays(camera_indices=camera[:, None], coords=xy.flip(-1))
        return bundle.origins, bundle.directions, bundle.pixel_area[:, 0]

    return Bound(call, note="no gradient to poses")


# nerfacc


def nerfacc_weights(sigma, delta) -> Bound:
    need_cuda((sigma,), "nerfacc's scan")
    from nerfacc import render_weight_from_density

    starts = torch.zeros_like(delta)
    return Bound(lambda sigma, delta: render_weight_from_density(starts, delta, sigma)[0])


def nerfacc_weights_packed(sigma, delta, offsets, ray) -> Bound:
    need_cuda((sigma,), "nerfacc's packed scan")
    from nerfacc import render_weight_from_density

    starts, rays = torch.zeros_like(delta), len(offsets) - 1

    def call(sigma, delta, offsets, ray):
        return render_weight_from_density(starts, delta, sigma, ray_indices=ray, n_rays=rays)[0]

    return Bound(call)


def nerfacc_composite(w, t, rgb) -> Bound:
    from nerfacc import accumulate_along_rays

    def call(w, t, rgb):
        opacity = accumulate_along_rays(w)
        middle = (t[:, 1:, None] + t[:, :-1, None]) / 2
        expected = accumulate_along_rays(w, middle) / (opacity + 1e-10)
        return accumulate_along_rays(w, rgb) + (1 - opacity), opacity[:, 0], expected[:, 0]

    return Bound(call, outputs=(0, 1, 3), note="without the median depth")


def nerfacc_features(w, t, f) -> Bound:
    from nerfacc import accumulate_along_rays

    return Bound(lambda w, t, f: accumulate_along_rays(w, f))


def nerfacc_pdf(s, w, near, far, samples) -> Bound:
    need_cuda((s,), "nerfacc's importance sampling")
    from nerfacc import RayIntervals
    from nerfacc.pdf import importance_sampling

    def call(s, w, near, far, samples):
        w = w + 0.01
        cdf = torch.nn.functional.pad((w / w.sum(-1, keepdim=True)).cumsum(-1), (1, 0)).clamp_max(1)
        edges, found = importance_sampling(RayIntervals(vals=s), cdf, samples)
        return found.vals, plain.t_from_s(edges.vals, near, far)[:, :0]

    def reference(s, w, near, far, samples):
        u = (torch.arange(samples, dtype=s.dtype, device=s.device) + 0.5) / samples
        return plain.inverse_cdf(s, w + 0.01, u.expand(len(s), -1).contiguous()), s[:, :0]

    return Bound(call, reference=reference, note="its own rule: midpoints by the cdf, edges between them")


def nerfacc_distortion(s, w) -> Bound:
    need_cuda((s,), "nerfacc's packed scan")
    from nerfacc.losses import distortion

    rays = torch.arange(len(w), device=w.device).repeat_interleave(w.shape[1])

    def call(s, w):
        starts, ends = s[:, :-1].reshape(-1), s[:, 1:].reshape(-1)
        return distortion(w.view(-1), starts, ends, rays, len(w))[:, 0]

    return Bound(call)


def nerfacc_near_far(origins, directions, box) -> Bound:
    need_cuda((origins,), "nerfacc's box intersection")
    from nerfacc import ray_aabb_intersect

    def call(o, d, box):
        near, far, _ = ray_aabb_intersect(o, d, box.view(1, 6), near_plane=0.0, miss_value=1e10)
        return near[:, 0], far[:, 0]

    return Bound(call)


# tiny-cuda-nn


def _tcnn(args: Sequence[Any]) -> Any:
    need_cuda(args, "tiny-cuda-nn")
    try:
        import tinycudann
    except OSError as error:  # EnvironmentError: it has no build for this GPU
        raise ImportError(str(error)) from None
    return tinycudann


def tcnn_harmonics(d) -> Bound:
    module = _tcnn((d,)).Encoding(3, {"otype": "SphericalHarmonics", "degree": 4})
    signs = torch.tensor([1, *[-1, 1, -1], *[1, -1, 1, -1, 1], *[-1, 1, -1, 1, -1, 1, -1]], device=d.device)
    return Bound(
        lambda d: module((d + 1) / 2),
        reference=lambda d: plain.harmonics(d) * signs,
        note="signs of its own",
    )


def tcnn_fourier(x, octaves) -> Bound:
    module = _tcnn((x,)).Encoding(3, {"otype": "Frequency", "n_frequencies": len(octaves)})
    return Bound(lambda x, octaves: module(x))


def tcnn_hashgrid(x, table, grid, stored) -> Bound:
    levels, base, top, log2_size = grid
    config = {
        "otype": "HashGrid",
        "n_levels": levels,
        "n_features_per_level": table.shape[1],
        "log2_hashmap_size": log2_size,
        "base_resolution": base,
        "per_level_scale": (top / base) ** (1 / (levels - 1)),
    }
    module = _tcnn((x,)).Encoding(3, config)
    with torch.no_grad():
        module.params.copy_(table.view(-1))
    return Bound(lambda x, table, grid, stored: module(x), parameters=(module.params,))


def tcnn_mlp(x, params, hidden, layers, outputs, last, padding) -> Bound:
    config = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "Sigmoid" if last == "sigmoid" else "None",
        "n_neurons": hidden,
        "n_hidden_layers": layers,
    }
    module = _tcnn((x,)).Network(x.shape[1], outputs, config)
    with torch.no_grad():
        module.params.copy_(params)
    return Bound(lambda x, *rest: module(x), parameters=(module.params,))
