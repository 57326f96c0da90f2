"""What every op must satisfy, for every row of bench.cases."""

import pytest
import torch
from torch import Tensor

from bench.cases import CASES, several
from bench.running import backend, error, floats, moved, recorded, run, tolerances, widened, with_grad, worst

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


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
    entries = sum(args[i].numel() for i in case.differentiable)
    many = entries > 1000  # then along random directions instead of entry by entry
    assert torch.autograd.gradcheck(
        lambda *a: tuple(several(case.op(*a))[i] for i in keep), args, fast_mode=many
    )


def test_traces_without_graph_breaks(case, device):
    torch._dynamo.reset()  # `total` is the same code for all rows, and dynamo retraces code only so often
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


def same(got, want):
    return len(got) == len(want) and all(
        (g is None and w is None) or torch.equal(torch.nan_to_num(g), torch.nan_to_num(w))
        for g, w in zip(got, want, strict=True)
    )


def test_registered_ops_keep_torchs_rules(case):
    calls = recorded(lambda: run(case, with_grad(case, case.inputs(3))))
    assert calls
    for op, args, _ in calls:
        torch.library.opcheck(op, args)


def test_two_runs_agree_to_the_last_bit(case, device):
    args = with_grad(case, moved(case.inputs(300), device))
    first, second = run(case, args), run(case, args)
    assert same(first[0], second[0])
    if backend(device) == "cpu":
        assert same(first[1], second[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu(case):
    inputs = case.inputs(257)
    got, want = run(case, with_grad(case, moved(inputs, "cuda"))), run(case, with_grad(case, inputs))
    for side in (0, 1):
        assert worst(got[side], want[side]) <= 2 * tolerances(case, "cuda")[side]


def test_no_rays_have_a_gradient(case, device):
    args = with_grad(case, moved(case.inputs(0), device))
    _, gradients = run(case, args)
    for gradient in gradients:
        assert gradient is None or gradient.isfinite().all()


def test_broken_numbers_break_nothing_else(case, device):
    """NaN, infinite and enormous inputs may give any number, but neither a crash nor an error."""
    for number in (float("nan"), float("inf"), float("-inf"), 3e38, -3e38):
        args = with_grad(case, moved(case.inputs(9), device))
        with torch.no_grad():
            for a in args:
                if isinstance(a, Tensor) and a.is_floating_point():
                    broken = torch.tensor(number).to(a.dtype).item()  # infinite where a half holds no more
                    a.masked_fill_(torch.rand(a.shape, device=device) < 0.2, broken)
        run(case, args)
        if device.type == "cuda":
            torch.cuda.synchronize()


def strided(x):
    """The same numbers with a gap after each."""
    return torch.stack([x, x], -1)[..., 0] if x.dim() and x.numel() > 1 else x


def test_views_with_gaps_are_taken_or_refused_by_name(case, device):
    inputs = moved(case.inputs(5), device)
    want = run(case, with_grad(case, inputs))
    for i, a in enumerate(inputs):
        if not isinstance(a, Tensor):
            continue
        args = with_grad(case, inputs)
        args[i] = strided(a).requires_grad_(i in case.differentiable)
        try:
            got = run(case, args)
        except ValueError as refusal:
            assert "contiguous" in str(refusal)
            continue
        assert worst(got[0], want[0]) <= 1e-6 and worst(got[1], want[1]) <= 1e-6


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
