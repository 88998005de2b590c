"""Kernel workspaces: what CPU kernels of torch allocate and free inside. A dispatch mode does not see it, the allocator does.

native_layer_norm_backward   a row of partial sums, of scale and of shift, for each thread, of which a rank has one
mm, addmm, bmm in bf16,      oneDNN's scratchpad, and copies of operands whose strides oneDNN does not take. The size depends on
oneDNN's linear layer        the processor and on the shapes. So it is measured: the multiplication is done once for each
                             shape, on zeros, if that is small. Otherwise nothing is added; such a model does not run on a CPU.
add_ of another type         the added tensor, converted to the type of the result
scatter_add_ in bf16         sums in fp32, as many as there are results
number as a tensor           8 bytes, and once more in the type of the result if that differs
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _disable_current_modes

_aten = torch.ops.aten
_LAYER_NORM_BACKWARD = _aten.native_layer_norm_backward.default
_SCATTER, _ADD_INTO = _aten.scatter_add_.default, _aten.add_.Tensor
_MULTIPLICATIONS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default)

_MOST_WORK = 2**31  # scalar multiplications that a measurement may take: a second or two

Sizes = Sequence[int]


class Workspaces:
    """Workspace sizes, each measured once."""

    def __init__(self) -> None:
        self._scratchpads: dict[tuple[Any, ...], Sizes] = {}

    def of(self, func: Any, args: tuple[Any, ...]) -> Sizes:
        """Bytes of the workspace of `func`'s kernel, if any."""
        if func is _LAYER_NORM_BACKWARD:
            return (2 * prod(args[2]) * 4,)
        if func is _ADD_INTO and isinstance(args[1], Tensor) and args[1].dtype != args[0].dtype:
            return (args[1].numel() * args[0].element_size(),)
        if func is _SCATTER and args[0].dtype == torch.bfloat16:
            return (args[0].numel() * 4,)
        if func in _MULTIPLICATIONS and args[-1].dtype == torch.bfloat16:
            return self._scratchpad(func, args, prod(args[-2].shape) * args[-1].shape[-1])
        if func.namespace == "mkldnn":
            return self._scratchpad(func, args, prod(args[0].shape) * len(args[1]))
        return ()

    def _scratchpad(self, func: Any, args: tuple[Any, ...], work: int) -> Sizes:
        key = (func, *((a.shape, a.stride()) for a in args if isinstance(a, Tensor)))
        if key not in self._scratchpads:
            self._scratchpads[key] = _taken_by(func, args) if work <= _MOST_WORK else ()
        return self._scratchpads[key]


def _taken_by(func: Any, like: tuple[Any, ...]) -> Sizes:
    """Measure what `func` allocates and frees inside, on tensors of these shapes."""
    with _disable_current_modes(), torch.no_grad():
        real = [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype).zero_() if isinstance(a, Tensor) else a for a in like]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            result: Tensor = func(*real)
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    found: list[tuple[int, int]] = []
    stack = watched.profiler.kineto_results.experimental_event_tree()
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.name == "[memory]" and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    found.sort(key=lambda event: event[0])
    sizes = [size for _, size in found]
    sizes.remove(result.nbytes)
    return (max(accumulate(sizes, initial=0)),)  # copies of operands exist together with the scratchpad
