"""Attention, its heads sharded over tp.

Core attention is fused, which is one operation that never keeps the scores (`fused_attention`), or written, which computes the
scores explicitly, so that their S² activations can be measured (`written_attention`).

Shapes: B batch, S sequence, H hidden, A heads, G key heads, D head width. R rows of queries: S except in two-stream attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.model.position import AttentionInputs
from engine.parallel.tensor import Again, ColumnParallelLinear, RowParallelLinear, ShardedParameter, ShardSpec, TensorParallel
from engine.spec import AttentionName, ModelSpec


class Attention(nn.Module):
    """What all kinds of attention share: the sizes of heads and the output layer.

    `selective`: core attention is recomputed in backward, so that its activations are not kept.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width = spec.heads // tp.degree, spec.key_heads // tp.degree, spec.head_width
        self.queries, self.keys = spec.heads * spec.head_width, spec.key_heads * spec.head_width  # features over all tp ranks
        self.selective = selective
        self.out = RowParallelLinear(self.queries, spec.hidden, tp, std=output_std(spec), bias=spec.parts.attention_bias)

    def split(self, x: Tensor, *heads: int) -> list[Tensor]:
        """Concatenated features → one tensor for each number of heads. (B, R, n · D) → (B, heads, R, D) each"""
        parts = x.view(*x.shape[:2], -1, self.width).split_with_sizes(heads, 2)
        return [part.transpose(1, 2) for part in parts]

    def output(self, core_attention: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The output layer after core attention. → (B, r, H)"""
        if self.selective:
            mixed = checkpoint(core_attention, *tensors, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = core_attention(*tensors)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Every token attends to every token that it may see. (B, s, H) → (B, s, H)

    With fewer key heads than heads, each group of heads shares a key head (Ainslie et al. 2023).
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool, causal: bool, attention: AttentionName) -> None:
        """`causal`: a token sees itself and earlier tokens; otherwise all tokens."""
        super().__init__(spec, tp, selective)
        self.causal, self.attention, self.fused = causal, attention, attention == "fused"
        self.qkv = ColumnParallelLinear(spec.hidden, (self.queries, self.keys, self.keys), tp, bias=spec.parts.attention_bias)

    def forward(self, x: Tensor, inputs: AttentionInputs, again: Again | None = None) -> Tensor:
        """`again`: see `ColumnParallelLinear.forward`."""
        q, k, v = self.split(self.qkv(x, again), self.heads, self.key_heads, self.key_heads)
        if inputs.rotation is not None:
            rotate = inputs.rotation.by_row if self.fused else inputs.rotation
            q, k = rotate(q), rotate(k)
        if inputs.cache is not None:
            k, v = inputs.cache.extend(self, k, v)
        elif inputs.rotation is not None and self.fused:
            v = v.clone()  # otherwise the tensor from which q, k and v were split is kept for v alone
        return self.output(self.core_attention, q, k, v)

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return CORE_ATTENTION[self.attention](q, k, v, self.causal)


class CrossAttention(Attention):
    """Every token of the decoder attends to every token of the encoder. (B, s, H), (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool, attention: AttentionName) -> None:
        super().__init__(spec, tp, selective)
        self.attention = attention
        bias = spec.parts.attention_bias
        self.query = ColumnParallelLinear(spec.hidden, (self.queries,), tp, bias=bias)
        self.key_value = ColumnParallelLinear(spec.hidden, (self.keys, self.keys), tp, bias=bias)

    def forward(self, x: Tensor, memory: Tensor, again: Again | None = None) -> Tensor:
        """`again`: see `ColumnParallelLinear.forward`."""
        (q,) = self.split(self.query(x, again), self.heads)
        k, v = self.split(self.key_value(memory), self.key_heads, self.key_heads)
        return self.output(self.core_attention, q, k, v)

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return CORE_ATTENTION[self.attention](q, k, v, False)


class RelativeAttention(Attention):
    """Two-stream attention with relative positions (Dai et al. 2019, section 3.3; Yang et al. 2019). (B, r, H) → (B, r, H)

    The first S rows are the tokens. Only they have keys and values; the other rows are queries. The score of row i for token j
    is (qᵢ + u)·kⱼ + (qᵢ + v)·r, where r is the projected sinusoid of their distance. The scores are always written: torch's fused
    operation has no second term.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        super().__init__(spec, tp, selective)
        self.seq = spec.seq
        self.qkv = ColumnParallelLinear(spec.hidden, (self.queries,) * 3, tp, bias=spec.parts.attention_bias)
        self.distance = ShardedParameter.of(ShardSpec((self.queries, spec.hidden), 0), tp)
        self.content_bias = ShardedParameter.of(ShardSpec((spec.heads, self.width), 0), tp)  # u
        self.position_bias = ShardedParameter.of(ShardSpec((spec.heads, self.width), 0), tp)  # v

    def forward(self, x: Tensor, inputs: AttentionInputs, again: Again | None = None) -> Tensor:
        """`again`: see `ColumnParallelLinear.forward`."""
        assert inputs.waves is not None
        q, k, v = self.split(self.qkv(x, again), *(self.heads,) * 3)
        # Every rank has all waves and projects them to its own heads, so no collective is needed.
        (r,) = self.split(F.linear(inputs.waves, self.distance).unsqueeze(0), self.heads)  # (1, A/tp, 2S − 1, D)
        return self.output(lambda *tensors: self.core_attention(inputs, *tensors), q, k[:, :, : self.seq], v[:, :, : self.seq], r)

    def core_attention(self, inputs: AttentionInputs, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """(B, A/tp, R, D), two of (B, A/tp, S, D), (1, A/tp, 2S − 1, D) → (B, A/tp, R, D)"""
        assert inputs.distance is not None and inputs.hidden is not None
        by_content = (q + self.content_bias.unsqueeze(1)) @ k.transpose(-1, -2)  # (B, A/tp, R, S)
        by_distance = (q + self.position_bias.unsqueeze(1)) @ r.transpose(-1, -2)  # (B, A/tp, R, 2S − 1)
        index = inputs.distance.expand(-1, self.heads, -1, -1)
        scores = by_content.add_(by_distance.gather(-1, index)).mul_(1 / math.sqrt(self.width))
        return scores.masked_fill_(inputs.hidden, float("-inf")).softmax(-1) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Core attention in one operation (Dao et al. 2022). (B, A, R, D), two of (B, G, S, D) → (B, A, R, D)

    `causal`: the rows are all S tokens or the last one. For backward it keeps q, k, v, the output and one number a row, which is
    the logarithm of the sum of the exponentials of its scores. The output has the strides of q: if these are those of
    (B, R, A, D), joining the heads copies nothing.
    """
    rows, seq = q.shape[2], k.shape[2]
    assert not causal or rows in (1, seq)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and rows > 1, enable_gqa=k.shape[1] < q.shape[1])


