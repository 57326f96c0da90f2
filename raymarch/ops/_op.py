"""How a native kernel becomes a torch op: allocate, launch, return."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, cast, get_type_hints

import torch
from torch import Tensor, float64, is_grad_enabled
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import maybe_current_level
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

from raymarch import _C

try:
    from raymarch import _C64  # the same sources with double geometry: gradient checks only
except ImportError:
    _C64 = None

_library = torch.library.Library("raymarch", "DEF")


def on_gpu(x: Tensor) -> bool:
    """Whether x meets the GPU's kernels: it lies on one, or this core emulates them (csrc/emulator)."""
    return x.is_cuda or (_C.emulated and x.dtype is not torch.float64)


def launch(kernel: str, *args) -> None:
    """Run a native kernel on real tensors. Tracing asks only for shapes, so fakes do nothing.

    The first argument is a tensor or a list of them; where the op has geometry, a geometry tensor: its dtype
    picks the build.
    """
    first = args[0]
    if type(first) is list:
        first = first[0]
    if first.is_meta or (type(first) is not Tensor and isinstance(first, FakeTensor)):
        return
    core = _C64 if first.dtype is float64 else _C
    if _instead is not None:
        return _instead(core, kernel, args)
    getattr(core, kernel)(*args)


bodies: dict[str, Callable] = {}  # of every op by its name, as `op` received them
_instead: Callable[[Any, str, tuple], None] | None = None  # what runs in a kernel's place, while open


@contextmanager
def launches_through(run: Callable[[Any, str, tuple], None]) -> Iterator[None]:
    """While open, `run(core, kernel, args)` stands in for every launch; `call` makes it.

    Nothing is spent on launches while nothing of the kind is open.
    """
    global _instead
    before, _instead = _instead, run
    try:
        yield
    finally:
        _instead = before


def call(core: Any, kernel: str, args: tuple) -> None:
    """Launch a kernel, whatever stands in for launches."""
    getattr(core, kernel)(*args)


def find_non_finite(body: Callable[[], object]) -> str:
    """Run `body` with every op's results checked; name the first op that made a NaN, else an infinity.

    A density may be infinite, and its weight is 1: what is broken is what then becomes no number.
    """
    infinite: list[str] = []
    found: list[str] = []

    def checked(core: Any, kernel: str, args: tuple) -> None:
        call(core, kernel, args)
        for position, name in _outputs(core, kernel).items():
            written = args[position] if isinstance(args[position], list) else [args[position]]
            numbers = [a for a in written if a is not None and a.is_floating_point()]
            if any(bool(a.isnan().any()) for a in numbers):
                found.append(f"{kernel} ({name})")
            if not all(bool(a.isfinite().all()) for a in numbers):
                infinite.append(f"{kernel} ({name})")

    with launches_through(checked):
        body()
    return next(iter(found + infinite), "outside raymarch's ops")


@cache
def declared(core, kernel: str) -> dict[str, str]:
    """A kernel's arguments, name to kind, read from its declaration in ops.def."""
    declaration = getattr(core, kernel).__doc__.strip().splitlines()[-1]
    found = re.findall(r"(\w+(?:<.*?>+)?) (\w+)(?:, |$)", declaration)
    return {name: kind for kind, name in found}


@cache
def _outputs(core, kernel: str) -> dict[int, str]:
    """Positions and names of the arrays a kernel writes.

    What they hold beforehand says nothing: new memory may be full of NaN.
    """
    arguments = declared(core, kernel).items()
    return {i: name for i, (name, kind) in enumerate(arguments) if "Out" in kind}


# What a body may be given as its annotation says, by exact type: tensors of other kinds are the dispatcher's.
_PLAIN: dict[Any, tuple[type, ...]] = {
    Tensor: (Tensor, torch.nn.Parameter),
    Tensor | None: (Tensor, torch.nn.Parameter, type(None)),
    float: (float, int),
    int: (int,),
    bool: (bool,),
}


