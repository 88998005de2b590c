from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.model.norm import LayerNorm, RMSNorm
from engine.parallel.comm import Comm
from engine.parallel.tensor import TensorParallel
from tests.model.build import CPU, fill


def grads(x, norm, gradient, run):
    """The output, and the gradients of x and of the norm's parameters."""
    x = x.clone().requires_grad_()
    for p in norm.parameters():
        p.grad = None
    y = run(x)
    y.backward(gradient)
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters())]


def test_rms_norm_equals_torchs_in_value_and_gradients(alone):
    norm = RMSNorm(32, alone)
    fill(norm)
    x, gradient = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    ours = grads(x, norm, gradient, norm)
    torchs = grads(x, norm, gradient, lambda x: F.rms_norm(x, (32,), norm.weight, 1e-5))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_a_bf16_norm_is_as_exact_as_rounding_its_result(kind):
    torch.manual_seed(0)
    low, wide = (kind(64, TensorParallel(Comm.alone(CPU), dtype=t)) for t in (torch.bfloat16, torch.float32))
    fill(low)
    for a, b in zip(low.parameters(), wide.parameters(), strict=True):
        b.data.copy_(a.detach())
    x, gradient = torch.randn(4, 64, 64).bfloat16(), torch.randn(4, 64, 64).bfloat16()
    for a, b in zip(grads(x, low, gradient, low), grads(x.float(), wide, gradient.float(), wide), strict=True):
        assert a.dtype == torch.bfloat16
        # bf16 has 8 significant bits, so rounding to the nearest is at most 2⁻⁹ off; torch's own layer norm is 2.5% off here.
        assert (a.float() - b).abs().max() <= 1.01 * 2**-9 * 2 * b.abs().max()
