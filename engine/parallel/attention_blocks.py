"""Attention of some queries to some keys, as one block of several whose results are mixed: forward and backward.

A block gives its mixture of the values and, of each row, the logarithm of the sum of the exponentials of its scores (lse). In
backward the lse and the output of the whole row give the gradients of a block by itself (Dao et al. 2022).

Shapes: B batch, A heads, G key heads, r rows of queries, c columns of keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Pair(Protocol):
    """`rows`: which of the queries. `masked`: row i sees columns up to i."""

    @property
    def rows(self) -> slice: ...

    @property
    def masked(self) -> bool: ...


class Blocks(Protocol):
    """Blocks come in the same order in forward and in backward. `kept`: tensors that backward needs."""

    kept: Sequence[Tensor]

    def forward(self, pair: Pair, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A, r, D), two of (B, G, c, D) → (B, A, r, D), (B, A, r) in fp32"""
        ...

    def backward(
        self, pair: Pair, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`gradient`, `out`, `lse`: of all rows. The gradients of q, k and v."""
        ...


def blocks_of(q: Tensor, k: Tensor, causal: bool, fused: bool, cp: int, kept: Sequence[Tensor] | None = None) -> Blocks:
    """`kept`: in backward, what forward kept. torch's fused operation for a CPU is not there on a GPU: blocks are written."""
    if fused:
        return WrittenBlocks(()) if q.is_cuda else FusedBlocks()
    if kept is not None:
        return WrittenBlocks(kept)
    b, heads, s, _ = q.shape
    if not causal:
        return WrittenBlocks([q.new_empty((cp, b, heads, s, k.shape[2]))])
    half = b, heads, s // 2, s // 2  # of blocks there are 3 of this rank, and 2 of each other one
    return WrittenBlocks([q.new_empty((1, *half)), q.new_empty((2 * cp, *half))])


class Mixture:
    """Blocks added up: the mixture of all values that a row sees, in fp32. It has the strides of (B, r, A, D)."""

    def __init__(self, q: Tensor) -> None:
        b, heads, rows, width = q.shape
        self._out = torch.zeros((b, rows, heads, width), device=q.device).transpose(1, 2)
        self._lse = torch.full((b, heads, rows), float("-inf"), device=q.device)

    def add(self, rows: slice, more: Tensor, more_lse: Tensor) -> None:
        out, lse = self._out[:, :, rows], self._lse[:, :, rows]
        out.lerp_(more.float(), torch.sigmoid(more_lse - lse).unsqueeze(-1))
        lse.copy_(torch.logaddexp(lse, more_lse))

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self._out.to(dtype), self._lse


class FusedBlocks:
    """By torch's fused operation for a CPU, which keeps no scores."""

    kept: Sequence[Tensor] = ()

    def forward(self, pair: Pair, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, pair.masked)
        return out, lse

    def backward(
        self, pair: Pair, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, out, lse = (x[:, :, pair.rows] for x in (gradient, out, lse))
        found: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, lse, 0.0, pair.masked
        )
        return found


class WrittenBlocks:
    """Step by step. The scores go to `kept`, from one block to the next; if it is empty, backward computes them again."""

    def __init__(self, kept: Sequence[Tensor]) -> None:
        self.kept = kept
        self._places = iter([place for several in kept for place in several])

    def forward(self, pair: Pair, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._scores(pair, q, k)
        lse = scores.float().logsumexp(-1, keepdim=True)
        out = (scores - lse).exp_().to(q.dtype) @ v.flatten(0, 1)
        return out.view(q.shape), lse.view(q.shape[:3])

    def backward(
        self, pair: Pair, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, out, lse = (x[:, :, pair.rows] for x in (gradient, out, lse))
        groups = k.shape[1]
        scores = self._by_group(next(self._places), groups) if self.kept else self._scores(pair, q, k)
        of_query, of_keys = q.shape, k.shape
        weights = (scores - self._by_group(lse.unsqueeze(-1), groups)).exp_().to(q.dtype)  # (B · G, A/G · r, c)
        of_rows = self._by_group((gradient * out).sum(-1, keepdim=True), groups)
        gradient, q, k, v = self._by_group(gradient, groups), self._by_group(q, groups), k.flatten(0, 1), v.flatten(0, 1)
        for_values = weights.transpose(1, 2) @ gradient
        for_scores = (gradient @ v.transpose(1, 2)).sub_(of_rows).mul_(weights).mul_(1 / math.sqrt(q.shape[-1]))
        del weights
        for_query, for_keys = for_scores @ k, for_scores.transpose(1, 2) @ q
        return for_query.view(of_query), for_keys.view(of_keys), for_values.view(of_keys)

    def _scores(self, pair: Pair, q: Tensor, k: Tensor) -> Tensor:
        """(B, A, r, D), (B, G, c, D) → (B · G, A/G · r, c)"""
        rows, columns, width = q.shape[2], k.shape[2], q.shape[3]
        place = next(self._places) if self.kept else q.new_empty((*q.shape[:3], columns))
        scores = self._by_group(place, k.shape[1])
        keys = k.flatten(0, 1).transpose(1, 2)
        scores.baddbmm_(self._by_group(q, k.shape[1]), keys, beta=0, alpha=1 / math.sqrt(width))
        if pair.masked:
            hidden = torch.ones(rows, columns, dtype=torch.bool, device=q.device).triu_(1)
            place.masked_fill_(hidden, float("-inf"))
        return scores

    @staticmethod
    def _by_group(x: Tensor, groups: int) -> Tensor:
        """Heads that share a key head become more rows of it. (B, A, r, …) → (B · G, A/G · r, …)"""
        return x.unflatten(1, (groups, -1)).flatten(2, 3).flatten(0, 1)
