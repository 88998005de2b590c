"""The parts of a Transformer layer, each cut over tp by the groups it is given. Shapes: B, S, H hidden, A heads, D = H/A."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.parallel.tensor import ColumnParallelLinear, Cut, RowParallelLinear, ShardedParameter, TensorParallel
from engine.spec import ModelSpec


class LayerNorm(nn.Module):
    """Whole on every tp rank."""

    def __init__(self, width: int, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = ShardedParameter.of(Cut((width,), draw="ones"), tp)
        self.bias = ShardedParameter.of(Cut((width,), draw="zeros"), tp)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what came before; heads are cut over tp. (B, s, H) → (B, s, H)

    Written out, scores and all, so that the S² term of the activations can be seen and measured.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        """`selective`: compute the attention proper again in backward rather than keep what it holds, S² of it."""
        super().__init__()
        self.heads, self.width, self.selective = spec.heads // tp.degree, spec.head_width, selective
        self.qkv = ColumnParallelLinear(spec.hidden, (spec.hidden,) * 3, tp)
        self.out = RowParallelLinear(spec.hidden, spec.hidden, tp, std=output_std(spec))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B, S, 3H/tp)
        b, s, _ = qkv.shape
        q, k, v = qkv.view(b, s, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)  # each (B, A/tp, S, D)
        mixed = checkpoint(self.mix, q, k, v, use_reentrant=False, preserve_rng_state=False) if self.selective else self.mix(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, s, -1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention proper. Each (B, A/tp, S, D) → (B, A/tp, S, D)"""
        s = q.shape[-2]
        scores = (q @ k.transpose(-1, -2)).mul_(1 / math.sqrt(self.width))  # (B, A/tp, S, S)
        future = torch.ones(s, s, dtype=torch.bool, device=q.device).triu_(1)
        return scores.masked_fill_(future, float("-inf")).softmax(-1) @ v


class MLP(nn.Module):
    """Two linear layers with GELU between; the inner width is cut over tp. (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.inner = ColumnParallelLinear(spec.hidden, (spec.ffn_width,), tp)
        self.out = RowParallelLinear(spec.ffn_width, spec.hidden, tp, std=output_std(spec))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(x), approximate="tanh"))  # (B, S, F/tp) inside


class Layer(nn.Module):
    """A pre-norm Transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(spec.hidden, tp)
        self.attention = CausalSelfAttention(spec, tp, selective)
        self.mlp_norm = LayerNorm(spec.hidden, tp)
        self.mlp = MLP(spec, tp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def output_std(spec: ModelSpec) -> float:
    """Spread of the layers that write to the residual stream: 2 × layers of them add up (Radford et al. 2019, 2.3)."""
    return 0.02 / math.sqrt(2 * spec.layers)
