"""What every op must satisfy, for every row of bench.cases."""

import pytest
import torch
from torch import Tensor

from bench.cases import CASES, several

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def error(got, want):
    """Relative to the size of the wanted array; NaN and unequal infinities count as infinite."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    got, want = got[want.isfinite()], want[want.isfinite()]
    return float((got - want).norm() / want.norm().clamp_min(1e-30)) if want.norm() > 0 else float(got.norm())


def moved(args, device):
    return [a.to(device) if isinstance(a, Tensor) else a for a in args]


def widened(args):
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def with_grad(case, args):
    return [
        a.detach().clone().requires_grad_(i in case.differentiable) if isinstance(a, Tensor) else a
        for i, a in enumerate(args)
    ]


def tolerances(case, device):
    forward, backward = case.tolerance, case.gradient_tolerance
    if device.type == "cuda":
        forward = case.cuda_tolerance or forward
        backward = case.cuda_gradient_tolerance or backward
    return forward, backward


def floats(outputs):
    return [o for o in several(outputs) if o.is_floating_point() and o.requires_grad]


@pytest.mark.parametrize("rays", [0, 1, 33, 1000])
def test_matches_the_oracle(case, device, rays):
    args = case.inputs(rays)
    got = several(case.op(*moved(args, device)))
    want = several(case.oracle(*widened(args)))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert error(g, w) <= tolerances(case, device)[0]


def test_gradient_matches_the_oracle(case, device):
    if not case.differentiable:
        pytest.skip("the op has no gradient")
    args = case.inputs(100)
    fast = with_grad(case, moved(args, device))
    slow = with_grad(case, widened(args))
    got, want = floats(case.op(*fast)), floats(case.oracle(*slow))
    assert len(got) == len(want) > 0
    seeds = [torch.randn_like(w) for w in want]
    torch.autograd.backward(got, [s.to(g) for s, g in zip(seeds, got, strict=True)])
    torch.autograd.backward(want, seeds)
    for i in case.differentiable:
        assert error(fast[i].grad, slow[i].grad) <= tolerances(case, device)[1]


def test_gradient_by_finite_differences(case):
    if not (case.differentiable and case.gradcheck):
        pytest.skip("no gradient in the double build")
    args = with_grad(case, widened(case.inputs(3)))
    outputs = several(case.op(*args))
    keep = [i for i, o in enumerate(outputs) if o.requires_grad]
    assert torch.autograd.gradcheck(lambda *a: tuple(several(case.op(*a))[i] for i in keep), args)


def test_traces_without_graph_breaks(case, device):
    args = with_grad(case, moved(case.inputs(8), device))

    def total(*a):
        return sum(o.double().square().sum() for o in several(case.op(*a)) if o.is_floating_point())

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), total(*args), rtol=1e-5, atol=1e-8)


def test_has_no_second_derivative_and_says_so(case, device):
    if not case.differentiable:
        pytest.skip("the op has no gradient")
    args = with_grad(case, moved(case.inputs(2), device))
    out = sum(o.sum() for o in floats(case.op(*args)))
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(out, args[case.differentiable[0]], create_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_in_a_cuda_graph(case):
    args = moved(case.inputs(64), "cuda")
    want = [o.clone() for o in several(case.op(*args))]  # also loads the kernels
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = several(case.op(*args))
    for o in got:
        o.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, equal_nan=True)
