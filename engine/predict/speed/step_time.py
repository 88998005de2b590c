"""How long a step takes: passes put into the pipeline's order, in closed form for many layouts, by the simulator for one.

In closed form a pipeline takes m times its slowest stage and what is left over for filling and draining, which depends on the
schedule: each one's record says how much that is (`engine.spec.schedules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from engine.devices import DeviceSpec
from engine.predict.durations import Durations
from engine.predict.grid import Grid, Whole, distinct
from engine.predict.speed.cost import AGAIN, COMPUTE, DP, FORWARD, INPUTS, TP, WEIGHTS, Cost, HeldParameters
from engine.predict.speed.rates import Assumptions, Real
from engine.predict.speed.simulation import SimulatedPipeline, pipeline_simulation, simulate_all
from engine.schedule import Flow, Kind
from engine.spec import RunSpec
from engine.spec.schedules import PipelineWork
from engine.topology import AXES_BY_FREQUENCY

# So many rounds of pp microbatches are simulated before the last one's time counts for all that are left. Where W is put off, a
# pipeline takes longer until one round is like the next.
_ROUNDS, _ROUNDS_PUT_OFF = 2, 4
_AT_ONCE = 8192  # layouts


PARTS = ("compute", *AXES_BY_FREQUENCY, "update", "idle")  # of `StepTime`, which add up to a step


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and what they add up from: what the slowest stage does, and what it waits for. (n,) each"""

    step: Real
    compute: Real  # passes of the slowest stage, without what goes over links
    tp: Real  # collectives over tp that it waits for
    pp: Real  # messages that the pipeline waits for, and the tie of the two ends
    dp: Real  # of reducing and gathering over dp what nothing hides
    update: Real  # the optimizer
    idle: Real  # of filling and draining the pipeline
    bubble: Real  # idle time of all stages as a share of the pipeline's total time

    def take(self, which: Any) -> StepTime:
        return StepTime(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


# ------------------------------------------------------------------------------------------------------------ in bulk


class _Work(NamedTuple):
    """What stages do, in seconds: for one microbatch, and at the end of a step. (…, n) each"""

    slowest: Real  # of the slowest stage, by kind of pass, (4, n)
    slowest_parts: Real  # by part, (3, n)
    slowest_whole: Real
    all: Real  # of all stages together, by kind of pass, (4, n)
    all_whole: Real
    other_end: Real  # embedding or head, where it is on a stage that is not the slowest
    message: Real
    ends_dp: Real  # once a step, over dp
    update: Real
    tie: Real

    def take(self, which: Any) -> _Work:
        return _Work(*(field.take(which, axis=-1) for field in self))

    def of_pipeline(self, p: Whole, m: Whole, v: Whole) -> PipelineWork:
        """What the schedules' closed forms ask for."""
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
            backward=others[AGAIN] + others[INPUTS],
            weights=others[WEIGHTS],
            other_end=self.other_end,
            message=self.message,
        )


def estimate(cost: Cost) -> StepTime:
    """In closed form, for each layout of a grid.

    Many layouts differ in their schedule or chunks only, and their stages do the same. What that is, is worked out once for each
    sort of them; some at a time, so that what is worked out between stays small.
    """
    grid, m = cost.grid, cost.grid.microbatches
    first, sort = distinct(
        grid.dp, grid.tp, grid.pp, grid.microbatch_size, grid.zero, grid.sequence_parallel, grid.recompute, _stage_sort(cost)
    )
    blocks = [_work(cost.part(first[start : start + _AT_ONCE])) for start in range(0, max(1, len(first)), _AT_ONCE)]
    work = _Work(*(np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)))
    pipeline, waits = np.empty((2, len(grid)))
    for facts, rows in grid.schedules():
        one = work.take(sort[rows])
        pipeline[rows], waits[rows] = facts.pipeline(one.of_pipeline(grid.pp[rows], m[rows], grid.chunks[rows]))
    by_part, ends_dp = m * work.slowest_parts.take(sort, axis=1), work.ends_dp[sort]
    update, tie = work.update[sort], work.tie[sort]
    return StepTime(
        step=pipeline + ends_dp + update + tie,
        compute=by_part[COMPUTE],
        tp=by_part[TP],
        pp=waits + tie,
        dp=by_part[DP] + ends_dp,
        update=update,
        idle=pipeline - waits - by_part.sum(0),
        bubble=1 - m * work.all_whole[sort] / (grid.pp * pipeline),
    )


def _stage_sort(cost: Cost) -> Whole:
    """What schedule and chunks change in what stages do: how many layers they have, and where the ends of the model are. (n,)"""
    grid, model = cost.grid, cost.model
    first, shape = distinct(grid.pp, grid.chunks, cost.v_shaped)
    few = cost.part(first)
    crossing = model.parts.encoder & (few.grid.chunks > 1)  # see `_stages`
    _, sort = distinct(*layers_of_stages(few.grid, model.layers), few.v_shaped, crossing)
    return sort[shape]


