"""The experts of a layer, in place of its MLP: a router sends each token to some of them. (B, s, H) → (B, s, H)

Shapes as in `engine.parallel.expert`; B batch, s (S, or S/tp if sharded), F inner width of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.model.attention import output_std
from engine.model.mlp import INNER, MLP
from engine.parallel.expert import Dispatch, from_experts, grouped_linear, to_experts, to_tensor_parallel
from engine.parallel.function import Function
from engine.parallel.tensor import Again, ShardedParameter, ShardSpec, TensorParallel
from engine.parallel.vocabulary import reduce_from_tp
from engine.spec import ModelSpec


class Router(nn.Module):
    """Scores every expert for each token, and chooses the best. tp does not cut it: under sequence parallelism each rank scores
    its own rows.

    `bias`: added to the scores for choosing only, where loads are kept alike so; (E,) in fp32.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.spec, self.tp = spec, tp
        self.weight = ShardedParameter.of(ShardSpec((spec.experts, spec.hidden)), tp)
        biased = spec.parts.balancing == "bias"
        self.bias = torch.zeros(spec.experts, device=tp.comm.device) if biased else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, s, H) → weights (B, s, k) in fp32, the chosen experts (B, s, k), the scores of all (B, s, E) in fp32"""
        spec, parts = self.spec, self.spec.parts
        logits = F.linear(x, self.weight).float()
        scores = logits.softmax(-1) if parts.router == "softmax" else logits.sigmoid()
        chosen = self._dealt(x) if self.tp.routing.balanced else self._chosen(scores.detach())
        weights = scores.gather(-1, chosen)
        if parts.normalized_router:
            weights = weights / weights.sum(-1, keepdim=True)
        if spec.router_scale != 1:
            weights = weights * spec.router_scale
        return weights, chosen, scores

    def _chosen(self, scores: Tensor) -> Tensor:
        """The experts with the best scores. Of groups only the best may be chosen (DeepSeek-AI 2024, DeepSeek-V2 and V3)."""
        spec = self.spec
        if self.bias is not None:
            scores = scores + self.bias
        if spec.expert_groups:
            by_group = scores.unflatten(-1, (spec.expert_groups, -1))  # (B, s, groups, E/groups)
            # Of sigmoid scores a group's best two count (V3), of softmax scores its best (V2).
            best = min(2 if spec.parts.router == "sigmoid" else 1, by_group.shape[-1])
            of_groups = by_group.topk(best, -1).values.sum(-1)
            groups = of_groups.topk(spec.chosen_groups or 1, -1).indices
            open_ = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(-1, groups, True)
            scores = by_group.masked_fill(~open_.unsqueeze(-1), float("-inf")).flatten(-2)
        return scores.topk(spec.expert_choices, -1).indices

    def _dealt(self, x: Tensor) -> Tensor:
        """Experts in turn, for this rank's rows of the sequence."""
        batch, rows = x.shape[:2]
        all_rows = rows * (self.tp.degree if self.tp.shards_sequence else 1)
        first = rows * self.tp.index if self.tp.shards_sequence else 0
        choices = torch.arange(batch * all_rows * self.spec.expert_choices, device=x.device) % self.spec.experts
        return choices.view(batch, all_rows, -1)[:, first : first + rows].contiguous()

    def with_loss(self, weights: Tensor, scores: Tensor, loads: Tensor) -> Tensor:
        """The weights, with the derivative of the auxiliary loss: rate · E · Σ of an expert's share of choices × its mean score.

        Fedus et al. 2021, section 2.2. `loads`: (E,) choices of each expert in the microbatch, over the whole sequence.
        """
        if self.spec.parts.router == "sigmoid":
            scores = scores / scores.sum(-1, keepdim=True)
        tokens = loads.sum() // self.spec.expert_choices
        shares = loads / (tokens * self.spec.expert_choices)
        loss = (scores.flatten(0, 1).sum(0) * shares).sum() * (self.spec.rate_of_balancing * self.spec.experts) / tokens
        return _WithLoss.apply(weights, loss, 1 / self.tp.routing.microbatches)


