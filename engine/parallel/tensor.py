"""Tensor parallelism: layers whose weights are cut over tp, and the collectives that make them one layer again.

A column-parallel layer cuts its output features, a row-parallel layer its input features. One after the other they need a
single all-reduce forward (after the row-parallel) and a single one backward (before the column-parallel).
Source: Shoeybi et al. 2019, Megatron-LM, section 3. Shapes: B batch, S sequence, H hidden, tp the number of slices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from engine.parallel.comm import Comm


@dataclass(frozen=True)
class Cut:
    """How a rank's slice is cut from the whole of a parameter, and how the whole is drawn.

    `dim` None: every rank of the tp group holds the whole. Otherwise that dimension consists of `blocks` (sizes that add up
    to it; q, k and v of a fused weight are three), each padded with zeros to a multiple of tp and cut on its own.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    blocks: tuple[int, ...] = ()
    draw: Literal["normal", "zeros", "ones"] = "normal"
    std: float = 0.02

    def take(self, whole: Tensor, index: int, of: int) -> Tensor:
        """Slice `index` of `of`."""
        if self.dim is None or of == 1:
            return whole
        parts = []
        for block in whole.split(self.blocks or (self.shape[self.dim],), self.dim):
            size = -(-block.shape[self.dim] // of)
            part = block.narrow(self.dim, min(index * size, block.shape[self.dim]), 0)
            if index * size < block.shape[self.dim]:
                part = block.narrow(self.dim, index * size, min(size, block.shape[self.dim] - index * size))
            missing = size - part.shape[self.dim]
            if missing:
                padding = [0, 0] * (whole.dim() - 1 - self.dim) + [0, missing]
                part = F.pad(part, padding)
            parts.append(part)
        return torch.cat(parts, self.dim)

    def join(self, slices: list[Tensor]) -> Tensor:
        """Put the slices of all tp ranks together again; the padding is dropped."""
        if self.dim is None or len(slices) == 1:
            return slices[0]
        sizes = self.blocks or (self.shape[self.dim],)
        padded = [-(-size // len(slices)) for size in sizes]
        pieces = [s.split(padded, self.dim) for s in slices]
        blocks = [torch.cat([p[b] for p in pieces], self.dim).narrow(self.dim, 0, sizes[b]) for b in range(len(sizes))]
        return torch.cat(blocks, self.dim)


class ShardedParameter(nn.Parameter):
    """A parameter that knows how it was cut. Its values are set by `draw`."""

    cut: Cut

    @staticmethod
    def of(cut: Cut, comm: Comm) -> ShardedParameter:
        tp = comm.mesh.tp
        shape = list(cut.shape)
        if cut.dim is not None:
            shape[cut.dim] = sum(-(-size // tp) for size in cut.blocks or (cut.shape[cut.dim],))
        parameter = ShardedParameter(torch.empty(shape, device=comm.device))
        parameter.cut = cut
        return parameter

    def draw(self, name: str, seed: int, index: int, of: int) -> None:
        """Fill with slice `index` of `of` of the whole, which is drawn from a seed made of its full name.

        So every layout starts from the same model, whichever rank holds what.
        """
        whole = torch.empty(self.cut.shape)
        if self.cut.draw == "normal":
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            whole.normal_(0.0, self.cut.std, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))
        else:
            whole.fill_(1.0 if self.cut.draw == "ones" else 0.0)
        with torch.no_grad():
            self.copy_(self.cut.take(whole, index, of))


# -------------------------------------------------------------------------------------------- the two conjugate operators


class _CopyToSlices(Function):
    """Forward nothing, backward an all-reduce: every slice reads the same input, so its gradients add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # In place: the gradient is the fresh output of the one matrix product that reads this operator's output.
        return ctx.comm.all_reduce(gradient.contiguous(), "tp"), None


class _SumOfSlices(Function):
    """Forward an all-reduce, backward nothing: each slice contributes a part of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm) -> Tensor:
        ctx.mark_dirty(x)
        return comm.all_reduce(x, "tp")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def copy_to_slices(x: Tensor, comm: Comm) -> Tensor:
    return _CopyToSlices.apply(x, comm) if comm.mesh.tp > 1 else x


def sum_of_slices(x: Tensor, comm: Comm) -> Tensor:
    return _SumOfSlices.apply(x, comm) if comm.mesh.tp > 1 else x


# ------------------------------------------------------------------------------------------------------------- the layers


class ColumnParallelLinear(nn.Module):
    """y = x Wᵀ + b with the output features cut over tp. (B, S, in) → (B, S, out/tp)

    `blocks`: the output is several features side by side (q, k, v), each cut on its own.
    """

    def __init__(self, inputs: int, outputs: tuple[int, ...], comm: Comm) -> None:
        super().__init__()
        self.comm = comm
        self.weight = ShardedParameter.of(Cut((sum(outputs), inputs), 0, outputs), comm)
        self.bias = ShardedParameter.of(Cut((sum(outputs),), 0, outputs, "zeros"), comm)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(copy_to_slices(x, self.comm), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y = x Wᵀ + b with the input features cut over tp. (B, S, in/tp) → (B, S, out), the same on every tp rank.

    The bias is whole on every rank and added once, after the sum.
    """

    def __init__(self, inputs: int, outputs: int, comm: Comm, std: float) -> None:
        super().__init__()
        self.comm = comm
        self.weight = ShardedParameter.of(Cut((outputs, inputs), 1, std=std), comm)
        self.bias = ShardedParameter.of(Cut((outputs,), draw="zeros"), comm)

    def forward(self, x: Tensor) -> Tensor:
        return sum_of_slices(F.linear(x, self.weight), self.comm) + self.bias


class VocabParallelEmbedding(nn.Module):
    """A lookup table whose rows are cut over tp, padded to a multiple of tp. tokens (B, S) → (B, S, H)

    A rank looks up the tokens whose rows it holds and contributes zeros for the others.
    """

    def __init__(self, vocab: int, hidden: int, comm: Comm) -> None:
        super().__init__()
        self.comm, self.vocab = comm, vocab
        self.weight = ShardedParameter.of(Cut((vocab, hidden), 0), comm)  # (V/tp, H)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.comm.mesh.tp == 1:
            return F.embedding(tokens, self.weight)
        rows = self.weight.shape[0]
        local = tokens - rows * self.comm.at.tp
        elsewhere = (local < 0) | (local >= rows)
        x = F.embedding(local.masked_fill_(elsewhere, 0), self.weight)
        return sum_of_slices(x.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.comm)

    def logits(self, x: Tensor) -> Tensor:
        """The same table as output layer. (B, S, H) → (B, S, V/tp)"""
        return F.linear(copy_to_slices(x, self.comm), self.weight)


class _VocabParallelCrossEntropy(Function):
    """Mean cross-entropy over all tokens of logits that are cut over tp, without gathering them.

    Two all-reduces of B × S numbers: the largest logit, then the sum of exponentials together with the target's logit.
    The logits' own storage is used up and becomes the softmax, which is what backward needs.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, vocab: int, comm: Comm) -> Tensor:
        columns = logits.shape[-1]  # V/tp
        first = columns * comm.at.tp
        logits[..., max(0, vocab - first) :] = float("-inf")  # the padding is no token
        largest = comm.all_reduce(logits.amax(-1), "tp", "max")  # (B, S)
        logits.sub_(largest.unsqueeze(-1))
        local = targets - first
        elsewhere = (local < 0) | (local >= columns)
        local = local.masked_fill_(elsewhere, 0).unsqueeze(-1)  # (B, S, 1)
        at_target = logits.gather(-1, local).squeeze(-1).masked_fill_(elsewhere, 0.0)
        logits.exp_()
        sums = comm.all_reduce(torch.stack((logits.sum(-1), at_target)), "tp")  # (2, B, S)
        loss = (sums[0].log() - sums[1]).mean()
        ctx.save_for_backward(logits.div_(sums[0].unsqueeze(-1)), local, elsewhere)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        softmax, local, elsewhere = ctx.saved_tensors
        hit = (~elsewhere).to(softmax.dtype).unsqueeze(-1)
        softmax.scatter_add_(-1, local, -hit)
        return softmax.mul_(gradient / local.numel()), None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, vocab: int, comm: Comm) -> Tensor:
    """Mean over (B, S). `logits` (B, S, V/tp) are consumed; `vocab` is the number of real tokens."""
    return _VocabParallelCrossEntropy.apply(logits, targets, vocab, comm)
