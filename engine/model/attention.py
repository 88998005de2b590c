"""Attention, its heads sharded over tp.

Core attention is fused, which is one operation that never keeps the scores (`fused_attention`), or written, which computes the
scores explicitly, so that their S² activations can be measured (`written_attention`).

Shapes: B batch, S sequence, H hidden, A heads, G key heads, D head width. R rows of queries: S except in two-stream attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.model.norm import make_qk_norm
from engine.model.position import AttentionInputs, Distances, unseen
from engine.parallel.context import ContextParallel
from engine.parallel.function import Function
from engine.parallel.tensor import (
    Again,
    ColumnParallelLinear,
    RowInput,
    RowParallelLinear,
    ShardedParameter,
    ShardSpec,
    TensorParallel,
)
from engine.spec import AttentionName, ModelSpec


class Attention(nn.Module):
    """What all kinds of attention share: the sizes of heads and the output layer.

    tp cuts the heads. If there are fewer key heads than ranks, each rank has a copy of the one that its queries need.

    `selective`: core attention is recomputed in backward, so that its activations are not kept. Where attention and MLP are in
    parallel, the result is the input of the output layer: `Layer` adds up both output layers.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width = spec.heads // tp.degree, spec.keys_on_rank(tp.degree), spec.head_width
        self.queries, self.keys = spec.heads * spec.head_width, spec.key_heads * spec.head_width  # features over all tp ranks
        values = spec.heads * spec.value_width
        self.selective, self.parallel = selective, spec.parts.parallel != "none"
        self.context = ContextParallel(tp.comm, tp.context) if tp.comm.mesh.cp > 1 else None
        self.scaled = spec.parts.scaled_scores
        self.out = RowParallelLinear(values, spec.hidden, tp, std=output_std(spec), bias=spec.parts.attention_bias == "all")

    def split(self, x: Tensor, *heads: int) -> list[Tensor]:
        """Concatenated features → one tensor for each number of heads. (B, R, n · D) → (B, heads, R, D) each"""
        parts = x.view(*x.shape[:2], -1, self.width).split_with_sizes(heads, 2)
        return [part.transpose(1, 2) for part in parts]

    def output(self, core_attention: Callable[..., Tensor], *tensors: Tensor) -> Tensor | RowInput:
        """The output layer after core attention, or its input. → (B, r, H)"""
        if self.selective:
            mixed = checkpoint(core_attention, *tensors, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = core_attention(*tensors)
        out = self.out.input if self.parallel else self.out
        return out(mixed.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Every token attends to every token that it may see. (B, s, H) → (B, s, H)

    With fewer key heads than heads, each group of heads shares a key head (Ainslie et al. 2023).
    """

    def __init__(
        self, spec: ModelSpec, tp: TensorParallel, selective: bool, causal: bool, attention: AttentionName, window: int = 0
    ) -> None:
        """`causal`: a token sees itself and earlier tokens; otherwise all tokens. `window`: how many, if not all of these."""
        super().__init__(spec, tp, selective)
        self.causal, self.local = causal, window > 0
        self.window = window if window < spec.seq else 0  # a longer one hides nothing
        self.fused = attention == "fused" and spec.parts.position != "buckets"  # torch's fused operation learns no bias
        self.masked = self.window > 0 or spec.parts.position == "alibi"
        self._project(spec, tp)

    def _project(self, spec: ModelSpec, tp: TensorParallel) -> None:
        """Make what makes queries, keys and values."""
        bias = spec.parts.attention_bias != "none"
        blocks, least = (self.queries, self.keys, self.keys), (0, self.width, self.width)
        self.qkv = ColumnParallelLinear(spec.hidden, blocks, tp, bias, least)
        self.query_norm, self.key_norm = make_qk_norm(spec, False, tp), make_qk_norm(spec, True, tp)

    def forward(self, x: Tensor, inputs: AttentionInputs, again: Again | None = None) -> Tensor | RowInput:
        """`again`: see `ColumnParallelLinear.forward`."""
        q, k, v = self.split(self.qkv(x, again), self.heads, self.key_heads, self.key_heads)
        q, k = normed(q, self.query_norm), normed(k, self.key_norm)
        rotation = inputs.local_rotation if self.local and inputs.local_rotation is not None else inputs.rotation
        if rotation is not None:
            rotate = rotation.by_row if self.fused else rotation
            q, k = rotate(q), rotate(k)
        if inputs.cache is not None:
            k, v = inputs.cache.extend(self, k, v)
        elif rotation is not None and self.fused and self.key_norm is None:
            v = v.clone()  # otherwise the tensor from which q, k and v were split is kept for v alone
        return self.output(partial(self.core_attention, inputs), q, k, v)

    def core_attention(self, inputs: AttentionInputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.context is not None:
            return self.context.attention(q, k, v, self.causal, self.fused, partial(_core, self.fused, self.causal))
        if not self.fused:
            return written_attention(q, k, v, self.causal, self.scaled, self.window, inputs.distances, inputs.bias)
        if inputs.mask is None or self.masked:
            return fused_attention(q, k, v, self.causal, self.scaled, inputs.mask)
        return fused_attention(_Keep.apply(q, inputs.mask), k, v, self.causal, self.scaled)


class _Keep(Function):
    """Returns q, and keeps a mask for backward, as layers with a window do. So all layers of a model need the same memory."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return q.view_as(q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class CrossAttention(Attention):
    """Every token of the decoder attends to every token of the encoder. (B, s, H), (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool, attention: AttentionName) -> None:
        super().__init__(spec, tp, selective)
        self.attention = attention
        bias = spec.parts.attention_bias != "none"
        self.query = ColumnParallelLinear(spec.hidden, (self.queries,), tp, bias=bias)
        self.key_value = ColumnParallelLinear(spec.hidden, (self.keys, self.keys), tp, bias, (self.width, self.width))
        self.query_norm, self.key_norm = make_qk_norm(spec, False, tp), make_qk_norm(spec, True, tp)

    def forward(self, x: Tensor, memory: Tensor, again: Again | None = None) -> Tensor | RowInput:
        """`again`: see `ColumnParallelLinear.forward`."""
        (q,) = self.split(self.query(x, again), self.heads)
        k, v = self.split(self.key_value(memory), self.key_heads, self.key_heads)
        return self.output(self.core_attention, normed(q, self.query_norm), normed(k, self.key_norm), v)

    def core_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.context is not None:
            fused = self.attention == "fused"
            return self.context.attention(q, k, v, False, fused, partial(_core, fused, False))
        return CORE_ATTENTION[self.attention](q, k, v, False, self.scaled)


class RelativeAttention(Attention):
    """Two-stream attention with relative positions (Dai et al. 2019, section 3.3; Yang et al. 2019). (B, r, H) → (B, r, H)

    The first S rows are the tokens. Only they have keys and values; the other rows are queries. The score of row i for token j
    is (qᵢ + u)·kⱼ + (qᵢ + v)·r, where r is the projected sinusoid of their distance. The scores are always written: torch's fused
    operation has no second term.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, selective: bool) -> None:
        super().__init__(spec, tp, selective)
        self.seq = spec.seq
        self.qkv = ColumnParallelLinear(spec.hidden, (self.queries,) * 3, tp, bias=spec.parts.attention_bias != "none")
        self.distance = ShardedParameter.of(ShardSpec((self.queries, spec.hidden), 0), tp)
        self.content_bias = ShardedParameter.of(ShardSpec((spec.heads, self.width), 0), tp)  # u
        self.position_bias = ShardedParameter.of(ShardSpec((spec.heads, self.width), 0), tp)  # v

    def forward(self, x: Tensor, inputs: AttentionInputs, again: Again | None = None) -> Tensor | RowInput:
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
        scores = by_content.add_(by_distance.gather(-1, index))
        scores = scores.mul_(1 / math.sqrt(self.width)) if self.scaled else scores
        return scores.masked_fill_(inputs.hidden, float("-inf")).softmax(-1) @ v


def normed(x: Tensor, norm: nn.Module | None) -> Tensor:
    """Queries or keys after their norm, with the strides of (B, R, n, D). (B, n, R, D) → (B, n, R, D)"""
    return x if norm is None else norm(x.transpose(1, 2)).transpose(1, 2)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scaled: bool = True, mask: Tensor | None = None) -> Tensor:
    """Core attention in one operation (Dao et al. 2022). (B, A, R, D), two of (B, G, S, D) → (B, A, R, D)

    `causal`: the rows are all S tokens or the last one. `scaled`: scores are divided by √D. `mask`: added to the scores; it says
    what is causal. For backward it keeps q, k, v, the mask, the output and one number a row, which is the logarithm of the sum of
    the exponentials of its scores. The output has the strides of q: if these are those of (B, R, A, D), joining the heads copies
    nothing.

    Not verified on a GPU: with a mask and shared key heads torch may take its math kernel on CUDA, which writes the scores. Then
    they take memory that no prediction counts.
    """
    rows, seq = q.shape[2], k.shape[2]
    assert not causal or rows in (1, seq)
    hides, shares, scale = mask is None and causal and rows > 1, k.shape[1] < q.shape[1], None if scaled else 1.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=hides, scale=scale, enable_gqa=shares)


