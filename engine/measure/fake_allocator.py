"""Where a rank's memory would go: an allocator's accounting for fake tensors, which have no memory.

torch's fake tensors have shapes, types and lifetimes, and their storages have sizes, but the profiler reports nothing for them.
This dispatch mode sees every operation. A result in a new storage is an allocation. A weak reference tells when a storage is
freed. What a kernel allocates and frees inside itself is no result: `engine.measure.workspaces` measures it on this machine.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.measure.memory import ActionTime, AllocatorEvent, Events, MemoryTrace, Owned, attribute
from engine.measure.recorder import ACTION_MARK, Recorder
from engine.measure.workspaces import Workspaces

_DEVICE = torch.ops.prim.device.default
_READ = torch.ops.aten._local_scalar_dense.default
_LIFT = torch.ops.aten.lift_fresh.default
_ADD = torch.ops.aten.add.Tensor
_SCATTER, _SCATTER_INTO = torch.ops.aten.scatter_add.default, torch.ops.aten.scatter_add_.default
_MULTIPLY = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)

_WRAPPERS = ("_fn", "inner")  # frames of torch between autograd and a dispatch mode
_NUMBER = 8  # bytes of a number among tensors: torch makes a tensor of it, a double or a long


class _Sum(NamedTuple):
    """A sum of two gradients that autograd made: the storages of the first gradient and of the sum."""

    first: int
    total: int  # the C++ address of its storage
    event: int  # index of its allocation among the events, while a step is traced


class FakeAllocator(TorchDispatchMode):
    """Keeps account of the storage of every fake tensor. Enter it inside a `FakeTensorMode`.

    Storages are numbered, because C++ addresses are reused. A number that is read from a tensor is 0: a rank's memory does not
    depend on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}  # number of a storage → bytes
        self.events: list[AllocatorEvent] | None = None  # while a step is traced; storages' numbers stand for addresses
        self._watching: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # by C++ address
        self._numbers: dict[int, int] = {}  # C++ address → number
        self._next, self._operations = count(1), count()
        self._workspaces = Workspaces()
        self._multiplied: weakref.ref[Tensor] | None = None  # a result whose graph node does not exist yet
        self._sum: _Sum | None = None  # the last operation, if it was one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # half of all calls ask for a fake tensor's device
            return args[0].fake_device
        self._sum = None
        if self._multiplied is not None:
            self._count_saved_number()
        if func is _READ:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if (
            func is _SCATTER
        ):  # gather's backward, into zeros that it made; for subclasses torch does not use the in-place operation
            func = _SCATTER_INTO
        out = func(*args, **(kwargs or {}))
        before = 0 if self.events is None else len(self.events)
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, FakeTensor):
                self._account(one, func is _LIFT)
        if func is _ADD and _called_by_autograd() and is_non_overlapping_and_dense_or_false(args[0]):
            self._note_sum(args[0], out, before)
        if self.events is not None:
            self._count_workspaces(func, args)
            if func in _MULTIPLY and isinstance(args[1], float) and args[0].requires_grad and torch.is_grad_enabled():
                self._multiplied = weakref.ref(out)
        return out

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage."""
        return self._numbers[tensor.untyped_storage()._cdata]

    def _account(self, tensor: Tensor, lifted: bool) -> None:
        """Account for a result. A lifted one was allocated before (numbers of a list) or not at all (a NumPy array)."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._watching:
            return
        number, size = next(self._next), storage.nbytes()
        self._numbers[address] = number
        self._watching[address] = weakref.ref(storage, partial(self._freed, address, lifted))
        self.live[number] = size
        if not lifted:
            self._change(number, size)

    def _freed(self, address: int, lifted: bool, _: object) -> None:
        del self._watching[address]
        number = self._numbers.pop(address)
        if self._sum is not None and self._sum.first == number:
            self._add_in_place(self._sum)
            return
        size = self.live.pop(number)
        if not lifted:
            self._change(number, -size)

    def _note_sum(self, first: Tensor, total: Tensor, event: int) -> None:
        """`event`: the index of the sum's allocation among the events. A sum of no bytes has none, and is ignored."""
        if self.events is not None and len(self.events) == event:
            return
        self._sum = _Sum(self.number_of(first), total.untyped_storage()._cdata, event)

    def _add_in_place(self, done: _Sum) -> None:
        """The first gradient was freed right after the sum: only autograd held it.

        Without a dispatch mode autograd then adds in place and allocates nothing (torch/csrc/autograd/input_buffer.cpp). So the
        sum takes the place of the first gradient.
        """
        self._sum = None
        if self.events is not None:
            del self.events[done.event]
        del self.live[self._numbers[done.total]]
        self._numbers[done.total] = done.first

    def _count_workspaces(self, func: Any, args: Any) -> None:
        """Account for the workspace of the kernel, as measured on this machine."""
        for size in self._workspaces.of(func, args):
            number, operation = next(self._next), next(self._operations)
            self._change(number, size, operation)
            self._change(number, -size, operation)

    def _count_saved_number(self) -> None:
        """Autograd keeps the number that a tensor was multiplied by until its backward has run or the graph is freed."""
        assert self._multiplied is not None
        tensor, self._multiplied = self._multiplied(), None
        node = None if tensor is None else tensor.grad_fn
        if node is None or self.events is None:
            return
        number = next(self._next)
        self.live[number] = _NUMBER
        self._change(number, _NUMBER)
        node.register_hook(_Once(partial(self._free_saved_number, number)))

    def _free_saved_number(self, number: int) -> None:
        self._change(number, -self.live.pop(number))

    def resized(self, tensor: Tensor) -> None:
        """The storage of `tensor` was resized."""
        number, now = self.number_of(tensor), tensor.untyped_storage().nbytes()
        before, self.live[number] = self.live[number], now
        # As the allocator does: first the new, then the old.
        self._change(number, now)
        self._change(number, -before)

    def _change(self, number: int, size: int, operation: int = -1) -> None:
        if size and self.events is not None:
            self.events.append(AllocatorEvent(time.perf_counter_ns(), number, size, operation))

    def tracer(self, owned: Owned, recorder: Recorder, device: torch.device) -> FakeTracer:
        """A tracer in place of `engine.measure.memory.Tracer`."""
        return FakeTracer(self, owned, recorder)