def _work(cost: Cost) -> _Work:
    stages, held, total = _stages(cost)
    times = [stage.sum(axis=(0, 1)) for stage in stages]
    slowest = np.argmax(times, axis=0)
    one = np.choose(slowest[None, None], stages)  # (4, 3, n) of the slowest stage
    embedding, head = (
        cost.accumulating(passes, cost.held(0, first, not first)).sum((0, 1))
        for passes, first in ((cost.embedding(), True), (cost.head(), False))
    )
    return _Work(
        slowest=one.sum(1),
        slowest_parts=one.sum(0),
        slowest_whole=one.sum((0, 1)),
        all=total.sum(1),
        all_whole=total.sum((0, 1)),
        other_end=np.where(cost.v_shaped, 0.0, np.choose(slowest, [head, embedding, np.zeros_like(head)])),
        message=cost.message(),
        ends_dp=cost.reduction(stages[0], held[0]) + cost.publication(held[0]),
        update=cost.update(held[0]),
        tie=cost.tie(),
    )


def _stages(cost: Cost) -> tuple[list[Real], list[HeldParameters], Real]:
    """The first stage, the last, and one of those between with the most layers: passes and what each holds; and all passes."""
    grid, model = cost.grid, cost.model
    counts = [np.asarray(count) for count in layers_of_stages(grid, model.layers)]
    plain, embedding, head = cost.layer(), cost.embedding(), cost.head()
    decoder = model.layers - model.encoder_layers if model.parts.encoder else 0
    crossing = cost.layer(cross=True) if decoder else plain
    alone = (grid.pp == 1) | cost.v_shaped  # both ends on the first stage
    ends = [(np.ones_like(alone), alone), (alone & False, ~alone), (alone & False, alone & False)]
    # Of several chunks a stage has some of either half; of one it has what its place in the stack says.
    even = decoder / model.layers
    few = [np.maximum(0, counts[0] - model.encoder_layers), np.minimum(counts[1], decoder), np.minimum(counts[2], decoder)]
    stages, held = [], []
    for count, single, (first, last) in zip(counts, few, ends, strict=True):
        cross = np.where(grid.chunks > 1, even * count, single) if decoder else np.zeros_like(count)
        passes = (count - cross) * plain + first * embedding + last * head
        if decoder:
            passes = passes + cross * crossing
        held.append(cost.held(count, first, last, cross))
        stages.append(cost.accumulating(passes, held[-1]))
    total = (model.layers - decoder) * plain + embedding + head
    if decoder:
        total = total + decoder * crossing
    everything = cost.held(model.layers, np.ones_like(alone), alone, decoder)
    second = np.where(alone, 0, model.vocab * model.hidden) / cost.t  # the table of the last stage, tied or not
    both_tables = HeldParameters(everything.parameters + second, everything.buckets)
    total[WEIGHTS, COMPUTE] = cost.accumulated(total[WEIGHTS, COMPUTE], both_tables)
    others = np.maximum(0, grid.pp - 2)
    total[:, DP] += stages[0][:, DP] + np.where(grid.pp > 1, stages[1][:, DP], 0.0) + others * stages[2][:, DP]
    for place, missing in ((1, grid.pp < 2), (2, grid.pp < 3)):
        stages[place] *= np.where(missing, 0.0, 1.0)
    return stages, held, total


