"""The small numbers that keep formulas finite, each seen once, at its value."""

import math
import os
import subprocess
import sys

import pytest
import torch

from raymarch.ops import composite, interlevel, near_far, rays, sample_pdf, sample_spaced
from raymarch.ops.rays_to_samples import cast_rays, refine
from raymarch.ops.samples_to_field import normal_head
from raymarch.types import LENSES


def test_an_almost_empty_ray_has_half_its_distance(device):
    """1e-10 joins the opacity under the mean distance."""
    t = torch.tensor([[0.0, 2.0, 8.0, 12.0]], device=device)
    w = torch.tensor([[0.0, 0.0, 1e-10]], device=device)
    assert composite(w, t).expected_depth.item() == pytest.approx(5.0, rel=1e-5)


def test_an_almost_zero_normal_has_half_its_length(device):
    """1e-10 joins the length of a summed normal."""
    t = torch.tensor([[0.0, 1.0]], device=device)
    normals = torch.tensor([[[1e-10, 0.0, 0.0]]], device=device)
    out = composite(torch.ones(1, 1, device=device), t, normals=normals).normals
    assert out[0, 0].item() == pytest.approx(0.5, rel=1e-5)


def test_a_predicted_normal_is_divided_by_no_less_than_1e_12(device):
    bias = torch.tensor([5e-13, 0.0, 0.0], device=device, requires_grad=True)
    n = normal_head(torch.zeros(1, 16, device=device), torch.zeros(3, 16, device=device), bias)
    assert n[0, 0].item() == pytest.approx(0.5, rel=1e-5)
    n[0, 0].backward()
    assert bias.grad[0].item() == pytest.approx(1e12, rel=1e-5)


def test_the_interlevel_loss_divides_by_the_weight_and_1e_7(device):
    s, w = torch.tensor([[0.0, 1.0]], device=device), torch.tensor([[1e-7]], device=device)
    bound = torch.zeros(1, 1, device=device, requires_grad=True)
    loss = interlevel(s, w, s, bound)
    assert loss.item() == pytest.approx(5e-8, rel=1e-4)
    loss.sum().backward()
    assert bound.grad.item() == pytest.approx(-1.0, rel=1e-4)


def test_a_direction_is_divided_by_no_less_than_four_roundings_of_a_double(device):
    """A pose of zeros takes every direction to nothing."""
    fixed = (torch.tensor([[10.0, 10.0, 5.0, 5.0]]), torch.zeros(1, 12), torch.tensor([0]))
    camera, xy, poses = torch.tensor([0]), torch.tensor([[5.5, 5.5]]), torch.zeros(1, 3, 4)
    arrays = [a.to(device) for a in (camera, xy, poses, *fixed)]
    arrays[2].requires_grad_()
    _, directions, _, norm, _ = rays(*arrays)
    assert norm.item() == pytest.approx(8.881784e-16, rel=1e-5, abs=0) and not directions.any()
    directions.sum().backward()
    assert not arrays[2].grad.any()


def test_each_channel_of_a_cleaned_picture_is_judged_by_itself(device):
    """A channel that is not finite gets no gradient; the others of its ray do."""
    t, w = torch.tensor([[0.0, 1.0]], device=device), torch.ones(1, 1, device=device)
    for broken in range(3):
        rgb = torch.full((1, 1, 3), 0.5, device=device)
        rgb[0, 0, broken] = torch.nan
        rgb.requires_grad_()
        seen = composite(w, t, rgb=rgb, background="black", clean=True).rgb
        (seen * torch.tensor([1.0, 2.0, 3.0], device=device)).sum().backward()
        want = [0.0 if channel == broken else channel + 1.0 for channel in range(3)]
        assert rgb.grad[0, 0].tolist() == want


@pytest.mark.parametrize("spacing", ["linear-disparity", "log"])
def test_disparity_and_logarithm_begin_at_a_millionth(device, spacing):
    near, far = torch.zeros(1, device=device), torch.ones(1, device=device)
    assert sample_spaced(near, far, 8, spacing=spacing)[1][0, 0].item() == pytest.approx(1e-6, rel=1e-3)


