"""How a call of an op reaches its body: at once, or through torch's dispatcher where that has work to do."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from raymarch.ops import _op, weights

REGISTERED = torch.ops.raymarch.weights_forward.default


@pytest.fixture
def arrays():
    torch.manual_seed(0)
    return torch.rand(4, 8), torch.rand(4, 8)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class SeenCalls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A tensor of its own kind, which sees the ops that it meets."""

    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    def __init__(self, inside):
        self.inside, self.met = inside, []

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        for x in args:
            if isinstance(x, cls):
                x.met.append(func)
        return func(*(x.inside if isinstance(x, cls) else x for x in args), **(kwargs or {}))


def test_nothing_watches_and_the_body_is_called_at_once(arrays):
    """The dispatcher would not know of a launch that is looked for in Python's frames."""
    import traceback

    frames = []

    def noted(core, kernel, args):
        frames.append([frame.name for frame in traceback.extract_stack()])
        _op.call(core, kernel, args)

    with _op.launches_through(noted):
        weights(*arrays)
        REGISTERED(*arrays)
    direct, dispatched = frames
    assert "at_once" in direct and "weights_forward" in direct and "at_once" not in dispatched


def test_modes_see_the_op(arrays):
    for mode in (Seen(), SeenCalls()):
        with mode:
            weights(*arrays)
        assert REGISTERED in mode.ops


def test_fake_tensors_stay_fake(arrays):
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in arrays]
        assert type(weights(*fakes)) is not torch.Tensor
    out = weights(*fakes)
    assert type(out) is not torch.Tensor and out.shape == (4, 8)


def test_profiles_name_the_op(arrays):
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        weights(*arrays)
    assert "raymarch::weights_forward" in {event.name for event in trace.events()}


def test_tensors_of_other_kinds_see_the_op(arrays):
    marked = Marked(arrays[0])
    assert torch.equal(weights(marked, arrays[1]), weights(*arrays))
    assert REGISTERED in marked.met


@pytest.mark.filterwarnings("ignore")
def test_traces_hold_the_op(arrays):
    traced = torch.jit.trace(weights, arrays)
    assert "raymarch::weights_forward" in str(traced.inlined_graph)
    other = [2 * x for x in arrays]
    assert torch.equal(traced(*other), weights(*other))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_maps(arrays):
    several = [torch.stack([x, 2 * x, 3 * x]) for x in arrays]
    mapped = torch.func.vmap(weights)(*several)
    assert torch.equal(mapped, torch.stack([weights(*pair) for pair in zip(*several, strict=True)]))


def test_compiled_graphs_hold_the_op(arrays):
    kept = []

    def backend(graph, _):
        kept.append(graph)
        return graph.forward

    compiled = torch.compile(weights, backend=backend, fullgraph=True)
    assert torch.equal(compiled(*arrays), weights(*arrays))
    assert REGISTERED in {node.target for node in kept[0].graph.nodes}


def test_what_records_meets_the_dispatcher(arrays):
    """A body called at once would record its own torch calls, and not the op."""
    sigma = arrays[0].requires_grad_()
    from raymarch.ops.weights import weights_forward

    got, want = weights_forward(sigma, arrays[1]), REGISTERED(sigma, arrays[1])
    assert type(got.grad_fn) is type(want.grad_fn) and got.requires_grad == want.requires_grad
    assert weights(sigma, arrays[1]).requires_grad


def test_wrong_kinds_of_arguments_are_named(arrays):
    from raymarch.ops.weights import weights_forward

    with pytest.raises(TypeError, match="weights_forward: delta is a NoneType, expected an array"):
        weights_forward(arrays[0], None)
    for wrong in (3, "a"):
        with pytest.raises(RuntimeError, match=r"weights_forward\(\) Expected .* for argument 'delta'"):
            weights_forward(arrays[0], wrong)
    with pytest.raises(
        TypeError, match=r"weights_forward\(\) missing 1 required positional argument: 'delta'"
    ):
        weights_forward(arrays[0])