class _WithLoss(Function):
    """Returns the weights. Backward gives the loss a gradient of `share`, as if it were added to the model's loss."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor, share: float) -> Tensor:
        ctx.share, ctx.like = share, loss.new_empty(0)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.like.new_full((), ctx.share), None


class Experts(nn.Module):
    """The weights of this rank's experts: E/ep of them, their inner width cut over tp. A bucket of its own."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        width, gates = spec.expert_width, 2 if spec.parts.gated else 1
        inner = ShardSpec((spec.experts, gates * width, spec.hidden), 1, (width,) * gates, experts=True)
        out = ShardSpec((spec.experts, spec.hidden, width), 2, std=output_std(spec), experts=True)
        self.inner, self.out = ShardedParameter.of(inner, tp), ShardedParameter.of(out, tp)


class ExpertLayer(nn.Module):
    """A router, its experts, and those that every token goes to. `recomputes`: as `MLP`.

    `loads`: choices of each expert by this rank's tokens; `arrived`: rows that this rank's experts got, by the rank of the group
    that sent them, and by expert. Both since `empty`.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, number: int, recomputes: bool = False) -> None:
        """`number`: the layer's index in the model."""
        super().__init__()
        self.spec, self.tp, self.number, self.recomputes = spec, tp, number, recomputes
        self.router, self.experts = Router(spec, tp), Experts(spec, tp)
        self.shared = MLP(spec, tp, recomputes, spec.shared_ffn) if spec.shared_ffn else None
        self.between = INNER[spec.parts.inner]
        self.loads, self.arrived = [0] * spec.experts, [0] * spec.experts

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """`again` is for shared experts only: the router keeps its input, and the others are sent copies."""
        spec, tp = self.spec, self.tp
        weights, chosen, scores = self.router(x)
        chosen = tp.gather_from_sequence(chosen) if tp.shards_sequence else chosen  # (B, S, k)
        tokens = chosen.shape[0] * chosen.shape[1]
        capacity = None
        if spec.capacity_factor:
            capacity = math.ceil(spec.capacity_factor * tokens * spec.expert_choices / spec.experts)
        dispatch = Dispatch(chosen.view(tokens, -1), spec.experts, capacity, tp)
        self._count(dispatch)
        if spec.parts.balancing == "loss":
            weights = self.router.with_loss(weights, scores, dispatch.loads)
        of_rows = to_tensor_parallel(weights, tp).flatten().index_select(0, dispatch.order).to(x.dtype)  # (N,)
        whole = to_tensor_parallel(x, tp)  # (B, S, H)
        rows = whole.flatten(0, 1).index_select(0, dispatch.token)  # (N, H)
        rows = from_experts(self._run(to_experts(rows, dispatch), dispatch.counts), dispatch)
        y = torch.zeros_like(whole).view(tokens, -1).index_add(0, dispatch.token, rows * of_rows.unsqueeze(-1))
        y = reduce_from_tp(y.view(whole.shape), tp)
        return y if self.shared is None else y + self.shared(x, again)

    def _run(self, x: Tensor, counts: list[int]) -> Tensor:
        """The experts of this rank. (M, H) → (M, H), over tp to be added up"""
        inner = grouped_linear(x, self.experts.inner, counts, self.tp)
        if not self.recomputes:
            return grouped_linear(self.between(inner), self.experts.out, counts, self.tp)
        y = checkpoint(self.between, inner, use_reentrant=False, preserve_rng_state=False)
        return grouped_linear(y, self.experts.out, counts, self.tp, partial(self.between, inner))

    def _count(self, dispatch: Dispatch) -> None:
        if self.tp.comm.recorder.phase == "backward":  # the same pass, computed again
            return
        self.loads = [before + more for before, more in zip(self.loads, dispatch.all_loads, strict=True)]
        self.arrived = [before + more for before, more in zip(self.arrived, dispatch.arriving, strict=True)]

    def empty(self) -> None:
        """Count loads from here on."""
        self.loads, self.arrived = [0] * len(self.loads), [0] * len(self.arrived)


def expert_layers(chunks: Iterable[nn.Module]) -> list[ExpertLayer]:
    """Those of some chunks, in the order of the model."""
    found = [module for chunk in chunks for module in chunk.modules() if isinstance(module, ExpertLayer)]
    return sorted(found, key=lambda layer: layer.number)


def biased(layers: Iterable[ExpertLayer]) -> list[ExpertLayer]:
    """Those whose router has a bias."""
    return [layer for layer in layers if layer.router.bias is not None]


def router_biases(layers: Iterable[ExpertLayer]) -> list[Tensor]:
    """Of those that have one."""
    return [layer.router.bias for layer in layers if layer.router.bias is not None]
