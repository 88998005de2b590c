"""The matrix product of linear layers, by the library that is fastest for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGE = 2**22  # multiplications from which oneDNN is faster in a step; each call takes it 10 µs more


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. (…, in), (out, in), (out) → (…, out). Its derivative is not recorded: call it where autograd does not look.

    On a CPU in fp32, torch multiplies with MKL, which uses AVX2 on processors that are not Intel's. oneDNN, which torch has for
    other types, uses what the processor has: on an AMD EPYC with AVX-512 it takes half the time.
    """
    rows = x.flatten(0, -2)
    if x.is_cpu and x.dtype == torch.float32 and x.numel() * weight.shape[0] >= _LARGE and torch.backends.mkldnn.is_available():
        y = torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], "")
    else:
        y = F.linear(rows, weight, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)