def test_a_histogram_lighter_than_1e_5_is_filled_up_evenly(device):
    """Half of 1e-5 in the first of two bins: that bin ends with three quarters of all."""
    s = torch.tensor([[0.0, 0.5, 1.0]], device=device)
    w = torch.tensor([[0.5e-5, 0.0]], device=device)
    ends = torch.zeros(1, device=device), torch.ones(1, device=device)
    found, _ = sample_pdf(s, w, *ends, 1, spacing="uniform", padding=0.0)
    assert found[0].tolist() == pytest.approx([0.25 / 0.75 / 2, 0.5], abs=1e-6)  # of masses 1/4 and 3/4


def test_a_missed_box_is_1e10_away(device):
    o, d = torch.tensor([[5.0, 5.0, 5.0]], device=device), torch.tensor([[1.0, 0.0, 0.0]], device=device)
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], device=device)
    assert [x.item() for x in near_far(o, d, box)] == [1e10, 1e10]


@pytest.mark.parametrize("centre", [50.0, 0.0], ids=["missed", "left before the near plane"])
def test_a_box_of_no_use_leaves_a_ray_a_millionth(device, centre):
    pose = torch.eye(3, 4)[None].clone()
    pose[0, :, 3] = centre
    fixed = (torch.tensor([[10.0, 10.0, 5.0, 5.0]]), torch.zeros(1, 12), torch.tensor([0]))
    box = torch.tensor([[-2.0, -2.0, -2.0], [2.0, 2.0, 2.0]], device=device)
    arrays = (a.to(device) for a in (torch.tensor([0]), torch.tensor([[5.5, 5.5]]), pose, *fixed))
    out = cast_rays(*arrays, near=3.0, far=9.0, samples=2, box=box)
    assert out.near.item() == 3 and out.far.item() - 3 == pytest.approx(4e-6, rel=0.1)


def test_a_fisheye_close_to_its_centre_keeps_its_angle(device):
    """There sin(x)/x is a series."""
    arrays = (torch.tensor([0]), torch.tensor([[32.0 + 0.5, 24.0]]), torch.eye(3, 4)[None])
    lens = (torch.tensor([[1000.0, 1000.0, 32.0, 24.0]]), torch.zeros(1, 12), torch.tensor([1]))
    _, directions, *_ = rays(*(a.to(device) for a in (*arrays, *lens)))
    assert directions[0, 0].item() == pytest.approx(5e-4, rel=1e-6) and directions[0, 1].item() == 0


def test_the_search_behind_a_strong_lens_arrives(device):
    """With a wrong derivative it would come nearer by a ninth per trial, and run out of trials."""
    k = torch.zeros(1, 12)
    k[0, 0] = 5.0
    radius = 0.2 * (1 + 5 * 0.2**2)
    arrays = (torch.tensor([0]), torch.tensor([[32.0 + 100 * radius, 24.0]]), torch.eye(3, 4)[None])
    lens = (torch.tensor([[100.0, 100.0, 32.0, 24.0]]), k, torch.tensor([LENSES.index("fisheye624")]))
    _, directions, _, _, converged = rays(*(a.to(device) for a in (*arrays, *lens)))
    assert converged.item() and directions[0, 0].item() == pytest.approx(math.sin(0.2), rel=1e-5)


def test_a_camera_at_rest_is_pulled_nowhere(device):
    """A length of zero has no direction to shrink in."""
    xi = torch.zeros(3, 6, device=device)
    xi[1] = torch.tensor([0.3, 0.0, 0.0, 0.0, 0.4, 0.0])
    xi.requires_grad_()
    refine(xi, "SO3xR3", "exact", False, None, 1e-2, 1e-3)[1].sum().backward()
    want = torch.zeros(3, 6)
    want[1, 0], want[1, 4] = 1e-2 / 3, 1e-3 / 3
    torch.testing.assert_close(xi.grad.cpu(), want)


FEW_THREADS = """
import resource, torch
from raymarch import ops
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))  # room for two stacks
sigma = torch.rand(5000, 64)
assert torch.equal(ops.weights(sigma, sigma), ops.weights(sigma, sigma))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the way of Linux")
def test_fewer_threads_than_asked_for_do_the_work():
    """A machine that gives no more threads had left a half-made pool behind, which crashed or hung."""
    env = os.environ | {"RAYMARCH_THREADS": "64", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FEW_THREADS], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
