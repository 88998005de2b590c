"""Where a rank's memory would go: the bookkeeping of an allocator for tensors that have no memory.

torch's fake tensors have shapes, types and lifetimes, and their storages have a size; only the bytes are missing, so the profiler
has nothing to report. This mode sees every operation. What it returns in a storage not seen before was allocated, and a storage's
end is seen by a weak reference. What a kernel allocates and frees inside it is in no result: `engine.measure.workspaces` has it.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.measure.memory import ActionTime, Events, MemoryTrace, Owned, attribute
from engine.measure.recorder import ACTION_MARK, Recorder
from engine.measure.workspaces import Workspaces

_DEVICE = torch.ops.prim.device.default
_READ = torch.ops.aten._local_scalar_dense.default
_LIFT = torch.ops.aten.lift_fresh.default
_ADD, _ADD_INTO = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
_SCATTER, _SCATTER_INTO = torch.ops.aten.scatter_add.default, torch.ops.aten.scatter_add_.default
_MULTIPLY = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)

_WRAPPERS = ("_fn", "inner")  # what torch puts around a mode's dispatch
_NUMBER = 8  # bytes of a number among tensors: torch makes a tensor of it, a double or a long


class ShadowAllocator(TorchDispatchMode):
    """While in force, keeps account of every fake tensor's storage. To be entered inside a `FakeTensorMode`.

    A number read back from a tensor is 0: nothing that a rank does with memory depends on one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}  # storage → bytes
        self.events: list[tuple[int, int, int]] | None = None  # while a step is traced: (t_ns, storage, ± bytes)
        self._watching: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._workspaces = Workspaces()
        self._numbers = 0  # so many were kept for backward; the −n-th is the name of one
        self._multiplied: weakref.ref[Tensor] | None = None  # a result whose place in the graph is not known yet

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # of a fake tensor is half of what arrives here
            return args[0].fake_device
        if self._multiplied is not None:
            self._keep_number()
        if func is _READ:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if func is _ADD and _is_accumulation(args[0]):
            func = _ADD_INTO
        elif func is _SCATTER:  # gather's backward, into zeros of its own making; of subclasses it does not trust that they can
            func = _SCATTER_INTO
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, FakeTensor):
                self._see(one, func is _LIFT)
        if self.events is not None:
            for size in self._workspaces.of(func, args):
                self._change(0, size)
                self._change(0, -size)
            if func in _MULTIPLY and isinstance(args[1], float) and args[0].requires_grad and torch.is_grad_enabled():
                self._multiplied = weakref.ref(out)
        return out

    def _see(self, tensor: Tensor, lifted: bool) -> None:
        """Take in a result. What is lifted was allocated before, as a list's numbers, or not at all, as a NumPy array's."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._watching:
            return
        size = storage.nbytes()
        self._watching[key] = weakref.ref(storage, partial(self._end, key, lifted))
        self.live[key] = size
        if not lifted:
            self._change(key, size)

    def _end(self, key: int, lifted: bool, _: object) -> None:
        del self._watching[key]
        size = self.live.pop(key)
        if not lifted:
            self._change(key, -size)

    def _keep_number(self) -> None:
        """Autograd keeps the number that a tensor was multiplied by until the backward pass has been there, or the graph goes."""
        assert self._multiplied is not None
        tensor, self._multiplied = self._multiplied(), None
        node = None if tensor is None else tensor.grad_fn
        if node is None or self.events is None:
            return
        self._numbers -= 1
        key = self._numbers
        self.live[key] = _NUMBER
        self._change(key, _NUMBER)
        node.register_hook(_Once(partial(self._end_number, key)))

    def _end_number(self, key: int) -> None:
        self._change(key, -self.live.pop(key))

    def resized(self, tensor: Tensor) -> None:
        """The storage of `tensor` grew or shrank."""
        storage = tensor.untyped_storage()
        before, now = self.live[storage._cdata], storage.nbytes()
        self.live[storage._cdata] = now
        # As the allocator does: first the new, then the old.
        self._change(storage._cdata, now)
        self._change(storage._cdata, -before)

    def _change(self, key: int, size: int) -> None:
        if size and self.events is not None:
            self.events.append((time.perf_counter_ns(), key, size))

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
        self._owners = {t.untyped_storage()._cdata: category for category, tensors in owned.items() for t in tensors}
        self._allocator, self._recorder = allocator, recorder
        self._actions: list[ActionTime] = []
        self._doors: list[tuple[int, int]] = []
        self._before: dict[int, int] = {}
        self._memory: list[tuple[int, int, int]] = []

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
                self._doors.append((start, end))

    def result(self) -> MemoryTrace:
        events = Events(self._actions, sorted(self._doors), self._memory)
        return attribute(events, self._before, self._owners, sum(self._allocator.live.values()))


def _is_accumulation(tensor: Tensor) -> bool:
    """Whether autograd is adding a second gradient to `tensor`, which nothing else holds.

    It then adds in place, but not while a dispatch mode is in force (torch/csrc/autograd/input_buffer.cpp). The counts are those
    that a tensor has here whose only owner is autograd.
    """
    caller = sys._getframe(2)
    while caller.f_back is not None and caller.f_code.co_name in _WRAPPERS:
        caller = caller.f_back
    if caller.f_code.co_name != "_engine_run_backward":
        return False
    storage = tensor.untyped_storage()
    holders: int = tensor._use_count()  # type: ignore[attr-defined]  # its stub forgets it
    return holders <= 4 and sys.getrefcount(tensor) <= 4 and torch._C._storage_Use_Count(storage._cdata) <= 2
