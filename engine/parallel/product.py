"""The matrix products of linear layers, by the library that is fastest for each. Autograd does not record them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGE = 2**22  # multiplications from which oneDNN is faster in a step; each call takes it 10 µs more
# With AVX2 alone MKL is as fast, and multiplies transposed matrices without a copy: a step of gpt-small takes 10% less.
_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() != "AVX2"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. (…, in), (out, in), (out) → (…, out). Its derivative is not recorded: call it where autograd does not look.

    On a CPU in fp32, torch multiplies with MKL, which uses AVX2 on processors that are not Intel's. oneDNN, which torch has for
    other types, uses what the processor has: on an AMD EPYC with AVX-512 it takes half the time.
    """
    if _is_large(x, weight.shape[0]):
        return _by_onednn(x, weight, bias)
    if x.is_contiguous():  # otherwise torch may multiply a batch of matrices
        return F.linear(x, weight, bias)
    return F.linear(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x W, in the same way. (…, out), (out, in) → (…, in)"""
    if _is_large(x, weight.shape[1]):
        return _by_onednn(x, weight.T, None)
    if x.is_contiguous():  # autograd adds to its result in place, which it does not with a view
        return x @ weight
    return (x.flatten(0, -2) @ weight).view(*x.shape[:-1], -1)


def outer(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight, in the same way. (…, out), (…, in) → (out, in)"""
    rows, columns = gradient.reshape(-1, gradient.shape[-1]).t(), x.reshape(-1, x.shape[-1])
    return _by_onednn(rows, columns.t(), None) if _is_large(gradient, x.shape[-1]) else torch.mm(rows, columns)


def _is_large(x: Tensor, times: int) -> bool:
    """Whether oneDNN multiplies, where each number of x is multiplied so many times."""
    return _ONEDNN and x.numel() * times >= _LARGE and x.is_cpu and x.dtype == torch.float32


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x.flatten(0, -2), weight, bias, "none", [], "")
    return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)