class _Once:
    """A hook on a node of the graph. It calls `callback` once: after the node's backward, or when the node is freed."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._finalize = weakref.finalize(self, callback)
        self._finalize.atexit = False

    def __call__(self, *_: object) -> None:
        self._finalize()


class FakeTracer:
    """Traces the events of the fake allocator."""

    def __init__(self, allocator: FakeAllocator, owned: Owned, recorder: Recorder) -> None:
        self._owners = {allocator.number_of(t): category for category, tensors in owned.items() for t in tensors}
        self._allocator, self._recorder = allocator, recorder
        self._actions: list[ActionTime] = []
        self._regions: list[tuple[int, int]] = []
        self._before: dict[int, int] = {}
        self._memory: list[AllocatorEvent] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        self._before = {key: size for key, size in self._allocator.live.items() if size}
        self._allocator.events = self._memory
        self._recorder.mark = self._mark
        try:
            yield
        finally:
            self._recorder.mark = None
            self._allocator.events = None

    @contextmanager
    def _mark(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            end = time.perf_counter_ns()
            if name.startswith(ACTION_MARK):
                self._actions.append(ActionTime.of(name, start, end))
            else:
                self._regions.append((start, end))

    def result(self) -> MemoryTrace:
        events = Events(self._actions, sorted(self._regions), self._memory)
        return attribute(events, self._before, self._owners, sum(self._allocator.live.values()))


def _called_by_autograd() -> bool:
    """Whether the autograd engine itself called the current operation, to accumulate gradients."""
    caller = sys._getframe(2)
    while caller.f_back is not None and caller.f_code.co_name in _WRAPPERS:
        caller = caller.f_back
    return caller.f_code.co_name == "_engine_run_backward"