def written_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scaled: bool = True,
    window: int = 0,
    distances: Distances | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Core attention, step by step. (B, A, R, D), two of (B, G, S, D) → (B, A, R, D)

    `causal`: the rows are the last R tokens. `scaled`: scores are divided by √D. `window`: how many tokens each sees; 0: all
    before it. `bias`: added to the scores, (1, A, R, S).
    """
    b, heads, rows, width = q.shape
    groups, seq = k.shape[1], k.shape[2]
    # Heads that share a key head become more rows of it, so that keys and values are not copied.
    q = q.unflatten(1, (groups, -1)).flatten(2, 3)  # (B, G, A/G · R, D)
    scores = q @ k.transpose(-1, -2)  # (B, G, A/G · R, S)
    if scaled:
        scores = scores.mul_(1 / math.sqrt(width))
    if bias is not None:
        scores = scores.view(b, heads, rows, seq).add_(bias).view(scores.shape)
    if causal:
        hidden = unseen(rows, seq, window, q.device)
        by_head = scores.view(b, heads, rows, seq)
        if distances is not None:
            by_head = by_head.addcmul_(distances.ahead, distances.slopes)
        scores = by_head.masked_fill_(hidden, float("-inf")).view(scores.shape)
    return (scores.softmax(-1) @ v).view(b, heads, rows, -1)


CORE_ATTENTION: dict[AttentionName, Callable[[Tensor, Tensor, Tensor, bool, bool], Tensor]] = {
    "fused": fused_attention,
    "written": written_attention,
}


def _core(fused: bool, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (fused_attention if fused else written_attention)(q, k, v, causal, True)


def output_std(spec: ModelSpec) -> float:
    """Standard deviation of layers that write to the residual stream.

    With pre-norm, 2 × layers of them add up (Radford et al. 2019, 2.3). With norms behind them their scale does not matter.
    """
    return 0.02 / math.sqrt(2 * spec.layers) if spec.parts.placement == "pre" else 0.02
