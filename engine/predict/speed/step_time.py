"""Seconds of a step: in closed form for many layouts, and by simulation of the pipeline for a few.

In closed form a pipeline takes m times its slowest stage, and the time of filling and draining. That depends on the schedule and
is in its record (`engine.spec.schedules`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from engine.devices import DeviceSpec
from engine.grid import Grid, Whole, distinct, recomputed_of
from engine.predict.speed.cost import Cost, HeldParameters
from engine.predict.speed.passes import COMPUTE, CP, DP, EP, FORWARD, INPUTS, TP, WEIGHTS, ModelPasses, PartName
from engine.predict.speed.rates import Assumptions, Real
from engine.schedule import Flow, Kind
from engine.schedule.simulation import SimulatedPipeline, pipeline_simulation, simulate_all
from engine.schedule.timeline import Durations
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from engine.spec.schedules import PipelineWork
from engine.topology import CALL_AXES_BY_FREQUENCY

# Rounds of pp microbatches that are simulated. All further rounds take as long as the last of these. With deferred W, it takes
# more rounds until the pipeline is steady.
_ROUNDS, _ROUNDS_DEFERRED = 2, 4
_AT_ONCE = 8192  # layouts

StageLayers = tuple[Whole, Whole, Whole]  # of the first stage, of the last, and the most of any middle one: (n,) each


PARTS = ("compute", *CALL_AXES_BY_FREQUENCY, "update", "idle")  # the fields of `StepTime` that add up to `step`


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, and of its parts: the compute of the slowest stage, and what it waits for. (n,) each"""

    step: Real
    compute: Real  # passes of the slowest stage, without communication
    tp: Real  # exposed collectives over tp
    cp: Real  # exposed collectives over cp
    pp: Real  # messages between stages that the pipeline waits for, and the all-reduce of tied weights
    dp: Real  # exposed reductions and gathers over dp
    ep: Real  # all-to-alls of tokens to their experts and back
    update: Real  # the optimizer's step
    idle: Real  # filling and draining the pipeline
    bubble: Real  # idle time of all stages ÷ the pipeline's total time, 0 to 1

    def take(self, which: Any) -> StepTime:
        return StepTime(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def joined(self, other: StepTime) -> StepTime:
        """Those of this one, and then of the other."""
        return StepTime(**{f.name: np.append(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


# ------------------------------------------------------------------------------------------------------------ in bulk


class _Work(NamedTuple):
    """Seconds of the stages: for one microbatch, and at the end of a step. (n,) each, unless a shape is given."""

    slowest: Real  # the slowest stage, by kind of pass, (3, n)
    slowest_parts: Real  # the same by `COMPUTE`, `TP`, `CP`, `EP` and `DP`, (5, n)
    slowest_whole: Real  # the same in total
    all: Real  # the sum of all stages, by kind of pass, (3, n)
    all_whole: Real  # the same in total
    other_end: Real  # embedding or head, if it is on a stage that is not the slowest
    message: Real
    ends_dp: Real  # collectives over dp at the end of a step
    update: Real
    tie: Real

    def take(self, which: Any) -> _Work:
        return _Work(*(field.take(which, axis=-1) for field in self))

    def of_pipeline(self, p: Whole, m: Whole, v: Whole) -> PipelineWork:
        """The arguments of the schedules' closed forms. `p`, `m`, `v`: stages, microbatches, chunks of a stage. (n,) each"""
        others = self.all - self.slowest
        return PipelineWork(
            p=p,
            m=m,
            v=v,
            slowest=self.slowest_whole,
            slowest_forward=self.slowest[FORWARD],
            slowest_weights=self.slowest[WEIGHTS],
            others=self.all_whole - self.slowest_whole,
            forward=others[FORWARD],
            backward=others[INPUTS],
            weights=others[WEIGHTS],
            other_end=self.other_end,
            message=self.message,
        )


def estimate(cost: Cost, layers: StageLayers | None = None) -> StepTime:
    """The step time of each layout of a grid, in closed form. `layers`: of its stages; None: as `layers_of_stages`.

    Many layouts differ only in their schedule or chunks, and their stages have the same work. This work is computed once for each
    group of such layouts. Groups are computed `_AT_ONCE` at a time, so that intermediate arrays stay small.
    """
    grid, m = cost.grid, cost.grid.microbatches
    if layers is None:
        first, group = distinct(
            grid.dp, grid.cp, grid.ep, grid.context, grid.tp, grid.pp, grid.microbatch_size, grid.zero, grid.sequence_parallel,
            grid.recompute, grid.recomputed, grid.zero_replicas, _stage_shape(cost), grid.by_schedule(lambda facts: facts.splits),
        )  # fmt: skip
        blocks = [_work(cost.take(first[start : start + _AT_ONCE])) for start in range(0, max(1, len(first)), _AT_ONCE)]
    else:
        group, blocks = np.arange(len(grid)), [_work(cost, layers)]
    work = _Work(*(np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)))
    pipeline, waits = np.empty((2, len(grid)))
    for facts, rows in grid.schedules():
        own = work.take(group[rows])
        pipeline[rows], waits[rows] = facts.pipeline(own.of_pipeline(grid.pp[rows], m[rows], grid.chunks[rows]))
    by_part, ends_dp = m * work.slowest_parts.take(group, axis=1), work.ends_dp[group]
    update, tie = work.update[group], work.tie[group]
    return StepTime(
        step=pipeline + ends_dp + update + tie,
        compute=by_part[COMPUTE],
        tp=by_part[TP],
        cp=by_part[CP],
        pp=waits + tie,
        dp=by_part[DP] + ends_dp,
        ep=by_part[EP],
        update=update,
        idle=pipeline - waits - by_part.sum(0),
        bubble=1 - m * work.all_whole[group] / (grid.pp * pipeline),
    )


def _stage_shape(cost: Cost) -> Whole:
    """A number for the effect of schedule and chunks on a stage's work: its layers, and whether it has embedding and head. (n,)

    Layouts with the same number have stages with the same layers and ends.
    """
    grid, model = cost.grid, cost.model
    first, group = distinct(grid.pp, grid.chunks, cost.v_shaped)
    few = grid.take(first)
    crossing = model.parts.encoder & (few.chunks > 1)  # see `_stages`
    _, shape = distinct(*layers_of_stages(few, model.layers), few.v_shaped, crossing)
    if not grid.recomputed.any():
        return shape[group]
    _, found = distinct(shape[group], np.where(grid.recomputed > 0, grid.chunks, 0))
    return found


def _work(cost: Cost, layers: StageLayers | None = None) -> _Work:
    stages, held, total = _stages(cost, layers or layers_of_stages(cost.grid, cost.model.layers))
    times = [stage.sum(axis=(0, 1)) for stage in stages]
    slowest = np.argmax(times, axis=0)
    one = np.choose(slowest[None, None], stages)  # (3, 5, n) of the slowest stage
    embedding, head = (
        cost.with_accumulation(passes, cost.held_parameters(0, first, not first)).sum((0, 1))
        for passes, first in ((cost.passes.of("embedding"), True), (cost.passes.of("head"), False))
    )
    return _Work(
        slowest=one.sum(1),
        slowest_parts=one.sum(0),
        slowest_whole=one.sum((0, 1)),
        all=total.sum(1),
        all_whole=total.sum((0, 1)),
        other_end=np.where(cost.v_shaped, 0.0, np.choose(slowest, [head, embedding, np.zeros_like(head)])),
        message=cost.message(),
        ends_dp=cost.reduction(stages[0], held[0]) + cost.value_gather(held[0]),
        update=cost.update(held[0]),
        tie=cost.tie(),
    )


def _stages(cost: Cost, layers: StageLayers) -> tuple[list[Real], list[HeldParameters], Real]:
    """Three stages: the first, the last, and the middle one with the most layers. `layers`: how many each has.

    Returns their passes, (3, 5, n) each, their parameters, and the sum of the passes of all stages, (3, 5, n). A stage that a
    layout does not have is zeros.
    """
    grid, model = cost.grid, cost.model
    counts = [np.asarray(count) for count in layers]
    embedding, head = (cost.passes.of(part) for part in ("embedding", "head"))
    before = model.encoder_layers or model.layers - model.expert_layers  # layers of the first kind
    decoder = model.layers - before
    alone = (grid.pp == 1) | cost.v_shaped  # both ends on the first stage
    ends = [(np.ones_like(alone), alone), (alone & False, ~alone), (alone & False, alone & False)]
    # Decoder layers of each stage. With one chunk a stage they follow from its place in the stack. With several chunks each stage
    # is taken to have the model's share of decoder layers.
    even = decoder / model.layers
    mixed = grid.chunks > 1 if model.expert_every < 2 else np.ones_like(alone)
    few = [np.maximum(0, counts[0] - before), np.minimum(counts[1], decoder), np.minimum(counts[2], decoder)]
    stages, held = [], []
    for count, single, (first, last) in zip(counts, few, ends, strict=True):
        cross = np.where(mixed, even * count, single) if decoder else np.zeros_like(count)
        passes = _layers(cost, "layer", count - cross, count) + first * embedding + last * head
        if decoder:
            passes = passes + _layers(cost, "decoder", cross, count)
        held.append(cost.held_parameters(count, first, last, cross))
        stages.append(cost.with_accumulation(passes, held[-1]))
    total = _layers(cost, "layer", model.layers - decoder, model.layers, grid.pp) + embedding + head
    if decoder:
        total = total + _layers(cost, "decoder", decoder, model.layers, grid.pp)
    everything = cost.held_parameters(model.layers, np.ones_like(alone), alone, decoder)
    second = np.where(alone, 0, model.vocab * model.hidden) / cost.t  # the last stage's own table, tied or not
    both_tables = HeldParameters(everything.parameters + second, everything.buckets)
    total[WEIGHTS, COMPUTE] = cost.weights_with_accumulation(total[WEIGHTS, COMPUTE], both_tables)
    others = np.maximum(0, grid.pp - 2)
    total[:, DP] += stages[0][:, DP] + np.where(grid.pp > 1, stages[1][:, DP], 0.0) + others * stages[2][:, DP]
    for place, missing in ((1, grid.pp < 2), (2, grid.pp < 3)):
        stages[place] *= np.where(missing, 0.0, 1.0)
    return stages, held, total


def _layers(cost: Cost, part: PartName, count: Any, among: Any, stages: Any = 1) -> Real:
    """Seconds of that many layers of a kind, on so many stages. (3, 5, n)

    `among`: layers of both kinds there. Recompute counts layers with an MLP and with experts together, and those of an encoder
    and of a decoder each by themselves. Of the former, both kinds are taken to be recomputed in equal shares.
    """
    whole = among if cost.model.experts else count
    again = recomputed_of(cost.grid.recomputed, whole, stages, cost.grid.chunks)
    return cost.layers(part, count, again * count / np.maximum(1, among) if cost.model.experts else again)


def layers_of_stages(grid: Grid, layers: int) -> StageLayers:
    """Layers of the first stage, of the last stage, and the most of any middle stage; as `LayoutSpec.stage_layers`. (n,) each

    Each chunk has `base` layers, and the first `rest` chunks have one more. Stage s holds chunks s, s + pp, …. Under a V-shaped
    schedule it holds chunks s and 2·pp − 1 − s.
    """
    pp, chunks = grid.pp, grid.chunks
    base, rest = np.divmod(layers, pp * chunks)
    v_shaped = grid.v_shaped

    def round_and_round(stage: Any) -> Whole:
        return chunks * base + np.maximum(0, -((stage - rest) // pp))

    def down_and_up(stage: Any) -> Whole:
        return 2 * base + (stage < rest) + (2 * pp - 1 - stage < rest)

    def on(stage: Any) -> Whole:
        return np.where(v_shaped, down_and_up(stage), round_and_round(stage))

    middle = np.where(v_shaped, np.maximum(on(np.minimum(1, pp - 1)), on(np.maximum(0, pp - 2))), on(np.minimum(1, pp - 1)))
    return on(np.zeros_like(pp)), on(pp - 1), middle


# ---------------------------------------------------------------------------------------------------------- simulated


def durations(spec: RunSpec, device: DeviceSpec, assumed: Assumptions) -> Durations:
    """Seconds of every action of a layout, for `simulate`."""
    return _durations([spec], device, assumed)[0]


def _durations(
    specs: Sequence[RunSpec], device: DeviceSpec, assumed: Assumptions, passes_of: ModelPasses | None = None
) -> list[Durations]:
    """The same for several specs at once. They may differ only in layout and microbatches. `passes_of`: see `simulated_all`."""
    model, layouts = specs[0].model, [spec.layout for spec in specs]
    cost = Cost(model, specs[0].workload, Grid.of(specs), device, assumed, passes_of)
    chunks, stages = np.array([(layout.pp * layout.chunks, layout.pp) for layout in layouts]).T
    of_chunk, of_stage = (np.repeat(np.arange(len(specs)), number) for number in (chunks, stages))
    count = np.concatenate([layout.chunk_layers(model.layers) for layout in layouts])
    first, last = np.zeros((2, len(count)), np.bool_)
    first[chunks.cumsum() - chunks] = last[chunks.cumsum() - 1] = True
    end = count.cumsum() - of_chunk * model.layers
    before = model.encoder_layers or model.layers
    experts = np.append(0, np.cumsum([model.has_experts(layer) for layer in range(model.layers)]))
    cross = experts[end] - experts[end - count] if model.experts else np.clip(end - before, 0, count)
    some = cost.take(of_chunk)
    embedding, head = (some.passes.of(part) for part in ("embedding", "head"))
    again = np.array([number for layout in layouts for number in _recomputed(layout, model)]).T
    plain = some.layers("layer", count - cross, again[0])
    crossing = some.layers("decoder", cross, again[1]) if model.parts.encoder or model.experts else np.zeros_like(plain)
    held = some.held_parameters(count, first, last, cross)
    passes = some.with_accumulation(plain + crossing + first * embedding + last * head, held)
    times = passes.sum(1)
    by_chunk: dict[Kind, Real] = {
        "F": times[FORWARD], "B": times[INPUTS:].sum(0), "I": times[INPUTS], "W": times[WEIGHTS],
        "reduce": some.reduction(passes, held),
    }  # fmt: skip
    stage = np.concatenate([layout.placement for layout in layouts]) + (stages.cumsum() - stages)[of_chunk]
    parameters: Any = np.bincount(stage, held.parameters)
    together = HeldParameters(parameters, np.bincount(stage, held.buckets))
    each = cost.take(of_stage)
    by_stage: dict[Kind, Real] = {"step": each.update(together), "gather": each.value_gather(together), "tie": each.tie()}
    messages = cost.message().tolist()
    flows: tuple[Flow, ...] = ("activation", "gradient")

    def of(i: int, counts: Any, seconds: dict[Kind, Real]) -> dict[tuple[Kind, int], float]:
        """The seconds of spec i by (kind, chunk or stage). `counts`: the chunks or stages of each spec."""
        stop = int(counts[: i + 1].sum())
        own = {kind: times[stop - int(counts[i]) : stop].tolist() for kind, times in seconds.items()}
        return {(kind, number): time for kind, some in own.items() for number, time in enumerate(some)}

    return [
        Durations(
            of(i, chunks, by_chunk),
            {(flow, chunk): messages[i] for flow in flows for chunk in range(chunks[i])},
            of(i, stages, by_stage),
        )
        for i in range(len(specs))
    ]


def _recomputed(layout: LayoutSpec, model: ModelSpec) -> Iterator[tuple[int, int]]:
    """Of each chunk, how many layers of the first and of the second kind are recomputed whole. The second have cross-attention or
    experts.
    """
    encoders = model.encoder_layers or model.layers
    chunks = zip(layout.layer_ranges(model.layers), layout.recomputed_whole(model.layers, model.encoder_layers), strict=True)
    for layers, again in chunks:
        behind = sum(one for layer, one in zip(layers, again, strict=True) if layer >= encoders or model.has_experts(layer))
        yield sum(again) - behind, behind


def simulated(spec: RunSpec, device: DeviceSpec, assumed: Assumptions) -> tuple[float, float]:
    """Seconds of a step by simulation, and the bubble."""
    return simulated_all([spec], device, assumed)[0]


def simulated_all(
    specs: Sequence[RunSpec], device: DeviceSpec, assumed: Assumptions, passes_of: ModelPasses | None = None
) -> list[tuple[float, float]]:
    """The same for several specs at once. They may differ only in layout and microbatches.

    `passes_of`: the passes of the specs' layouts, where they have been read from ledgers already.

    When the pipeline is full, each further round of pp microbatches takes as long as the round before. So only a few rounds are
    simulated. The time of the last one is added for each round that is left out.
    """
    counts, times = [_simulated_counts(spec) for spec in specs], _durations(specs, device, assumed, passes_of)
    runs = [
        (
            pipeline_simulation(layout.schedule, layout.pp, count, layout.chunks),
            own,
            layout.mesh.replicas > 1 or layout.sequence_parallel,
        )
        for layout, numbers, own in zip([spec.layout for spec in specs], counts, times, strict=True)
        for count in numbers
    ]
    found = iter(simulate_all(runs))
    out = []
    for spec, numbers, own in zip(specs, counts, times, strict=True):
        seconds = [_seconds(spec, next(found), own) for _ in numbers]
        rounds = (spec.workload.microbatches - numbers[-1]) // spec.layout.pp
        step, pipeline, busy = (late + rounds * (late - early) for early, late in zip(seconds[0], seconds[-1], strict=True))
        out.append((step, 1 - busy / (spec.layout.pp * pipeline)))
    return out


def _simulated_counts(spec: RunSpec) -> tuple[int, ...]:
    """Microbatches of the simulations: all of them in one; or two numbers that differ by a round of pp."""
    m, pp = spec.workload.microbatches, spec.layout.pp
    facts = spec.layout.facts
    least = _ROUNDS_DEFERRED if facts.splits else _ROUNDS
    rounds = (m - (least + 1) * pp) // pp  # rounds that are left out
    repeats_after = facts.memory_repeats_after(pp, m) if facts.memory_repeats_after else 0
    if rounds < 1 or repeats_after >= m:  # the second: rounds do not become equal
        return (m,)
    return m - (rounds + 1) * pp, m - rounds * pp


def _seconds(spec: RunSpec, found: SimulatedPipeline, times: Durations) -> tuple[float, float, float]:
    """Seconds of the step, of its pipeline, and the sum of the passes of all stages."""
    layout = spec.layout
    both_ends = {layout.placement[0], layout.placement[-1]} if spec.model.parts.tied and len(layout.placement) > 1 else set()
    step = max(
        clock
        + times.ends["step", stage]
        + (times.ends["tie", stage] if stage in both_ends else 0.0)
        + (times.ends["gather", stage] if layout.zero in (1, 2) else 0.0)
        for stage, clock in enumerate(found.clocks)
    )
    return step, found.pipeline, found.busy
