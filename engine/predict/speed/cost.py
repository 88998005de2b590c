"""Seconds of the passes of one microbatch through a stage, layer by layer, for many layouts at once.

A matrix product (r × k)·(k × n) takes the longer of two times (roofline, Williams et al. 2009): its 2·r·k·n FLOPs at the reached
FLOP/s of the precision, or the bytes of its operands and result at the reached memory bandwidth. fp32 is not rounded to TF32, as
in torch by default. The efficiency of attention's products is measured in 16 bits and used for fp32 too. All other operations
take the bytes that they read and write. The constants below count how often each tensor is read or written. Neighbouring
elementwise operations count as one kernel (Narayanan et al. 2021, SC21, section 4.2).

Times are arrays (4, 3, n). The first axis is the kind of pass: `FORWARD`; `RECOMPUTE`, the forward that backward runs again;
`INPUTS` and `WEIGHTS`, the two halves of backward. Each half has as many FLOPs as forward for products with weights. The second
axis is `COMPUTE`, `TP` and `DP`. The third is the layout.

Symbols: b sequences of s tokens, r = b·s rows, h hidden, q heads × width of a head, k key heads × width of a head, f the MLP's
width, a heads, V vocabulary, e bytes a number, t = tp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.devices import DeviceSpec
from engine.families import predicted
from engine.optimizer import optimizer_of
from engine.predict.grid import RECOMPUTES, Grid
from engine.predict.speed.rates import Assumptions, Link, Real, link
from engine.spec import ModelSpec, Recompute, WorkloadSpec, recomputes

FORWARD, RECOMPUTE, INPUTS, WEIGHTS = range(4)
COMPUTE, TP, DP = range(3)

# How often a tensor is read or written, in (forward, backward), by this engine's own operations (engine/model, one kernel each).
# Comments give the share of each operation, with backward's in parentheses.
# r × h for each block: norm 2 (5: its input is read again for the parameters' gradient), bias 2 (1), residual 3 (3)
_HIDDEN = (7, 9)
_NORM = 2  # of forward's, the norm's
# b·a × s × s for each attention: write the scores 1, scale 2, mask 2, softmax 2 (3), read 1 (backward reads for three products)
_SCORES = (8, 11)
# r × f: the nonlinearity; with a gate also the product with it (backward also concatenates the two gradients)
_MLP = {False: (2, 3), True: (5, 12)}
# r × q for each attention: splitting into heads and joining them again
_HEADS = (4, 6)
# r × (q + k): rotation, with an fp32 intermediate
_ROTARY = (4, 4)
# r × V in fp32: conversion to fp32 1.5, maximum 1, subtraction 2, exponential 2, sum 1, softmax 2 (subtract 1 at the target,
# scale, convert to 16 bits)
_LOGITS = (10, 4)


@dataclass(frozen=True)
class HeldParameters:
    """The parameters that one rank of a stage holds, for each layout. (n,) each"""

    parameters: Real
    buckets: Any  # how many; each is reduced and gathered over dp in one call


class Cost:
    """Seconds of the passes of one microbatch, for each layout of a grid."""

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, device: DeviceSpec, assumed: Assumptions) -> None:
        self.model, self.workload, self.grid, self.device, self.assumed = model, workload, grid, device, assumed
        self.bytes = 2 if workload.precision == "bf16" else 4
        self.gradient_bytes = 2 if workload.precision == workload.accumulate == "bf16" else 4
        self.flops = device.reached(workload.precision) * assumed.matmul_efficiency
        self.bandwidth = device.memory_bandwidth * assumed.memory_efficiency
        self.t = grid.tp.astype(np.float64)
        self.b = grid.microbatch_size.astype(np.float64)
        self.cut = np.where(grid.sequence_parallel, self.t, 1.0)  # over how many ranks the rows between the blocks are sharded
        self.full = grid.recompute == RECOMPUTES.index("full")

    @cached_property
    def tp(self) -> Link:
        return link(self.grid, "tp", self.device, self.assumed)

    @cached_property
    def dp(self) -> Link:
        return link(self.grid, "dp", self.device, self.assumed)

    @cached_property
    def pp(self) -> Link:
        return link(self.grid, "pp", self.device, self.assumed)

    def take(self, which: Any) -> Cost:
        """The cost of the layouts that an index, a slice or a mask selects."""
        return Cost(self.model, self.workload, self.grid.take(which), self.device, self.assumed)

    def zeros(self) -> Real:
        return np.zeros((4, 3, len(self.grid)))

    # ------------------------------------------------------------------------------------------------------------ a layer

    def layer(self, cross: bool = False) -> Real:
        """Seconds of one layer. `cross`: a decoder layer with cross-attention. (4, 3, n)"""
        model, t, out = self.model, self.t, self.zeros()
        rows = self.b * model.rows
        queries, keys = model.heads * model.head_width, model.key_heads * model.head_width
        inner = model.ffn_width * (2 if model.parts.inner == "swiglu" else 1)
        products = [(model.hidden, queries + 2 * keys, t), (queries, model.hidden, t)] * (2 if cross else 1)
        products += [(model.hidden, inner, t), (model.ffn_width, model.hidden, t)]
        for inputs, outputs, parts in products:
            out[[FORWARD, INPUTS, WEIGHTS], COMPUTE] += self._product(rows, inputs, outputs, parts)
        gated = model.parts.inner == "swiglu"
        for back, kind in ((0, FORWARD), (1, INPUTS)):
            between_blocks = _HIDDEN[back] * (3 if cross else 2) * model.hidden / self.cut
            in_blocks = _MLP[gated][back] * model.ffn_width + _HEADS[back] * queries * (2 if cross else 1)
            in_blocks += _ROTARY[back] * (queries + keys) if model.parts.position == "rotary" else 0
            out[kind, COMPUTE] += rows * (between_blocks + in_blocks / t) * self.bytes / self.bandwidth
        causal = model.parts.objective == "causal"
        for kind in (FORWARD, INPUTS):
            out[kind, COMPUTE] += self._attention(causal, kind) + (self._attention(False, kind) if cross else 0.0)
        self._collectives(out, blocks=3 if cross else 2)
        out[RECOMPUTE] = np.where(self.full, out[FORWARD], 0.0)
        scores = self._attention(causal, FORWARD) * (2 if cross else 1)
        out[RECOMPUTE, COMPUTE] += np.where(self.grid.recomputes("core_attn"), scores, 0.0)
        norms = rows * _NORM * (3 if cross else 2) * model.hidden / self.cut * self.bytes / self.bandwidth
        out[RECOMPUTE, COMPUTE] += np.where(self.grid.recomputes("layernorm"), norms, 0.0)
        activation = 2 * rows * _MLP[gated][0] * model.ffn_width / t * self.bytes / self.bandwidth  # twice (`engine.model.mlp`)
        out[RECOMPUTE, COMPUTE] += np.where(self.grid.recomputes("mlp_act"), activation, 0.0)
        return out

    def _product(self, rows: Any, inputs: Any, outputs: Any, parts: Any) -> Real:
        """Seconds of (rows, inputs) × (inputs, outputs), sharded over `parts` ranks; also of each product of backward. (n,)"""
        moved = (rows * (inputs + outputs) + inputs * outputs) / parts * self.bytes
        return np.maximum(2 * rows * inputs * outputs / parts / self.flops, moved / self.bandwidth)

    def _attention(self, causal: bool, kind: int) -> Real:
        """Seconds of Q·Kᵀ, softmax and P·V of one layer: 4·b·s²·q FLOPs in forward, twice as many in backward. (n,)

        Relative positions add one product with 2·s distances. With fused attention, backward computes the scores again.
        """
        model, back = self.model, kind != FORWARD
        pairs = self.b * model.rows * model.seq
        products = 4 if model.parts.position == "relative" else 2
        flops = 2 * products * pairs * model.heads * model.head_width / self.t
        rate = self.device.peak(self.workload.precision) * self.assumed.attention_efficiency
        if self.workload.attention_of(model) == "fused":  # hidden scores are not computed (Dao 2023)
            return flops * (2.5 if back else 1.0) * (0.5 if causal else 1.0) / rate
        moved = _SCORES[back] * pairs * model.heads / self.t * self.bytes
        return flops * (2 if back else 1) / rate + moved / self.bandwidth

    def _collectives(self, out: Real, blocks: int) -> None:
        """Add the collectives over tp: an all-reduce for each block, in forward and in backward.

        Under sequence parallelism it is an all-gather and a reduce-scatter, and one more all-gather for the weights' gradient
        (Korthikanti et al. 2022, section 4.2.2).
        """
        size = self.b * self.model.rows * self.model.hidden * self.bytes
        exposed = 1 - self.assumed.tp_overlap
        of_block = np.where(self.grid.sequence_parallel, 2 * self.tp.all_gather(size), self.tp.all_reduce(size))
        of_pass = blocks * of_block * exposed
        out[FORWARD, TP] += of_pass
        out[INPUTS, TP] += of_pass
        out[WEIGHTS, TP] += np.where(self.grid.sequence_parallel, blocks * self.tp.all_gather(size) * exposed, 0.0)

    # ----------------------------------------------------------------------------------------------------------- the ends

    def embedding(self) -> Real:
        """Seconds of the embedding. (4, 3, n)"""
        out, model = self.zeros(), self.model
        size = self.b * model.seq * model.hidden * self.bytes * (2 if model.parts.encoder else 1)
        out[FORWARD, COMPUTE] = 4 * size / self.cut / self.bandwidth
        out[INPUTS, COMPUTE] = 2 * out[FORWARD, COMPUTE]
        out[FORWARD, TP] = np.where(self.grid.sequence_parallel, self.tp.all_gather(size), self.tp.all_reduce(size))
        out[INPUTS, TP] = np.where(self.grid.sequence_parallel, self.tp.all_gather(size), 0.0)
        return out

    def head(self) -> Real:
        """Seconds of the head and the loss. (4, 3, n)"""
        out, model = self.zeros(), self.model
        queries = predicted("permuted", model.seq) if model.parts.objective == "permuted" else model.seq
        rows = self.b * queries
        out[[FORWARD, INPUTS, WEIGHTS], COMPUTE] += self._product(rows, model.hidden, model.vocab, self.t)
        for back, kind in ((0, FORWARD), (1, INPUTS)):
            out[kind, COMPUTE] += _LOGITS[back] * rows * model.vocab / self.t * 4 / self.bandwidth
        size = rows * model.hidden * self.bytes
        gather = np.where(self.grid.sequence_parallel, self.tp.all_gather(size), 0.0)
        out[FORWARD, TP] += gather + 3 * self.tp.all_reduce(4 * rows)
        out[INPUTS, TP] += np.where(self.grid.sequence_parallel, self.tp.all_gather(size), self.tp.all_reduce(size))
        out[WEIGHTS, TP] += gather
        return out

    # ---------------------------------------------------------------------------------------- parameters and what dp adds

    def held_parameters(self, layers: Any, first: Any, last: Any, cross: Any = 0.0) -> HeldParameters:
        """The parameters of one rank with that many layers, `cross` of them with cross-attention.

        `first`, `last`: whether it has the embedding, the head. Arguments are numbers or (n,).
        """
        model, family = self.model, self.model.parts
        queries, keys = model.heads * model.head_width, model.key_heads * model.head_width
        plain, crossing = (family.layer_parameters(model.hidden, model.ffn_width, queries, keys, kind) for kind in (False, True))
        table = model.vocab * model.hidden
        outer = family.outer_parameters(model.hidden, model.vocab, model.seq) - table * (1 if family.tied else 2)
        tables = np.where(first & last & family.tied, 1, first * 1 + last * 1) * table
        parameters = ((layers - cross) * plain + cross * crossing + tables + (first | last) * outer) / self.t
        return HeldParameters(parameters, layers + 2 * first + 2 * last)

    def with_accumulation(self, passes: Real, held: HeldParameters) -> Real:
        """The passes of a stage, with gradient accumulation and with the exposed part of ZeRO's collectives. (4, 3, n)

        ZeRO 3 gathers the values for each pass. ZeRO 2 and 3 reduce-scatter the gradients of each microbatch.
        """
        values = self.dp.all_gather(held.parameters * self.bytes, held.buckets)
        gradients = self.dp.all_gather(held.parameters * self.gradient_bytes, held.buckets)
        out, overlap = passes.copy(), self.assumed.dp_overlap
        out[WEIGHTS, COMPUTE] = self.weights_with_accumulation(out[WEIGHTS, COMPUTE], held)
        three, two = self.grid.zero == 3, self.grid.zero >= 2
        out[FORWARD, DP] += np.where(three, np.maximum(0.0, values - overlap * passes[FORWARD, COMPUTE]), 0.0)
        needed = np.where(three, values, 0.0) + np.where(two, gradients, 0.0)
        out[WEIGHTS, DP] += np.maximum(0.0, needed - overlap * out[RECOMPUTE:, COMPUTE].sum(0))
        return out

    def weights_with_accumulation(self, weights: Real, held: HeldParameters) -> Real:
        """Seconds of one microbatch's W, with gradient accumulation. `weights`: seconds of its products. (n,) both

        The product writes a gradient. Another kernel reads it, and reads and writes the accumulated gradient, which may have
        another precision. If accumulation is fused, the product reads and writes the accumulated gradient itself.
        """
        if self.assumed.fused_accumulation:
            return weights + 2 * held.parameters * self.gradient_bytes / self.bandwidth
        return weights + 2 * held.parameters * (self.bytes + self.gradient_bytes) / self.bandwidth

    def reduction(self, passes: Real, held: HeldParameters) -> Real:
        """Exposed seconds of the gradient reduction over dp, once a step, under ZeRO 0 and 1. (n,)

        The last microbatch's backward overlaps with a part of it.
        """
        size = held.parameters * self.gradient_bytes
        whole, share = self.dp.all_reduce(size, held.buckets), self.dp.all_gather(size, held.buckets)
        takes = np.select([self.grid.zero == 0, self.grid.zero == 1], [whole, share], 0.0)
        return np.maximum(0.0, takes - self.assumed.dp_overlap * passes[RECOMPUTE:, COMPUTE].sum(0))

    def tie(self) -> Real:
        """Seconds of the all-reduce of the tied embedding's gradient between the first and the last stage. (n,)"""
        grid, model = self.grid, self.model
        apart = (grid.pp > 1) & (self._last_stage() != 0) & model.parts.tied
        pair = Link(self.pp.latency, self.pp.bandwidth, np.full(len(grid), 2.0))
        share = np.where(grid.zero >= 2, grid.dp, 1)
        return np.where(apart, pair.all_reduce(model.vocab * model.hidden / self.t * self.gradient_bytes / share), 0.0)

    def _last_stage(self) -> Any:
        """The stage that holds the last chunk: the first stage under a V-shaped schedule. (n,)"""
        return np.where(self.v_shaped, 0, self.grid.pp - 1)

    @cached_property
    def v_shaped(self) -> Any:
        return self.grid.v_shaped

    def update(self, held: HeldParameters) -> Real:
        """Seconds of the optimizer's step: it reads gradients, and reads and writes master values and states. (n,)"""
        states = optimizer_of(self.workload).bytes_of_a_parameter(self.workload)
        moved = self.gradient_bytes + 2 * (4 + states) + (self.bytes if self.bytes < 4 else 0)
        share = np.where(self.grid.zero >= 1, self.grid.dp, 1)
        return held.parameters / share * moved / self.bandwidth

    def value_gather(self, held: HeldParameters) -> Real:
        """Seconds of the all-gather of updated values over dp, under ZeRO 1 and 2. (n,)"""
        gathered = self.dp.all_gather(held.parameters * self.bytes, held.buckets)
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
        return self.b * self.model.rows * self.model.hidden * self.bytes * (2 if self.model.parts.encoder else 1)


