"""The functions with a derivative of their own are called as torch's are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.parallel.function import Function


class _Scaled:
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.times = times
        return times * x.square() * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return 2 * ctx.times * x * weight * gradient, ctx.times * x.square() * gradient, None


class _Ours(_Scaled, Function):
    pass


class _Torchs(_Scaled, torch.autograd.Function):
    pass


def test_a_function_has_the_result_and_the_gradients_of_torchs_own() -> None:
    def results(function: Any) -> list[list[float]]:
        x, weight = torch.linspace(-1, 1, 5).requires_grad_(), torch.arange(5.0).requires_grad_()
        y = function.apply(x, weight, 3)
        y.cos().sum().backward()
        return [part.tolist() for part in (y, x.grad, weight.grad)]

    assert results(_Ours) == results(_Torchs)
