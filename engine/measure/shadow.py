"""Where a rank's memory would go: the bookkeeping of an allocator for tensors that have no memory.

torch's fake tensors have shapes, types and lifetimes, and their storages have a size; only the bytes are missing, so the profiler
has nothing to report. This mode sees every operation. What it returns in a storage not seen before was allocated, and a storage's
end is seen by a weak reference. What a kernel allocates and frees inside itself is in no result: `engine.measure.workspaces` asks
this machine for it.
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

from engine.measure.memory import ActionTime, Allocation, Events, MemoryTrace, Owned, attribute
from engine.measure.recorder import ACTION_MARK, Recorder
from engine.measure.workspaces import Workspaces

_DEVICE = torch.ops.prim.device.default
_READ = torch.ops.aten._local_scalar_dense.default
_LIFT = torch.ops.aten.lift_fresh.default
_ADD = torch.ops.aten.add.Tensor
_SCATTER, _SCATTER_INTO = torch.ops.aten.scatter_add.default, torch.ops.aten.scatter_add_.default
_MULTIPLY = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)

_WRAPPERS = ("_fn", "inner")  # what torch puts around a mode's dispatch
_NUMBER = 8  # bytes of a number among tensors: torch makes a tensor of it, a double or a long


class _Sum(NamedTuple):
    """A second gradient that autograd has added to a first, by storage: where the first was, where the sum is."""

    first: int
    total: int  # the C++ address of its storage
    event: int  # the place of its allocation among the events, while a step is traced


class ShadowAllocator(TorchDispatchMode):
    """While in force, keeps account of every fake tensor's storage. To be entered inside a `FakeTensorMode`.

    Storages are numbered, because C++ addresses are used again. A number read back from a tensor is 0: nothing that a rank does
    with memory depends on one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}  # number of a storage → bytes
        self.events: list[Allocation] | None = None  # while a step is traced; storages' numbers stand for addresses
        self._watching: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # by C++ address
        self._numbers: dict[int, int] = {}  # C++ address → number
        self._next, self._operations = count(1), count()
        self._workspaces = Workspaces()
        self._multiplied: weakref.ref[Tensor] | None = None  # a result whose place in the graph is not known yet
        self._sum: _Sum | None = None  # the last operation, if it was one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # of a fake tensor is half of what arrives here
            return args[0].fake_device
        self._sum = None
        if self._multiplied is not None:
            self._keep_number()
        if func is _READ:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if func is _SCATTER:  # gather's backward, into zeros of its own making; of subclasses it does not trust that they can
            func = _SCATTER_INTO
        out = func(*args, **(kwargs or {}))
        before = 0 if self.events is None else len(self.events)
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, FakeTensor):
                self._see(one, func is _LIFT)
        if func is _ADD and _called_by_autograd() and is_non_overlapping_and_dense_or_false(args[0]):
            self._note_sum(args[0], out, before)
        if self.events is not None:
            self._take_workspaces(func, args)
            if func in _MULTIPLY and isinstance(args[1], float) and args[0].requires_grad and torch.is_grad_enabled():
                self._multiplied = weakref.ref(out)
        return out

    def number_of(self, tensor: Tensor) -> int:
        """Of the storage of a tensor that was seen."""
        return self._numbers[tensor.untyped_storage()._cdata]

    def _see(self, tensor: Tensor, lifted: bool) -> None:
        """Take in a result. What is lifted was allocated before, as a list's numbers, or not at all, as a NumPy array's."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._watching:
            return
        number, size = next(self._next), storage.nbytes()
        self._numbers[address] = number
        self._watching[address] = weakref.ref(storage, partial(self._end, address, lifted))
        self.live[number] = size
        if not lifted:
            self._change(number, size)

    def _end(self, address: int, lifted: bool, _: object) -> None:
        del self._watching[address]
        number = self._numbers.pop(address)
        if self._sum is not None and self._sum.first == number:
            self._add_in_place(self._sum)
            return
        size = self.live.pop(number)
        if not lifted:
            self._change(number, -size)

    def _note_sum(self, first: Tensor, total: Tensor, event: int) -> None:
        """`event`: the place of the sum's allocation among the events. One of no bytes has none, and goes unnoticed."""
        if self.events is not None and len(self.events) == event:
            return
        self._sum = _Sum(self.number_of(first), total.untyped_storage()._cdata, event)

    def _add_in_place(self, done: _Sum) -> None:
        """The first gradient goes as soon as the sum is there: nothing but autograd held it.

        Without a dispatch mode autograd then adds into it and allocates nothing (torch/csrc/autograd/input_buffer.cpp). So the
        sum takes the first one's place.
        """
        self._sum = None
        if self.events is not None:
            del self.events[done.event]
        del self.live[self._numbers[done.total]]
        self._numbers[done.total] = done.first

    def _take_workspaces(self, func: Any, args: Any) -> None:
        """What the kernel takes and gives back inside, as this machine says."""
        for size in self._workspaces.of(func, args):
            number, operation = next(self._next), next(self._operations)
            self._change(number, size, operation)
            self._change(number, -size, operation)

    def _keep_number(self) -> None:
        """Autograd keeps the number that a tensor was multiplied by until the backward pass has been there, or the graph goes."""
        assert self._multiplied is not None
        tensor, self._multiplied = self._multiplied(), None
        node = None if tensor is None else tensor.grad_fn
        if node is None or self.events is None:
            return
        number = next(self._next)
        self.live[number] = _NUMBER
        self._change(number, _NUMBER)
        node.register_hook(_Once(partial(self._end_number, number)))

    def _end_number(self, number: int) -> None:
        self._change(number, -self.live.pop(number))

    def resized(self, tensor: Tensor) -> None:
        """The storage of `tensor` grew or shrank."""
        number, now = self.number_of(tensor), tensor.untyped_storage().nbytes()
        before, self.live[number] = self.live[number], now
        # As the allocator does: first the new, then the old.
        self._change(number, now)
        self._change(number, -before)

    def _change(self, number: int, size: int, operation: int = -1) -> None:
        if size and self.events is not None:
            self.events.append(Allocation(time.perf_counter_ns(), number, size, operation))

    def tracer(self, owned: Owned, recorder: Recorder, device: torch.device) -> ShadowTracer:
        """To be used where the worker would use `engine.measure.memory.Tracer`."""
        return ShadowTracer(self, owned, recorder)


class _Once:
    """A hook on a node of the graph: `tell` is called when backward has been there, or else when the node goes."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._finalize = weakref.finalize(self, tell)
        self._finalize.atexit = False

    def __call__(self, *_: object) -> None:
        self._finalize()


class ShadowTracer:
    """Traces what the shadow allocator sees."""

    def __init__(self, allocator: ShadowAllocator, owned: Owned, recorder: Recorder) -> None:
        self._owners = {allocator.number_of(t): category for category, tensors in owned.items() for t in tensors}
        self._allocator, self._recorder = allocator, recorder
        self._actions: list[ActionTime] = []
        self._regions: list[tuple[int, int]] = []
        self._before: dict[int, int] = {}
        self._memory: list[Allocation] = []

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
    """Whether the operation under way is one of the autograd engine's own, which adds gradients that meet."""
    caller = sys._getframe(2)
    while caller.f_back is not None and caller.f_code.co_name in _WRAPPERS:
        caller = caller.f_back
    return caller.f_code.co_name == "_engine_run_backward"