def written_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Core attention, step by step. (B, A, R, D), two of (B, G, S, D) → (B, A, R, D)

    `causal`: the rows are the last R tokens.
    """
    b, heads, rows, width = q.shape
    groups, seq = k.shape[1], k.shape[2]
    # Heads that share a key head become more rows of it, so that keys and values are not copied.
    q = q.unflatten(1, (groups, -1)).flatten(2, 3)  # (B, G, A/G · R, D)
    scores = (q @ k.transpose(-1, -2)).mul_(1 / math.sqrt(width))  # (B, G, A/G · R, S)
    if causal:
        future = torch.ones(rows, seq, dtype=torch.bool, device=q.device).triu_(1 + seq - rows)
        scores = scores.view(b, heads, rows, seq).masked_fill_(future, float("-inf")).view(scores.shape)
    return (scores.softmax(-1) @ v).view(b, heads, rows, width)


CORE_ATTENTION: dict[AttentionName, Callable[[Tensor, Tensor, Tensor, bool], Tensor]] = {
    "fused": fused_attention,
    "written": written_attention,
}


def output_std(spec: ModelSpec) -> float:
    """Standard deviation of layers that write to the residual stream.

    With pre-norm, 2 × layers of them add up (Radford et al. 2019, 2.3). With post-norm they do not.
    """
    return 0.02 / math.sqrt(2 * spec.layers) if spec.parts.placement == "pre" else 0.02
