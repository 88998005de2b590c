"""The token table, its rows sharded over tp, as embedding and as output matrix, and the loss of logits that are sharded so.

Shapes as in `engine.parallel.tensor`; T tokens of a sequence are predicted, and C are a chunk of the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.parallel.function import Function
from engine.parallel.product import linear
from engine.parallel.tensor import ColumnLinear, ShardedParameter, ShardSpec, TensorParallel, Weights


class _ReduceFromTP(Function):
    """The sum over tp in forward, the identity in backward; gathered under sequence parallelism."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        if not tp.shards_sequence:
            ctx.mark_dirty(x)
        return tp.reduce_from_tp(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.tp.gather_from_sequence(gradient), None


def reduce_from_tp(x: Tensor, tp: TensorParallel) -> Tensor:
    """The sum over tp, with its derivative. x is overwritten. (B, S, H) → (B, s, H)"""
    return x if tp.degree == 1 else _ReduceFromTP.apply(x, tp)


class VocabParallelEmbedding(nn.Module):
    """An embedding whose rows are sharded over tp, padded to a multiple of tp. tokens (B, S) → (B, s, H)

    A rank looks up the tokens whose rows it holds, and contributes zeros for the others. `multiple`: of a rank's rows.
    """

    def __init__(self, vocab: int, hidden: int, tp: TensorParallel, std: float = 0.02, multiple: int = 1) -> None:
        super().__init__()
        self.tp, self.vocab = tp, vocab
        self.weight = ShardedParameter.of(ShardSpec((vocab, hidden), 0, std=std, multiple=multiple), tp)  # (V/tp, H)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.tp.degree == 1:
            return F.embedding(tokens, self.weight)
        rows = self.weight.shape[0]
        local = tokens - rows * self.tp.index
        not_here = (local < 0) | (local >= rows)
        x = F.embedding(local.masked_fill_(not_here, 0), self.weight)
        return _ReduceFromTP.apply(x.masked_fill(not_here.unsqueeze(-1), 0.0), self.tp)

    def chunked_loss(self, x: Tensor, bias: Tensor | None, first: int, targets: Tensor, counted: float, chunk: int) -> Tensor:
        """The table as output layer and the loss of its logits, `chunk` tokens at a time. (B, s, H) → the mean loss

        The other arguments are those of `logits` and of `vocab_parallel_cross_entropy`.
        """
        return _LossInChunks.apply(x, self.weight, bias, first, targets, self.vocab, counted, chunk, self.tp)

    def logits(self, x: Tensor, bias: nn.Parameter | None = None, first: int = 0, looked_up: bool = False) -> Tensor:
        """The table as output layer, for the rows of the sequence from `first` on. (B, s, H) → (B, S − first, V/tp)

        `looked_up`: the same backward pass includes `forward` too. Autograd then adds the two gradients of the table, so this one
        cannot be deferred.
        """
        return ColumnLinear.apply(x, Weights(self.weight, bias), self.tp, first, self.weight if looked_up else None)


class _VocabParallelCrossEntropy(Function):
    """Mean cross-entropy of logits that are sharded over tp, without gathering them.

    Two all-reduces: the largest logit (B, S), then the sum of exponentials together with the target's logit (2, B, S).
    The softmax, which backward needs, overwrites the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, vocab: int, tp: TensorParallel, counted: float) -> Tensor:
        logits = logits.detach()  # with a bias they may be a view, and a view that was modified cannot be saved for backward
        losses, local, not_here = _softmax_and_losses(logits, targets, vocab, tp)
        ctx.nothing = targets < 0 if counted < targets.numel() else None
        ctx.counted = counted
        ctx.save_for_backward(logits, local, not_here)
        return losses.mean() if ctx.nothing is None else losses.masked_fill_(ctx.nothing, 0.0).sum() / counted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax, local, not_here = ctx.saved_tensors
        _subtract_targets(softmax, local, not_here, ctx.nothing)
        return softmax.mul_(gradient / ctx.counted), None, None, None, None


def _softmax_and_losses(logits: Tensor, targets: Tensor, vocab: int, tp: TensorParallel) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrites logits (…, V/tp) with their softmax over all tp ranks.

    Returns the loss of each token (…), the column of its target (…, 1), and where this rank does not have that column (…).
    """
    columns = logits.shape[-1]  # V/tp
    first = columns * tp.index
    logits[..., max(0, vocab - first) :] = float("-inf")  # the padding is no token
    if tp.degree == 1:
        not_here = targets < 0
        local = targets.masked_fill(not_here, 0).unsqueeze(-1)
        torch.log_softmax(logits, -1, out=logits)
        losses = logits.gather(-1, local).squeeze(-1).neg_()
        logits.exp_()
        return losses, local, not_here
    largest = tp.comm.all_reduce(logits.amax(-1), "tp", "max")
    logits.sub_(largest.unsqueeze(-1))
    local = targets - first
    not_here = (local < 0) | (local >= columns)
    local = local.masked_fill_(not_here, 0).unsqueeze(-1)
    at_target = logits.gather(-1, local).squeeze(-1).masked_fill_(not_here, 0.0)
    logits.exp_()
    sums = tp.comm.all_reduce(torch.stack((logits.sum(-1), at_target)), "tp")  # (2, …)
    logits.div_(sums[0].unsqueeze(-1))
    return sums[0].log() - sums[1], local, not_here


def _subtract_targets(softmax: Tensor, local: Tensor, not_here: Tensor, nothing: Tensor | None) -> None:
    """Overwrites the softmax with the gradient of each token's loss, which is 0 for the tokens without a target, `nothing`."""
    hit = (~not_here).to(softmax.dtype).unsqueeze(-1)
    softmax.scatter_add_(-1, local, -hit)
    if nothing is not None:
        softmax.masked_fill_(nothing.unsqueeze(-1), 0.0)


def vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, vocab: int, tp: TensorParallel, counted: float | None = None
) -> Tensor:
    """Mean over the tokens with a target ≥ 0. `logits` (B, S, V/tp) are overwritten; `vocab` is the number of real tokens.

    `counted`: how many tokens have a target, if not all. It is given, so that it is not read back from the device.
    """
    return _VocabParallelCrossEntropy.apply(logits, targets, vocab, tp, counted or targets.numel())


