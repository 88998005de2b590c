"""Seconds of a stage's passes with what data parallelism adds, of messages, and of the end of a step, for many layouts at once.

Seconds of a pass are arrays (3, 5, n): see `engine.predict.speed.passes`, which reads them from ledgers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.devices import DeviceSpec
from engine.grid import Grid
from engine.optimizer import optimizer_of
from engine.predict.speed.passes import COMPUTE, DP, FORWARD, INPUTS, WEIGHTS, ModelPasses, PartName, model_passes
from engine.predict.speed.rates import Assumptions, Link, Real, link, rates, shard_links
from engine.spec import ModelSpec, WorkloadSpec


@dataclass(frozen=True)
class HeldParameters:
    """The parameters that one rank of a stage holds, for each layout. (n,) each"""

    parameters: Real
    buckets: Any  # how many; each is reduced and gathered over dp in one call
    experts: Any = 0.0  # of these parameters, those of experts, which have replicas of their own
    expert_buckets: Any = 0


class Cost:
    """Seconds of the passes of one microbatch, for each layout of a grid."""

    def __init__(
        self,
        model: ModelSpec,
        workload: WorkloadSpec,
        grid: Grid,
        device: DeviceSpec,
        assumed: Assumptions,
        passes: ModelPasses | None = None,
    ) -> None:
        """`passes`: those of the grid's layouts, where they have been read from ledgers already."""
        self.model, self.workload, self.grid, self.device, self.assumed = model, workload, grid, device, assumed
        self.bytes = 2 if workload.precision == "bf16" else 4
        self.gradient_bytes = 2 if workload.precision == workload.accumulate == "bf16" else 4
        if passes is not None:
            self.passes = passes
        self.rates = rates(device, workload.precision, assumed)
        self.t = grid.tp.astype(np.float64)
        self.b = grid.microbatch_size.astype(np.float64)
        self.cut = np.where(grid.sequence_parallel, self.t, 1.0)  # over how many ranks the rows between the blocks are sharded

    @cached_property
    def tp(self) -> Link:
        return link(self.grid, "tp", self.device, self.assumed)

    @cached_property
    def dp(self) -> Link:
        return link(self.grid, "dp", self.device, self.assumed)

    @cached_property
    def edp(self) -> Link:
        """Of the ranks that hold the same experts and shard them."""
        return link(self.grid, "edp", self.device, self.assumed)

    @cached_property
    def _shards(self) -> tuple[Link, Link]:
        """Of the ranks over which ZeRO shards, and of those that hold the same shard."""
        return shard_links(self.grid, self.device, self.assumed)

    @cached_property
    def pp(self) -> Link:
        return link(self.grid, "pp", self.device, self.assumed)

    def take(self, which: Any) -> Cost:
        """The cost of the layouts that an index, a slice or a mask selects."""
        return self.like(which, self.grid.take(which))

    def like(self, which: Any, grid: Grid) -> Cost:
        """The cost of layouts that differ from the selected ones of this grid only in what dp does."""
        return Cost(self.model, self.workload, grid, self.device, self.assumed, self.passes.take(which))

    @cached_property
    def passes(self) -> ModelPasses:
        """Raises `NotRecordedError`."""
        return model_passes(self.model, self.workload, self.grid, self.device, self.assumed)

    def layers(self, part: PartName, count: Any, again: Any) -> Real:
        """Seconds of `count` layers, of which `again` are recomputed whole, where only some are. (3, 5, n)"""
        if not self.grid.recomputed.any():
            return count * self.passes.of(part)
        again = np.where(self.grid.recomputed > 0, again, count)
        return again * self.passes.of(part) + (count - again) * self.passes.of(part, kept=True)

    # ---------------------------------------------------------------------------------------- parameters and what dp adds

    def held_parameters(self, layers: Any, first: Any, last: Any, cross: Any = 0.0) -> HeldParameters:
        """The parameters of one rank with that many layers, `cross` of them with cross-attention, or with experts.

        `first`, `last`: whether it has the embedding, the head. Arguments are numbers or (n,).
        """
        model, family = self.model, self.model.parts
        keys = model.key_heads * model.head_width
        plain, crossing = model.layer_parameters(False), model.layer_parameters(True)
        whole, table = model.vocab * model.hidden, model.padded_vocab(self.t) * model.hidden
        outer = family.outer_parameters(model.hidden, model.vocab, model.places, model.heads) - whole * (1 if family.tied else 2)
        tables = np.where(first & last & family.tied, 1, first * 1 + last * 1) * table
        having, cross = (cross, 0.0) if model.experts else (0.0, cross)
        parameters = ((layers - cross) * plain + cross * crossing + tables + (first | last) * outer) / self.t
        copied = 2 * keys * (model.hidden + (family.attention_bias != "none"))  # of one attention, what ranks may have copies of
        parameters = parameters + (layers + cross) * copied * (np.maximum(1, self.t // model.key_heads) - 1) / self.t
        parameters = parameters + layers * model.down_parameters * (1 - 1 / self.t)  # which tp does not cut
        buckets = layers + 2 * first + 2 * last
        if not model.experts:
            return HeldParameters(parameters, buckets)
        routed, other = model.expert_parameters
        router = model.experts * model.hidden  # which tp does not cut
        parameters = parameters + having * ((routed / self.grid.ep + other - router) / self.t + router)
        return HeldParameters(parameters, buckets + having, having * routed / self.grid.ep / self.t, having)

    def _over(self, dp: Link, how: Callable[[Link, Any, Any], Real], held: HeldParameters, width: int) -> Real:
        """Seconds of collectives of all parameters, `width` bytes each: of experts over their replicas, else over `dp`. (n,)"""
        whole = how(dp, (held.parameters - held.experts) * width, held.buckets - held.expert_buckets)
        return whole + how(self.edp, held.experts * width, held.expert_buckets) if self.model.experts else whole

    def with_accumulation(self, passes: Real, held: HeldParameters) -> Real:
        """The passes of a stage, with gradient accumulation and with the exposed part of ZeRO's collectives. (3, 5, n)

        ZeRO 3 gathers the values for each pass. ZeRO 2 and 3 reduce-scatter the gradients of each microbatch.
        """
        shards, _ = self._shards
        values = self._over(shards, Link.all_gather, held, self.bytes)
        gradients = self._over(shards, Link.all_gather, held, self.gradient_bytes)
        out, overlap = passes.copy(), self.assumed.dp_overlap
        out[WEIGHTS, COMPUTE] = self.weights_with_accumulation(out[WEIGHTS, COMPUTE], held)
        three, two = self.grid.zero == 3, self.grid.zero >= 2
        out[FORWARD, DP] += np.where(three, np.maximum(0.0, values - overlap * passes[FORWARD, COMPUTE]), 0.0)
        needed = np.where(three, values, 0.0) + np.where(two, gradients, 0.0)
        out[WEIGHTS, DP] += np.maximum(0.0, needed - overlap * out[INPUTS:, COMPUTE].sum(0))
        return out

    def weights_with_accumulation(self, weights: Real, held: HeldParameters) -> Real:
        """Seconds of one microbatch's W, with gradient accumulation. `weights`: seconds of its products. (n,) both

        The product writes a gradient. Another kernel reads it, and reads and writes the accumulated gradient, which may have
        another precision. If accumulation is fused, the product reads and writes the accumulated gradient itself.
        """
        if self.assumed.fused_accumulation:
            return weights + 2 * held.parameters * self.gradient_bytes / self.rates.memory
        return weights + 2 * held.parameters * (self.bytes + self.gradient_bytes) / self.rates.memory

    def reduction(self, passes: Real, held: HeldParameters) -> Real:
        """Exposed seconds of the gradient reduction over dp, once a step, under ZeRO 0 and 1, and of hybrid sharding's sum. (n,)

        The last microbatch's backward overlaps with a part of it. With ZeRO 2 and 3 that microbatch's own calls are hidden first.
        """
        size, (shards, replicas) = held.parameters * self.gradient_bytes, self._shards
        whole = self._over(self.dp, Link.all_reduce, held, self.gradient_bytes)
        share = self._over(shards, Link.all_gather, held, self.gradient_bytes)
        takes = np.select([self.grid.zero == 0, self.grid.zero == 1], [whole, share], 0.0)
        hidden = self.assumed.dp_overlap * passes[INPUTS:, COMPUTE].sum(0)
        if (self.grid.zero_replicas > 1).any():
            takes = takes + replicas.all_reduce(size / self.grid.shards, held.buckets)  # 0 where there is one replica
            values = np.where(self.grid.zero == 3, self._over(shards, Link.all_gather, held, self.bytes), 0.0)
            hidden = np.maximum(0.0, hidden - np.where(self.grid.zero >= 2, values + share, 0.0))
        return np.maximum(0.0, takes - hidden)

    def tie(self) -> Real:
        """Seconds of the all-reduce of the tied embedding's gradient between the first and the last stage. (n,)"""
        grid, model = self.grid, self.model
        apart = (grid.pp > 1) & (self._last_stage() != 0) & model.parts.tied
        pair = Link(self.pp.latency, self.pp.bandwidth, np.full(len(grid), 2.0))
        share = np.where(grid.zero >= 2, grid.shards, 1)
        return np.where(apart, pair.all_reduce(model.vocab * model.hidden / self.t * self.gradient_bytes / share), 0.0)

    def _last_stage(self) -> Any:
        """The stage that holds the last chunk: the first stage under a V-shaped schedule. (n,)"""
        return np.where(self.v_shaped, 0, self.grid.pp - 1)

    @cached_property
    def v_shaped(self) -> Any:
        return self.grid.v_shaped

    def update(self, held: HeldParameters) -> Real:
        """Seconds of the optimizer's step: it reads gradients, and reads and writes values and states. (n,)

        With an fp32 copy of the values, it is the copy that is read and written, and the values are written after that.
        """
        workload = self.workload
        states, copy = optimizer_of(workload).bytes_of_a_parameter(workload), workload.master_bytes
        moved = self.gradient_bytes + 2 * ((copy or self.bytes) + states) + (self.bytes if copy else 0)
        share = np.where(self.grid.zero >= 1, self.grid.shards, 1)
        of_experts = np.where(self.grid.zero >= 1, self.grid.shards // self.grid.ep, 1)
        return ((held.parameters - held.experts) / share + held.experts / of_experts) * moved / self.rates.memory

    def value_gather(self, held: HeldParameters) -> Real:
        """Seconds of the all-gather of updated values over dp, under ZeRO 1 and 2. (n,)"""
        gathered = self._over(self._shards[0], Link.all_gather, held, self.bytes)
        return np.where(np.isin(self.grid.zero, (1, 2)), gathered, 0.0)

    def message(self) -> Real:
        """Seconds of sending one microbatch's activations from a stage to the next. (n,)"""
        return self.pp.message(self.message_bytes()) + np.where(
            self.assumed.split_messages & (self.cut == 1) & (self.grid.pp > 1), self.tp.all_gather(self._boundary()), 0.0
        )

    def message_bytes(self) -> Real:
        """Bytes of that message that one rank sends. (n,)"""
        return self._boundary() / (self.t if self.assumed.split_messages else self.cut)

    def _boundary(self) -> Real:
        return self.b * (self.model.rows / self.grid.cp) * self.model.hidden * self.bytes * (2 if self.model.parts.encoder else 1)