class Op(Protocol):
    """A registered op, as Python calls it."""

    __name__: str
    at_once: Callable[..., Any]  # the same for callers who know that nothing records gradients

    def __call__(self, *args: Any) -> Any: ...


def op(body: Callable) -> Op:
    """Register a body for every backend and, unchanged, for tracing. Its annotations are the schema.

    Returns what calls it: the body at once where the dispatcher would do nothing but call it, which takes the
    dispatcher longer than the rest of an op; the registered op where something watches, traces, transforms or
    records, and for arguments of any other type than the schema's.
    """
    name = body.__name__
    _library.define(name + torch.library.infer_schema(body, mutates_args=()))
    bodies[f"raymarch::{name}"] = body
    for key in ("CPU", "CUDA"):
        _library.impl(name, body, key)
    torch.library.register_fake(f"raymarch::{name}", body, lib=_library)
    registered = getattr(torch.ops.raymarch, name).default
    hints = get_type_hints(body)
    hints.pop("return", None)
    kinds = [_PLAIN.get(hint, ()) for hint in hints.values()]

    def at_once(*args):
        if (
            is_compiling()
            or _len_torch_dispatch_stack()
            or _len_torch_function_stack()
            or maybe_current_level() is not None
            or profiler._is_profiler_enabled
            or _get_tracing_state()
        ):
            return registered(*args)
        for x, kind in zip(args, kinds):  # noqa: B905 (a body refuses too few or too many by itself)
            if type(x) not in kind:
                return registered(*args)
        return body(*args)

    def call(*args):
        if is_grad_enabled():
            for x in args:
                if isinstance(x, Tensor) and x.requires_grad:
                    return registered(*args)
        return at_once(*args)

    call.__name__, call.at_once = name, at_once  # type: ignore[attr-defined]
    return cast(Op, call)


def differentiable(
    forward: Callable, backward: Callable, save: tuple[int, ...] = (), fixed: tuple[int, ...] = ()
) -> Callable:
    """Pair a forward op with its gradient.

    `backward(inputs, saved, grads, needs)` receives the forward's arguments, the outputs whose positions
    `save` names, one incoming gradient per output (None where nothing flows back) and one bool per
    argument; it returns one gradient (or None) per argument. Incoming gradients are contiguous. Outputs at
    the positions `fixed` have no gradient. Second derivatives and forward mode (jvp) raise a RuntimeError.
    """
    at_once = getattr(forward, "at_once", forward)

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            outputs = at_once(*inputs)
            several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            tensors = tuple(x if isinstance(x, Tensor) else None for x in inputs)
            ctx.save_for_backward(*tensors, *(several[i] for i in save))
            ctx.settings = tuple(None if isinstance(x, Tensor) else x for x in inputs)
            ctx.set_materialize_grads(False)
            if fixed:
                ctx.mark_non_differentiable(*(several[i] for i in fixed))
            return outputs

        @staticmethod
        def backward(ctx, *grads):
            if torch.is_grad_enabled():  # create_graph=True: our gradients have no gradients
                raise RuntimeError(
                    f"raymarch.{forward.__name__} is once differentiable: call without create_graph=True, or "
                    "write the second derivative in torch"
                )
            if all(g is None for g in grads):
                return tuple(None for _ in ctx.settings)
            count = len(ctx.settings)
            kept = ctx.saved_tensors
            inputs = tuple(s if t is None else t for s, t in zip(ctx.settings, kept[:count], strict=True))
            grads = tuple(None if g is None else g.contiguous() for g in grads)
            return backward(inputs, kept[count:], grads, ctx.needs_input_grad)

    def call(*inputs):
        if forward_ad._current_level >= 0:  # a plain call would lose tangents; torch refuses them here
            return Pair.apply(*inputs)
        if torch.is_grad_enabled():
            for x in inputs:  # a generator would cost as much as the rest of this function
                if isinstance(x, Tensor) and x.requires_grad:
                    return Pair.apply(*inputs)
        return at_once(*inputs)

    return call
