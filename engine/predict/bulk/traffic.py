"""The traffic of many layouts at once, for the planner: the rules of `engine.predict.traffic.rules` over arrays.

The traffic of a stage is a sum over its items: chunks, layers in the middle of a chunk, cuts to other stages. The number of each
item depends only on the pipeline's shape. The traffic of one item depends on everything else. So both are computed as matrices
and multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.dimensions import dimensions, structure
from engine.ledger.form import Part, Slicing
from engine.ledger.keep import Key, Ledgers
from engine.ledger.store import LedgerStore, ledger_store
from engine.ledger.symbolic import letter
from engine.predict.bulk.arrays import multiplied
from engine.predict.bulk.pieces import pieces
from engine.predict.grid import RECOMPUTES, Grid, Whole, chunked_loss, distinct
from engine.predict.traffic.calls import PredictedCall, wire_bytes
from engine.predict.traffic.chunk import trained
from engine.predict.traffic.reductions import reductions
from engine.predict.traffic.rules import Setting, data_parallel, messages, norm_and_loss, tensor_parallel, tie
from engine.schedule import SCHEDULES
from engine.spec import BYTES_OF, ModelSpec, Recompute, WorkloadSpec
from engine.terms import Factor

Reals = NDArray[np.float64]

CLASSES = ("tp", "pp", "dp", "dp late")  # of traffic: by axis; and the part of dp that no pass overlaps with
_SLICINGS: tuple[Slicing, ...] = ("none", "features", "sequence")
_LATE = ("gather", "step")  # phases that no pass overlaps with


class StageItem(NamedTuple):
    """An item that makes calls, and of which a stage has a number.

    With a `part`, which is a chunk, `kind` is "own": all of the chunk but its middle layers; "t0", "t1": a middle layer of the
    first or the second kind; "cut": the transfers before the chunk, if it is on another stage than the chunk before it. Without a
    part it is "stage": any stage; "last": the last chunk's stage; "ends": a stage with tied weights.
    """

    part: Part | None
    kind: str


def bulk_traffic(
    model: ModelSpec,
    workload: WorkloadSpec,
    grid: Grid,
    classes: Sequence[str] = CLASSES,
    calls: bool = True,
    ledgers: Ledgers | None = None,
) -> dict[str, Reals]:
    """The traffic of the busiest rank in a step: name → (n,), for the n layouts of `grid`.

    "tp", "pp" and "dp" are wire bytes. "dp late" is the part of dp that no pass overlaps with: new values, and the calls of the
    optimizer's step. "tp calls" and so on are the numbers of calls, with receives. Each name has its own busiest rank. `classes`:
    the wanted names. `calls`: whether calls are counted too. `ledgers`: where to read ledgers, in place of `ledger_store()`.

    Raises `NotRecordedError`.
    """
    full = grid.recompute == RECOMPUTES.index("full")  # selective recompute repeats no collective
    first, cost = distinct(
        grid.dp, grid.tp, grid.pp, grid.microbatch_size, grid.microbatches, grid.zero, grid.sequence_parallel, full
    )
    splits = grid.by_schedule(lambda facts: facts.splits)  # then reductions depend on the schedule
    groups = grid.pp, grid.chunks, grid.v_shaped, np.where(splits & (grid.zero >= 2), 1 + grid.schedule, 0)
    some, which = distinct(*groups, cost)  # one of the layouts whose stages have equal traffic
    starts, _ = distinct(*(group[some] for group in groups))
    bounds = [*starts.tolist(), len(some)]
    shapes = [
        _Shape.of(model, int(grid.pp[some[i]]), int(grid.chunks[some[i]]), bool(grid.v_shaped[some[i]])) for i in bounds[:-1]
    ]
    held = list(dict.fromkeys(one for shape in shapes for one in shape.held))
    costs = _Costs(model, workload, grid.take(first), held, classes, 1 + calls, ledgers)
    measures = ("", " calls")[: 1 + calls]
    found = {name + suffix: np.zeros(len(some)) for name in classes for suffix in measures}
    for shape, (start, stop) in zip(shapes, pairwise(bounds), strict=True):
        schedule, here = int(groups[3][some[start]]), cost[some[start:stop]]
        rows = np.array([held.index(one) for one in shape.held])
        matrix = shape.counts if schedule else shape.distinct_counts  # (stages, items)
        for name in classes:
            for measure, suffix in enumerate(measures):
                traffic = multiplied(matrix, costs.of(name, measure)[np.ix_(rows, here)])
                if schedule and name in costs.reduced:
                    # The traffic of one reduction of a chunk, times the number of reductions.
                    one = multiplied(shape.by_chunk, costs.reduced[name][measure][np.ix_(rows, here)])
                    times = reductions(
                        SCHEDULES[schedule - 1], shape.pp, costs.grid.microbatches[here], shape.stage[:, None], shape.run[:, None]
                    )
                    traffic += multiplied(shape.on.T, one * times)
                elif name in costs.reduced:
                    reduced = costs.reduced[name][measure][np.ix_(rows, here)]
                    traffic += multiplied(matrix, reduced * costs.grid.microbatches[here])
                found[name + suffix][start:stop] = traffic.max(0)
    return {name: numbers[which] for name, numbers in found.items()}


# ----------------------------------------------------------------------------------------------- the items of each stage


class _Shape(NamedTuple):
    """The items of a pipeline's stages.

    `held`: the items. `counts` (stages, items): how many of them each stage has. `by_chunk` (chunks, items): how many each chunk
    has. `on` (chunks, stages): 1 if a chunk is on a stage. `stage`, `run` (chunks,): the stage of each chunk, and its index
    there.
    """

    pp: int
    stage: NDArray[np.int64]
    run: NDArray[np.int64]
    held: list[StageItem]
    counts: Reals
    by_chunk: Reals
    on: Reals

    @property
    def distinct_counts(self) -> Reals:
        """The distinct rows of `counts`, (k, items). Stages with equal rows have equal traffic."""
        return np.array(list(dict.fromkeys(map(tuple, self.counts.tolist()))))

    @classmethod
    def of(cls, model: ModelSpec, pp: int, chunks: int, v_shaped: bool) -> _Shape:
        index = np.arange(pp * chunks)
        run, place = index // pp, index % pp
        stage = np.where(v_shaped & (run % 2 == 1), pp - 1 - place, place)
        found, which = pieces(model.layers, model.encoder_layers, pp * chunks)
        held: dict[StageItem, int] = {}
        entries: list[tuple[int, int, float]] = []  # chunk, item, count
        cuts: list[tuple[int, int]] = []  # stage, item

        def number(part: Part | None, kind: str) -> int:
            return held.setdefault(StageItem(part, kind), len(held))

        for chunk, piece in enumerate(found[i] for i in which):
            part = piece.form.part
            entries.append((chunk, number(part, "own"), 1))
            entries += [(chunk, number(part, f"t{kind}"), count) for kind, count in enumerate(piece.between) if count]
            if chunk and stage[chunk] != stage[chunk - 1]:
                item = number(part, "cut")
                cuts += [(int(stage[chunk - 1]), item), (int(stage[chunk]), item)]
        several = [(s, number(None, "stage")) for s in range(pp)] + [(int(stage[-1]), number(None, "last"))]
        if stage[-1] != stage[0]:
            several += [(int(s), number(None, "ends")) for s in (stage[0], stage[-1])]
        by_chunk = np.zeros((len(index), len(held)))
        for chunk, item, count in entries:
            by_chunk[chunk, item] = count
        on = (stage[:, None] == np.arange(pp)).astype(float)
        counts = on.T @ by_chunk
        for at, item in (*cuts, *several):
            counts[at, item] += 1
        return cls(pp, stage, run, list(held), counts, by_chunk, on)


# ----------------------------------------------------------------------------------------------- the traffic of one item


class _Costs:
    """For every class and measure a matrix (items, layouts): the traffic of one item in a step.

    `reduced`: the same for one reduction of a chunk's deferred gradients.
    """

    def __init__(
        self,
        model: ModelSpec,
        workload: WorkloadSpec,
        grid: Grid,
        held: list[StageItem],
        classes: Sequence[str],
        measures: int,
        ledgers: Ledgers | None,
    ) -> None:
        self.model, self.workload, self.grid, self.held, self.measures = model, workload, grid, held, measures
        self._ledgers = ledger_store() if ledgers is None else ledgers
        self._sums = {name: np.zeros((measures, len(held), len(grid))) for name in classes}
        self.reduced = {name: np.zeros((measures, len(held), len(grid))) for name in ("tp", "dp")}
        slicing = np.where(grid.tp == 1, 0, np.where(grid.sequence_parallel, 2, 1))
        full, chunked = grid.recompute == RECOMPUTES.index("full"), chunked_loss(model, workload, grid)
        self._check(slicing, full, chunked)
        first, which = distinct(slicing, full, chunked)
        for kind, one in enumerate(first.tolist()):
            recompute: Recompute = "full" if full[one] else "none"
            self._recorded(_SLICINGS[slicing[one]], recompute, bool(chunked[one]), np.flatnonzero(which == kind))
        first, which = distinct(slicing, grid.zero, chunked)
        for kind, one in enumerate(first.tolist()):
            self._by_zero(_SLICINGS[slicing[one]], int(grid.zero[one]), bool(chunked[one]), np.flatnonzero(which == kind))

    def of(self, name: str, measure: int) -> Reals:
        """(items, layouts)"""
        found: Reals = self._sums[name][measure]
        return found

    def _check(self, slicing: Whole, full: Any, chunked: Any) -> None:
        if isinstance(self._ledgers, LedgerStore):
            first, _ = distinct(slicing, full, chunked)
            kinds = {(_SLICINGS[slicing[i]], "full" if full[i] else "none", bool(chunked[i])) for i in first.tolist()}
            kinds |= {(cut, "none", one) for cut, _, one in kinds}
            parts = {one.part for one in self.held if one.part is not None}
            self._ledgers.check({self._key(part, *kind) for part in parts for kind in kinds})  # type: ignore[arg-type]

    def _key(self, part: Part, slicing: Slicing, recompute: Recompute, chunked: bool) -> Key:
        """The key of a chunk's ledger. Calls do not depend on which dimensions are 1, so all are taken as more than 1."""
        loss_chunk = letter("C") if chunked else None
        sizes = dimensions(self.model, slicing, letter("tp"), letter("B"), loss_chunk=loss_chunk)
        return structure(self.model, self.workload, recompute, slicing, sizes).of(part), part

    def _setting(self, slicing: Slicing, zero: int, chunked: bool, here: Whole) -> Setting:
        some, workload = self.grid.take(here), self.workload
        loss_chunk = workload.most_loss_tokens(self.model, some.tp) if chunked else None
        sizes = dimensions(self.model, slicing, some.tp, some.microbatch_size, loss_chunk=loss_chunk)
        copies = np.maximum(1, some.tp // self.model.key_heads)
        e, g = Factor("e", BYTES_OF[workload.precision]), Factor("g", BYTES_OF[workload.gradient_precision])
        return Setting(sizes, some.tp, some.dp, some.microbatches, zero, slicing == "sequence", e, g, copies)

    def _recorded(self, slicing: Slicing, recompute: Recompute, chunked: bool, here: Whole) -> None:
        """Add calls over tp, and messages over pp."""
        setting = self._setting(slicing, 0, chunked, here)
        for number, one in enumerate(self.held):
            if one.part is None:
                continue
            traffic = trained(self._ledgers(*self._key(one.part, slicing, recompute, chunked)))
            if one.kind == "cut":
                found: Iterable[PredictedCall] = messages(traffic, setting, (0, 1), receives=True)
            else:
                found = _of_layers(one, tensor_parallel(traffic, setting))
            self._add(number, here, setting, found)

    def _by_zero(self, slicing: Slicing, zero: int, chunked: bool, here: Whole) -> None:
        """Add calls over dp, and those at the end of a step."""
        setting = self._setting(slicing, zero, chunked, here)
        for number, one in enumerate(self.held):
            if one.part is not None and one.kind != "cut":
                traffic = trained(self._ledgers(*self._key(one.part, slicing, "none", chunked)))
                self._add(number, here, setting, _of_layers(one, data_parallel(traffic, one.part, setting)))
            elif one.part is None and one.kind == "ends" and self.model.parts.tied:
                part = next(other.part for other in self.held if other.part is not None and other.part.first)
                traffic = trained(self._ledgers(*self._key(part, slicing, "none", chunked)))
                self._add(number, here, setting, tie(traffic, part, setting, (0, 1)))
            elif one.part is None and one.kind != "ends":
                every = list(norm_and_loss(setting, True))
                self._add(number, here, setting, every[:-1] if one.kind == "stage" else every[-1:])

    def _add(self, number: int, here: Whole, setting: Setting, found: Iterable[PredictedCall]) -> None:
        ranks = {"tp": setting.tp, "dp": setting.dp, "pp": self.grid.pp[here]}
        for call in found:
            n = call.ranks(ranks[call.axis])
            calls = call.calls * call.made(n)
            amounts = calls * wire_bytes(call.collective, call.payload_bytes, n), calls
            late = call.axis == "dp" and call.phase in _LATE
            into = self.reduced if call.reduced else self._sums
            for traffic_class in (call.axis, "dp late") if late else (call.axis,):
                for measure in range(self.measures if traffic_class in into else 0):
                    into[traffic_class][measure, number, here] += amounts[measure]


def _of_layers(one: StageItem, found: Iterable[PredictedCall]) -> Iterator[PredictedCall]:
    """The calls of an item: "own" has all calls of a chunk but those of middle layers; "t0", "t1" those of one middle layer."""
    part = one.part
    assert part is not None
    inner = {}
    start = 0
    for kind, recorded in enumerate(part.recorded):
        if recorded == 3:
            inner[start + 1] = f"t{kind}"
        start += recorded
    return (call for call in found if inner.get(call.layer, "own") == one.kind)