class _LossInChunks(Function):
    """The output layer and the mean cross-entropy together, `chunk` tokens at a time, so that whole logits never exist.

    Forward computes the gradients too: a chunk's logits are overwritten with their gradient. From it follow the chunk's rows of
    the input's gradient, and what the chunk adds to the weight's gradient. Backward only scales what forward has computed. A
    forward that runs long before its backward would keep a weight gradient meanwhile, so the executor runs both in B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        first: int,
        targets: Tensor,
        vocab: int,
        counted: float,
        chunk: int,
        tp: TensorParallel,
    ) -> Tensor:
        rows = tp.gather_from_sequence(x)[:, first:]  # (B, T, H)
        batch, flat, targets = rows.shape[0], rows.flatten(0, 1), targets.flatten()  # (B·T, H), (B·T,)
        loss = torch.zeros((), device=x.device)
        # Sums over many chunks are in fp32: in bf16 the error of a weight's gradient reaches 3 % with 128 chunks.
        for_input, for_weight = torch.empty_like(flat), torch.zeros_like(weight, dtype=torch.float32)
        for_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

        def add(flat: Tensor, tokens: slice) -> None:
            """A function of its own, so that nothing of a chunk lives on into the next."""
            logits = linear(flat[tokens], weight, bias).float()  # (C, V/tp)
            losses, local, not_here = _softmax_and_losses(logits, targets[tokens], vocab, tp)
            nothing = targets[tokens] < 0 if counted < len(targets) else None
            if nothing is not None:
                losses.masked_fill_(nothing, 0.0)
            loss.add_(losses.sum(), alpha=1 / counted)
            _subtract_targets(logits, local, not_here, nothing)
            gradient = logits.mul_(1 / counted).to(weight.dtype)
            for_input[tokens].addmm_(gradient, weight, beta=0)
            if weight.dtype == torch.float32:
                for_weight.addmm_(gradient.T, flat[tokens])
            else:
                for_weight.add_(gradient.T @ flat[tokens])
            if for_bias is not None:
                for_bias.add_(gradient.sum(0))

        for number, start in enumerate(range(0, len(flat), chunk)):
            with tp.comm.recorder.loss_chunk(number):
                add(flat, slice(start, start + chunk))
        del rows, flat
        partial = for_input.view(batch, -1, x.shape[2])
        ctx.gradients = tp.reduce_from_tp(F.pad(partial, (0, 0, first, 0)) if first else partial), for_weight, for_bias
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_input, for_weight, for_bias = ctx.gradients
        del ctx.gradients  # so that a sum is freed when it was rounded
        for_weight = for_weight.mul_(gradient).to(for_input.dtype)
        for_bias = None if for_bias is None else for_bias.mul_(gradient).to(for_input.dtype)
        return for_input.mul_(gradient), for_weight, for_bias, *[None] * 6
