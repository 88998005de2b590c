"""The gradients of linear layers, which are added up here and not by autograd: at once, or deferred until W."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from engine.parallel.product import outer

# weight → the computation of its gradient, which adds it up, in order of backward
DeferredWeightGradients = dict[nn.Parameter, Callable[[], None]]


class LinearGradients:
    """Adds the gradients of linear layers to `grad` of their parameters, which autograd does not see.

    A zero-bubble schedule computes weight gradients in W, not in I (Qi et al. 2023).
    """

    def __init__(self) -> None:
        self.added: Callable[[nn.Parameter], None] | None = None  # called after each gradient, if there is one
        self._waiting: DeferredWeightGradients | None = None

    @contextmanager
    def collect(self) -> Iterator[DeferredWeightGradients]:
        """Inside this context, backward computes no weight gradient of a linear layer. It stores the computation instead."""
        self._waiting = {}
        try:
            yield self._waiting
        finally:
            self._waiting = None

    @property
    def defers(self) -> bool:
        return self._waiting is not None

    def add(self, weight: nn.Parameter, gradient: Tensor, x: Tensor) -> None:
        """Add the gradient of `weight` (out, in) at once. `gradient` (N, out), `x` (…, in) of as many rows."""
        _accumulate(weight, outer(gradient, x))
        if self.added is not None:
            self.added(weight)

    def add_or_defer(self, weight: nn.Parameter, gradient: Tensor, x: Callable[[], Tensor]) -> None:
        """Add the gradient of `weight` (out, in), or store its computation. `gradient` (B, S, out), `x` (B, S, in)."""
        self.add_or_defer_product(weight, lambda: outer(gradient, x()))

    def add_or_defer_product(self, weight: nn.Parameter, product: Callable[[], Tensor]) -> None:
        """The same, where `product` computes the gradient, of the shape of `weight`."""
        if self._waiting is None:
            self._add(weight, product)
        else:
            assert weight not in self._waiting, "a weight that is used twice is left to autograd"
            self._waiting[weight] = partial(self._add, weight, product)

    def _add(self, weight: nn.Parameter, product: Callable[[], Tensor]) -> None:
        _accumulate(weight, product())
        if self.added is not None:
            self.added(weight)

    def add_bias(self, bias: nn.Parameter | None, gradient: Tensor) -> None:
        """Add the gradient of `bias` (out), if there is one. `gradient` (B, S, out), or (N, out)."""
        if bias is not None:
            _accumulate(bias, (gradient if gradient.dim() == 2 else gradient.flatten(0, -2)).sum(0))
            if self.added is not None:
                self.added(bias)


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    so_far = parameter.grad
    if so_far is None:
        parameter.grad = gradient
    else:
        so_far.add_(gradient)


class LayerInput:
    """The input `y` of a row-parallel layer in backward: x, or what `between` makes of it, computed again with its graph."""

    def __init__(self, x: Tensor, between: Callable[[Tensor], Tensor] | None) -> None:
        self.x, self.y, self._result = x, x, None
        if between is not None:
            with torch.enable_grad():
                self._result = between(x.requires_grad_())
            self.y = self._result.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of x from that of y. The graph is freed."""
        if self._result is None:
            return gradient
        result, self._result = self._result, None
        return torch.autograd.grad(result, self.x, gradient)[0]