def layers_of_stages(grid: Grid, layers: int) -> tuple[Whole, Whole, Whole]:
    """Layers on the first stage, on the last, and the most that one between them has; as `LayoutSpec.stage_layers`. (n,) each

    Each chunk has base layers, and the first `rest` chunks one more. Stage s holds chunks s, s + pp, …, or s and 2·pp − 1 − s.
    """
    pp, chunks = grid.pp, grid.chunks
    base, rest = np.divmod(layers, pp * chunks)
    bend = grid.v_shaped

    def round_and_round(stage: Any) -> Whole:
        return chunks * base + np.maximum(0, -((stage - rest) // pp))

    def down_and_up(stage: Any) -> Whole:
        return 2 * base + (stage < rest) + (2 * pp - 1 - stage < rest)

    def on(stage: Any) -> Whole:
        return np.where(bend, down_and_up(stage), round_and_round(stage))

    middle = np.where(bend, np.maximum(on(np.minimum(1, pp - 1)), on(np.maximum(0, pp - 2))), on(np.minimum(1, pp - 1)))
    return on(np.zeros_like(pp)), on(pp - 1), middle


# ---------------------------------------------------------------------------------------------------------- simulated


def durations(spec: RunSpec, device: DeviceSpec, assumed: Assumptions) -> Durations:
    """Seconds of every action of a layout, chunk by chunk, for `simulate`."""
    return _durations([spec], device, assumed)[0]


def _durations(specs: Sequence[RunSpec], device: DeviceSpec, assumed: Assumptions) -> list[Durations]:
    """The same for several, worked out at once; they differ in layout and microbatches only."""
    model, layouts = specs[0].model, [spec.layout for spec in specs]
    cost = Cost(model, specs[0].workload, Grid.of(specs), device, assumed)
    chunks, stages = np.array([(layout.pp * layout.chunks, layout.pp) for layout in layouts]).T
    of_chunk, of_stage = (np.repeat(np.arange(len(specs)), number) for number in (chunks, stages))
    count = np.concatenate([layout.chunk_layers(model.layers) for layout in layouts])
    first, last = np.zeros((2, len(count)), np.bool_)
    first[chunks.cumsum() - chunks] = last[chunks.cumsum() - 1] = True
    end = count.cumsum() - of_chunk * model.layers
    cross = np.clip(end - model.encoder_layers, 0, count) if model.parts.encoder else np.zeros_like(count)
    some = cost.part(of_chunk)
    plain, crossing = some.layer(), some.layer(cross=True) if model.parts.encoder else 0.0
    held = some.held(count, first, last, cross)
    passes = some.accumulating((count - cross) * plain + cross * crossing + first * some.embedding() + last * some.head(), held)
    times = passes.sum(1)
    by_chunk: dict[Kind, Real] = {
        "F": times[FORWARD], "B": times[AGAIN:].sum(0), "I": times[AGAIN] + times[INPUTS], "W": times[WEIGHTS],
        "reduce": some.reduction(passes, held),
    }  # fmt: skip
    stage = np.concatenate([layout.placement for layout in layouts]) + (stages.cumsum() - stages)[of_chunk]
    parameters: Any = np.bincount(stage, held.parameters)
    together = HeldParameters(parameters, np.bincount(stage, held.buckets))
    each = cost.part(of_stage)
    by_stage: dict[Kind, Real] = {"step": each.update(together), "gather": each.publication(together), "tie": each.tie()}
    messages = cost.message().tolist()
    flows: tuple[Flow, ...] = ("activation", "gradient")

    def of(i: int, numbers: Any, seconds: dict[Kind, Real]) -> dict[tuple[Kind, int], float]:
        stop = int(numbers[: i + 1].sum())
        own = {kind: times[stop - int(numbers[i]) : stop].tolist() for kind, times in seconds.items()}
        return {(kind, number): time for kind, some in own.items() for number, time in enumerate(some)}

    return [
        Durations(
            of(i, chunks, by_chunk),
            {(flow, chunk): messages[i] for flow in flows for chunk in range(chunks[i])},
            of(i, stages, by_stage),
        )
        for i in range(len(specs))
    ]


def simulated(spec: RunSpec, device: DeviceSpec, assumed: Assumptions) -> tuple[float, float]:
    """Seconds of a step by the simulator, and the bubble."""
    return replayed([spec], device, assumed)[0]


def replayed(specs: Sequence[RunSpec], device: DeviceSpec, assumed: Assumptions) -> list[tuple[float, float]]:
    """The same of several at once, which differ in layout and microbatches only.

    Once the pipeline is full, each further round of pp microbatches takes as long as the one before. So at most a few rounds are
    simulated, and the last one's time counts for those that are left.
    """
    counts, times = [_counts(spec) for spec in specs], _durations(specs, device, assumed)
    runs = [
        (pipeline_simulation(layout.schedule, layout.pp, count, layout.chunks), own, layout.dp > 1 or layout.sequence_parallel)
        for layout, some, own in zip([spec.layout for spec in specs], counts, times, strict=True)
        for count in some
    ]
    found = iter(simulate_all(runs))
    out = []
    for spec, some, own in zip(specs, counts, times, strict=True):
        measured = [_measured(spec, next(found), own) for _ in some]
        rounds = (spec.workload.microbatches - some[-1]) // spec.layout.pp
        step, pipeline, busy = (late + rounds * (late - early) for early, late in zip(measured[0], measured[-1], strict=True))
        out.append((step, 1 - busy / (spec.layout.pp * pipeline)))
    return out


def _counts(spec: RunSpec) -> tuple[int, ...]:
    """How many microbatches are simulated: all, or a few rounds less one, and a few rounds."""
    m, pp = spec.workload.microbatches, spec.layout.pp
    facts = spec.layout.facts
    least = _ROUNDS_PUT_OFF if facts.splits else _ROUNDS
    rounds = (m - (least + 1) * pp) // pp  # that are left out
    if rounds < 1 or (facts.memory_repeats_after and facts.memory_repeats_after(pp, m) >= m):  # or no round is like the next
        return (m,)
    return m - (rounds + 1) * pp, m - rounds * pp


def _measured(spec: RunSpec, found: SimulatedPipeline, times: Durations) -> tuple[float, float, float]:
    """Seconds of the step, of the pipeline in it, and of all stages' passes together."""
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
