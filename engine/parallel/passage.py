"""A passage of tensors between ranks: forward one way, backward the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.parallel.function import Function

Way = Callable[[Tensor], Tensor]


class _Passage(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Way, back: Way) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        back, ctx.back = ctx.back, None  # torch frees saved tensors after backward, but not this
        return back(gradient), None, None


def passed(x: Tensor, there: Way, back: Way) -> Tensor:
    """`there(x)`. Its gradient goes `back`, which must be its transpose."""
    return _Passage.apply(x, there, back)
