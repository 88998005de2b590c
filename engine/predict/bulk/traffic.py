"""The traffic of many layouts at once, for the planner: `engine.predict.traffic`'s formulas over arrays.

What a stage passes is a sum over the things that it holds: layers, ends of the model, cuts to other stages. How many of each it
holds depends on the pipeline's shape alone, and what one of them passes on everything else; so the two are worked out apart, each
as a matrix, and multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.products import multiplied
from engine.predict.grid import RECOMPUTES, Grid, Whole, distinct
from engine.predict.messages.calls import wire_bytes
from engine.predict.messages.held import head_size, layer_size, places_size, table_size
from engine.predict.messages.reductions import reductions
from engine.predict.traffic import BYTES
from engine.schedule import SCHEDULES
from engine.spec import ModelSpec, ScheduleName, WorkloadSpec
from engine.spec.numbers import evenly

Reals = NDArray[np.float64]
Amount = tuple[Any, Any]  # wire bytes and calls of a step, a number or one for each layout

HELD = ("layers", "crossing", "first", "last", "last only", "both", "cuts", "stage", "last stage", "ends")
ROADS = ("tp", "pp", "dp", "dp late")
_NUMBER = 4  # bytes of a norm or a loss


def bulk_traffic(
    model: ModelSpec, workload: WorkloadSpec, grid: Grid, roads: Sequence[str] = ROADS, calls: bool = True
) -> dict[str, Reals]:
    """What the busiest rank passes in a step: name → (n,) numbers, for the n layouts of `grid`.

    "tp", "pp" and "dp" are wire bytes, with " calls" behind it the calls, receives included. "dp late" is the part of dp that
    no pass runs beside: new values and what the optimizer's step needs. Each name has its own busiest rank. `roads`: which;
    `calls`: whether they are counted too.
    """
    full = grid.recompute == RECOMPUTES.index("full")  # selective recompute repeats no collective
    first, cost = distinct(
        grid.dp, grid.tp, grid.pp, grid.microbatch_size, grid.microbatches, grid.zero, grid.sequence_parallel, full
    )
    costs = _Costs(model, workload, grid.take(first), roads, 1 + calls)
    splits = grid.by_schedule(lambda facts: facts.splits)  # which puts weights' gradients off
    groups = grid.pp, grid.chunks, grid.v_shaped, np.where(splits & (grid.zero >= 2), 1 + grid.schedule, 0)
    some, which = distinct(*groups, cost)  # one of those whose stages pass the same
    starts, _ = distinct(*(group[some] for group in groups))
    bounds = [*starts.tolist(), len(some)]
    measures = ("", " calls")[: 1 + calls]
    found = {name + behind: np.zeros(len(some)) for name in roads for behind in measures}
    for start, stop in pairwise(bounds):
        pp, chunks, bends, schedule = (int(group[some[start]]) for group in groups)
        shape, here = _Shape.of(model, pp, chunks, bool(bends)), cost[some[start:stop]]
        held = shape.held.T if schedule else shape.alike
        fewer = _fewer(SCHEDULES[schedule - 1], shape, costs.grid.microbatches[here]) if schedule else None
        for name in roads:
            for measure, behind in enumerate(measures):
                passed = multiplied(held, costs.matrix(name, measure)[:, here])  # (stages, layouts)
                if fewer is not None and name in costs.put_off:
                    # What one reduction of a chunk passes, and how many fewer there are.
                    one = multiplied(shape.chunk_held.T, costs.put_off[name][measure][:, here])
                    passed += multiplied(shape.on.T, one * fewer)
                found[name + behind][start:stop] = passed.max(0)
    return {name: numbers[which] for name, numbers in found.items()}


def _fewer(name: ScheduleName, shape: _Shape, microbatches: Whole) -> Whole:
    """How many reductions of each chunk there are, where passes that overlap are reduced together, more than one a microbatch:
    nothing or less. (chunks, layouts)
    """
    return reductions(name, shape.pp, microbatches, shape.stage[:, None], shape.run[:, None]) - microbatches


# ------------------------------------------------------------------------------------------------ what each stage holds


@dataclass(frozen=True)
class _Shape:
    """`held` (len(HELD), stages) and `chunk_held` (the same by chunk); `on` (chunks, stages) is 1 where a chunk is on a stage."""

    pp: int
    stage: NDArray[np.int64]
    run: NDArray[np.int64]
    chunk_held: Reals
    on: Reals
    held: Reals

    @cached_property
    def alike(self) -> Reals:
        """What different stages hold, (k, len(HELD)): those that hold the same pass the same."""
        return np.array(list(dict.fromkeys(map(tuple, self.held.T.tolist()))))

    @classmethod
    def of(cls, model: ModelSpec, pp: int, chunks: int, v_shaped: bool) -> _Shape:
        index = np.arange(pp * chunks)
        run, place = index // pp, index % pp
        stage = np.where(v_shaped & (run % 2 == 1), pp - 1 - place, place)
        count = np.array(evenly(model.layers, len(index)))
        end = np.cumsum(count)
        decoder = model.encoder_layers if model.parts.encoder else model.layers
        crossing = np.maximum(0, end - np.maximum(end - count, decoder))
        first, last = index == 0, index == len(index) - 1
        # Tensors that a chunk sends: its output on, its input's gradient back, where the other chunk is on another stage.
        streams = np.where(end < model.layers, 2, 1) if model.parts.encoder else np.ones(len(index), np.int64)
        crosses = np.append(stage[1:] != stage[:-1], False)
        cuts = streams * crosses + np.append(0, (streams * crosses)[:-1])
        nothing = np.zeros(len(index))
        by_chunk = np.array([count - crossing, crossing, first, last, last & ~first, last & first, cuts] + [nothing] * 3, float)
        on = (stage[:, None] == np.arange(pp)).astype(float)
        held = by_chunk @ on
        held[HELD.index("stage")] = 1
        held[HELD.index("last stage"), stage[-1]] = 1
        if stage[-1] != stage[0]:
            held[HELD.index("ends"), [0, stage[-1]]] = 1
        return cls(pp, stage, run, by_chunk, on, held)


# ------------------------------------------------------------------------------------------- what one of each thing passes


class _Costs:
    """For every road and measure a matrix (len(HELD), layouts): what one thing of each sort passes in a step.

    `put_off` has the same of one reduction, of what a split backward may reduce less often than once a microbatch.
    """

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, roads: Sequence[str], measures: int) -> None:
        self.model, self.grid, self.measures = model, grid, measures
        self.e = BYTES[workload.precision]
        self.kept = BYTES[workload.accumulate if workload.precision == "bf16" else "fp32"]
        self._sums = {name: np.zeros((measures, len(HELD), len(grid))) for name in roads}
        self.put_off = {name: np.zeros((measures, len(HELD), len(grid))) for name in ("tp", "dp")}
        self._tensor_parallel()
        self._pipeline()
        for bucket in _buckets(model, grid.tp):
            self._data_parallel(bucket)
        self._optimizer_step()

    def matrix(self, name: str, measure: int) -> Reals:
        return self._sums[name][measure]

    def _add(self, road: str, held: str, amount: Amount) -> None:
        for measure in range(self.measures if road in self._sums else 0):
            self._sums[road][measure, HELD.index(held)] += amount[measure]

    def _tensor_parallel(self) -> None:
        """As `traffic.tensor_parallel`: sums left behind, and under sequence parallelism gathered input, a microbatch."""
        g, n, model = self.grid, self.grid.tp, self.model
        times = g.microbatches * (n > 1)
        x = g.microbatch_size * (model.rows * model.hidden * self.e)
        cut = g.sequence_parallel
        again = 1 + (g.recompute == RECOMPUTES.index("full"))
        leave = np.where(cut, wire_bytes("reduce_scatter", x, n), wire_bytes("all_reduce", x, n)) * times
        enter = wire_bytes("all_gather", x // n, n) * cut * times

        def passed(held: str, left: Any, entered: Any) -> None:
            self._add("tp", held, (leave * left + enter * entered, times * (left + cut * entered)))

        for held, reads, sums in (("layers", 2, 2), ("crossing", 4, 3)):
            passed(held, sums * again + reads, reads * (again + 1) + sums)
        passed("last", 1, 2)
        streams = 2 if model.parts.encoder else 1
        both = np.where(cut, streams * leave, wire_bytes("all_reduce", streams * x, n) * times)
        self._add("tp", "first", (both + streams * enter, times * (1 + cut)))
        tokens = g.microbatch_size * ((model.rows - model.seq or model.seq) * _NUMBER)
        loss = wire_bytes("all_reduce", tokens, n) + wire_bytes("all_reduce", 2 * tokens, n)
        self._add("tp", "last", (loss * times, 2 * times))

    def _pipeline(self) -> None:
        """As `traffic.pipeline`: what is sent; and as many receives."""
        g = self.grid
        x = g.microbatch_size * (self.model.rows * self.model.hidden * self.e)
        self._add("pp", "cuts", (g.microbatches * np.where(g.sequence_parallel, x // g.tp, x), 2 * g.microbatches))

    def _data_parallel(self, bucket: _Bucket) -> None:
        """As `traffic.data_parallel`."""
        g, held = self.grid, bucket.held
        parts = np.where(g.zero > 0, g.dp, 1)
        share = -(-bucket.size // parts)
        travels = np.where(g.zero >= 2, self.e, self.kept)
        often = np.where(g.zero >= 2, g.microbatches, 1)
        payload = share * parts * travels
        wire = np.where(g.zero > 0, wire_bytes("reduce_scatter", payload, g.dp), wire_bytes("all_reduce", payload, g.dp))
        whole = g.sequence_parallel & (bucket.whole > 0)
        reduced: dict[str, Amount] = {
            "dp": (wire, (g.dp > 1) * 1),
            "tp": (wire_bytes("all_reduce", bucket.whole * travels, g.tp) * whole, whole * 1),
        }
        for road, (each, calls) in reduced.items() if bucket.reduced else ():
            self._add(road, held, (each * often, calls * often))
            if bucket.deferred:
                self.put_off[road][:, HELD.index(held)] += np.array([each, calls][: self.measures])
        gathered = wire_bytes("all_gather", share * self.e, g.dp)
        fetches = (g.zero == 3) * g.microbatches * bucket.gathers
        published = ((g.zero == 1) | (g.zero == 2)) * bucket.reduced
        self._add("dp", held, (gathered * (fetches + published), fetches + published))
        self._add("dp late", held, (gathered * published, published))

    def _optimizer_step(self) -> None:
        """As `traffic.optimizer_step`."""
        g = self.grid
        if self.model.parts.tied:
            share = -(-table_size(self.model, g.tp) // np.where(g.zero > 0, g.dp, 1))
            self._add("pp", "ends", (wire_bytes("all_reduce", share * self.kept, 2), 1))
        number = {axis: wire_bytes("all_reduce", _NUMBER, n) for axis, n in (("tp", g.tp), ("pp", g.pp), ("dp", g.dp))}
        for axis, n in (("tp", g.tp), ("pp", g.pp)):
            self._add(axis, "stage", (number[axis], n > 1))
        for road in ("dp", "dp late"):
            self._add(road, "stage", (number["dp"] * (g.zero > 0), g.zero > 0))
            self._add(road, "last stage", (number["dp"], g.dp > 1))


@dataclass(frozen=True)
class _Bucket:
    """As `held.Bucket`, by what holds it. `gathers` in forward and backward together; not `reduced` if counted elsewhere."""

    held: str
    whole: Any
    size: Any
    deferred: bool
    gathers: int
    reduced: bool = True


def _buckets(model: ModelSpec, tp: Any) -> Iterator[_Bucket]:
    """As `held.buckets`."""
    family, table = model.parts, table_size(model, tp)
    yield _Bucket("first", 0, table, False, 1)
    if family.tied:
        yield _Bucket("last only", 0, table, True, 2)
        yield _Bucket("both", 0, table, False, 2, reduced=False)  # what is first too has the table already
    if places_size(model):
        yield _Bucket("first", places_size(model), places_size(model), False, 1)
    if family.embedding_norm:
        norm = family.norm_vectors * model.hidden
        yield _Bucket("first", norm, norm, False, 2)
    for held, crossing in (("layers", False), ("crossing", True)):
        if family.encoder or not crossing:
            whole, cut = layer_size(model, tp, crossing)
            yield _Bucket(held, whole, whole + cut, True, 2)
    if family.head != "bare" or not family.tied or family.output_bias:
        whole, cut = head_size(model, tp)
        yield _Bucket("last", whole, whole + cut, not family.tied, 2)