def model_flops(model: ModelSpec) -> float:
    """FLOPs of forward and backward for one sequence, without recompute: three times those of forward.

    For a GPT, 72·L·s·h²·(1 + s/(6h) + V/(12·h·L)) (Narayanan et al. 2021, SC21, appendix). Masked scores are counted too.
    """
    queries, keys = model.heads * model.head_width, model.key_heads * model.head_width
    matrices = 3 if model.parts.inner == "swiglu" else 2
    attention = model.hidden * (queries + 2 * keys) + queries * model.hidden
    crossing = model.layers - model.encoder_layers if model.parts.encoder else 0
    blocks = model.layers + crossing
    scores = (4 if model.parts.position == "relative" else 2) * model.seq * queries
    layers = blocks * (attention + scores) + model.layers * matrices * model.hidden * model.ffn_width
    queries_asked = predicted("permuted", model.seq) if model.parts.objective == "permuted" else model.seq
    return 6.0 * (model.rows * layers + queries_asked * model.hidden * model.vocab)


def recomputed_flops(model: ModelSpec, recompute: Recompute) -> float:
    """FLOPs for one sequence that backward computes again."""
    queries = model.heads * model.head_width
    blocks = model.layers + (model.layers - model.encoder_layers if model.parts.encoder else 0)
    scores = 2.0 * (4 if model.parts.position == "relative" else 2) * model.seq * queries * model.rows * blocks
    whole = model_flops(model) / 3 - 2.0 * model.hidden * model.vocab * (
        predicted("permuted", model.seq) if model.parts.objective == "permuted" else model.seq
    )
    return whole if recompute == "full" else scores if recomputes(recompute, "core_attn") else 0.0
