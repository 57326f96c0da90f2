"""Events of a step: stages and ops with when they began and ended, on the host's clock or on the GPU's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raymarch.ops import _op
from raymarch.profiling.counting import Work, torch_work, work
from raymarch.profiling.launches import WAITING, Watching, launches_of, launches_of_torch

STEP = "step"  # the range around all of one step, or frame


@dataclass
class Event:
    """Something that took time. `begin` and `end` are seconds since recording began, once resolved."""

    kind: str  # stage or op
    name: str
    stage: str  # an op's stage, or the stage around a stage
    begin: Any
    end: Any = None
    module: str = ""  # an op's part of the model, where its arguments tell
    native: bool = True
    launches: int = 0
    waits: int = 0
    work: Work = field(default_factory=Work)

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class HostClock:
    """A CPU does what it is told when it is told."""

    def now(self) -> float:
        return time.perf_counter()

    def resolve(self, events: list[Event]) -> None:
        first = events[0].begin if events else 0.0
        for event in events:
            event.begin, event.end = event.begin - first, event.end - first

    def ahead(self) -> None:
        """Nothing to run ahead of."""


class DeviceClock:
    """Marks in the GPU's stream. `ahead` holds the stream up, so that the host's pace does not show."""

    def __init__(self, held: int = 100_000_000):
        self.held = held  # cycles, about 50 ms

    def now(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def resolve(self, events: list[Event]) -> None:
        torch.cuda.synchronize()
        if not events:
            return
        first = events[0].begin
        for event in events:
            event.begin, event.end = (first.elapsed_time(x) / 1e3 for x in (event.begin, event.end))

    def ahead(self) -> None:
        torch.cuda._sleep(self.held)


def clock_for(device: torch.device) -> HostClock | DeviceClock:
    return DeviceClock() if device.type == "cuda" else HostClock()


class Stages:
    """Records stages alone: the listener of `ranges.listening`."""

    def __init__(self, clock: HostClock | DeviceClock):
        self.clock = clock
        self.events: list[Event] = []
        self._open: list[Event] = []

    @property
    def stage(self) -> str:
        """The innermost stage that is open."""
        return self._open[-1].name if self._open else STEP

    def begin(self, stage: str) -> None:
        event = Event("stage", stage, self.stage, self.clock.now())
        self.events.append(event)
        self._open.append(event)

    def end(self, stage: str) -> None:
        self._open.pop().end = self.clock.now()

    def close(self) -> list[Event]:
        """All events in the order in which they began, in seconds."""
        self.clock.resolve(self.events)
        return self.events


class Ops(Watching):
    """While open, records every op into `stages`, beside the stages themselves.

    `modules`: addresses of parameters and of what belongs to them -> dotted names of their modules.
    """

    def __init__(self, stages: Stages, modules: Mapping[int, str], shapes: Mapping[tuple, str]):
        super().__init__()
        self.stages, self.modules, self.shapes = stages, modules, shapes

    def _record(self, event: Event, body: Callable[[], Any]) -> Any:
        """Time the body alone; what is counted beside it is not timed."""
        self.stages.events.append(event)
        event.begin = self.stages.clock.now()
        try:
            return body()
        finally:
            event.end = self.stages.clock.now()

    def native(self, core: Any, kernel: str, args: tuple) -> None:
        event = Event("op", kernel, self.stages.stage, None)
        event.module = self._module(args)
        event.launches, event.work = launches_of(core, kernel, args), work(core, kernel, args)
        self._record(event, lambda: _op.call(core, kernel, args))

    def torch_op(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        event = Event("op", name, self.stages.stage, None, native=False)
        result = self._record(event, lambda: func(*args, **kwargs))
        event.launches = launches_of_torch(func, name, args, result)
        event.waits = int(name in WAITING)
        if event.launches or event.waits:
            event.work = torch_work(name, (args, kwargs), result)
        else:  # a view, or memory that nobody has written yet
            self.stages.events.pop()
        return result

    def _module(self, args: tuple) -> str:
        """Whose parameters are among the arguments, or, for a gradient in memory of its own, their shape."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        for tensor in tensors:
            if (name := self.modules.get(tensor.data_ptr())) is not None:
                return name
        for tensor in tensors:
            if (name := self.shapes.get(tuple(tensor.shape))) is not None:
                return name
        return ""


def addresses(
    model: nn.Module, more: Mapping[nn.Parameter, Tensor] | None = None
) -> tuple[dict[int, str], dict[tuple, str]]:
    """Where a model's parameters and tables' copies lie, and the shapes that only one table has.

    `more`: parameter -> another array of the same owner, such as its sum of gradients.
    """
    found: dict[int, str] = {}
    shapes: dict[tuple, list[str]] = {}
    more = more or {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        found[parameter.data_ptr()] = owner
        if parameter in more:
            found[more[parameter].data_ptr()] = owner
        if name.endswith(".table"):
            shapes.setdefault(tuple(parameter.shape), []).append(owner)
    for name, buffer in model.named_buffers():
        if name.endswith(".stored") and buffer is not None:
            found[buffer.data_ptr()] = name.rpartition(".")[0]
    return found, {shape: owners[0] for shape, owners in shapes.items() if len(owners) == 1}
