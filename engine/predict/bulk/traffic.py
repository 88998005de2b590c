"""The traffic of many layouts at once, for the planner: the rules of `engine.predict.traffic.rules` over arrays.

The traffic of a stage is a sum over its items: chunks, layers in the middle of a chunk, cuts to other stages. The number of each
item depends only on the pipeline's shape. The traffic of one item depends on everything else. So both are computed as matrices
and multiplied.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.grid import RECOMPUTES, Grid, Whole, distinct, multiplied
from engine.ledger.form import LOSS_CHUNK, Part, Structure
from engine.ledger.keep import Ledgers
from engine.ledger.mixed import ledger_of, recorded_keys
from engine.ledger.split import Stack
from engine.ledger.store import LedgerStore, ledger_store
from engine.predict.bulk.pieces import pieces
from engine.predict.structures import StructureGroup, by_structure
from engine.predict.traffic.calls import PredictedCall, wire_bytes
from engine.predict.traffic.chunk import BucketUse, ChunkTraffic, MicrobatchCall, trained
from engine.predict.traffic.rules import Setting, data_parallel, messages, norm_and_loss, router_biases, tensor_parallel, tie
from engine.schedule import SCHEDULES
from engine.schedule.orders import reductions
from engine.spec import BYTES_OF, ModelSpec, WorkloadSpec
from engine.spec.numbers import evenly
from engine.terms import Factor

Reals = NDArray[np.float64]

CLASSES = ("tp", "cp", "pp", "dp", "ep", "dp late")  # of traffic: by axis; and the part of dp that no pass overlaps with
_LATE = ("gather", "step")  # phases that no pass overlaps with
_KEPT = 1024  # shapes of pipelines, and chunks whose calls are summed, the latest


def _repeats(grid: Grid) -> Whole:
    """Index in `RECOMPUTES` of a kind of recompute that repeats as many collectives as each layout's. That of attention alone
    repeats those over cp. (n,)
    """
    none, full, attention = map(RECOMPUTES.index, ("none", "full", "core_attn"))
    return np.select([grid.recompute == full, grid.recomputes("core_attn") & (grid.cp > 1)], [full, attention], none)


class StageItem(NamedTuple):
    """Calls of which a stage has a number.

    Of a chunk which is `part`, "own": all of it but its middle layers; "t0", "t1": a middle layer of the first or second kind;
    "cut": the transfers before the chunk, if it is on another stage than the chunk before it. "ends": of a stage with tied
    weights; `part` is the first chunk. Without a part "stage": of any stage; "last": of the last chunk's stage;
    "loads": of a stage with `experts` layers with experts, whose loads are added up.
    """

    part: Part | None
    kind: str
    experts: int = 0


def bulk_traffic(
    model: ModelSpec,
    workload: WorkloadSpec,
    grid: Grid,
    classes: Sequence[str] = CLASSES,
    calls: bool = True,
    ledgers: Ledgers | None = None,
) -> dict[str, Reals]:
    """The traffic of the busiest rank in a step: name → (n,), for the n layouts of `grid`.

    "tp", "cp", "pp", "dp" and "ep" are wire bytes. "dp late" is the part of dp that no pass overlaps with: new values, and the
    calls of the optimizer's step. "tp calls" and so on are the numbers of calls, with receives. Each name has its own busiest
    rank.
    `classes`: the wanted names. `calls`: whether calls are counted too. `ledgers`: where to read ledgers, in place of
    `ledger_store()`.

    Raises `NotRecordedError`.
    """
    deferred = grid.by_schedule(lambda facts: facts.splits) & (grid.zero >= 2)  # then reductions depend on the schedule
    first, cost = distinct(
        grid.dp, grid.cp, grid.context, grid.tp, grid.pp, grid.ep, grid.microbatch_size, grid.microbatches, grid.zero,
        grid.sequence_parallel, _repeats(grid), deferred, grid.zero_replicas,
    )  # fmt: skip
    groups = grid.pp, grid.chunks, grid.v_shaped, np.where(deferred, 1 + grid.schedule, 0), grid.recomputed
    some, which = distinct(*groups, cost)  # one of the layouts whose stages have equal traffic
    starts, _ = distinct(*(group[some] for group in groups))
    bounds = [*starts.tolist(), len(some)]
    shapes = [
        _Shape.of(model, *(int(group[i]) for group in (grid.pp, grid.chunks, grid.v_shaped, grid.recomputed)))
        for i in some[bounds[:-1]]
    ]
    having: dict[StageItem, Any] = defaultdict(lambda: np.zeros(len(first), np.bool_))
    for shape, (start, stop) in zip(shapes, itertools.pairwise(bounds), strict=True):
        for item in shape.held:
            having[item][cost[some[start:stop]]] = True
    held = list(having)
    costs = _Costs(model, workload, grid.take(first), deferred[first], having, classes, 1 + calls, ledgers)
    measures = ("", " calls")[: 1 + calls]
    found = {name + suffix: np.zeros(len(some)) for name in classes for suffix in measures}
    for shape, (start, stop) in zip(shapes, itertools.pairwise(bounds), strict=True):
        schedule, here = int(groups[3][some[start]]), cost[some[start:stop]]
        rows = np.array([held.index(one) for one in shape.held])
        matrix = shape.counts if schedule else shape.distinct_counts  # (stages, items)
        for name in classes:
            for measure, suffix in enumerate(measures):
                traffic = multiplied(matrix, costs.sums[name][measure][np.ix_(rows, here)])
                if schedule and name in costs.reduced:
                    # The traffic of one reduction of a chunk, times the number of reductions.
                    one = multiplied(shape.by_chunk, costs.reduced[name][measure][np.ix_(rows, here)])
                    times = reductions(
                        SCHEDULES[schedule - 1], shape.pp, costs.grid.microbatches[here], shape.stage[:, None], shape.run[:, None]
                    )
                    traffic += multiplied(shape.on.T, one * times)
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
    @lru_cache(maxsize=_KEPT)
    def of(cls, model: ModelSpec, pp: int, chunks: int, v_shaped: int, recomputed: int) -> _Shape:
        index = np.arange(pp * chunks)
        run, place = index // pp, index % pp
        stage = np.where((v_shaped > 0) & (run % 2 == 1), pp - 1 - place, place)
        found, which = pieces(Stack.of(model), pp, chunks, bool(v_shaped and recomputed), recomputed)
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
        if stage[-1] != stage[0] and model.parts.tied:
            several += [(int(s), number(found[which[0]].form.part, "ends")) for s in (stage[0], stage[-1])]
        if model.parts.balancing == "bias":
            ends = [0, *np.cumsum(np.array(evenly(model.layers, pp * chunks))).tolist()]
            having = [sum(map(model.has_experts, range(start, stop))) for start, stop in itertools.pairwise(ends)]
            loads = np.bincount(stage, having, pp).astype(int).tolist()
            items = [StageItem(None, "loads", count) for count in loads]
            several += [(s, held.setdefault(item, len(held))) for s, item in enumerate(items) if item.experts]
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

    `sums`: all of it, but that of reductions which depend on the schedule, as `deferred` says of each layout. `reduced`: of one
    such reduction of a chunk's gradients.
    """

    def __init__(
        self,
        model: ModelSpec,
        workload: WorkloadSpec,
        grid: Grid,
        deferred: Any,
        having: dict[StageItem, Any],
        classes: Sequence[str],
        measures: int,
        ledgers: Ledgers | None,
    ) -> None:
        """`having`: the items, and which layouts have each."""
        self.model, self.workload, self.grid, self.measures = model, workload, grid, measures
        self._numbers = {item: number for number, item in enumerate(having)}
        self._having: dict[Part, Any] = defaultdict(lambda: np.zeros(len(grid), np.bool_))
        for item, mask in having.items():
            if item.part is not None:
                self._having[item.part] |= mask
        self._ledgers = ledger_store() if ledgers is None else ledgers
        self.sums = {name: np.zeros((measures, len(having), len(grid))) for name in classes}
        self.reduced = {name: np.zeros((measures, len(having), len(grid))) for name in ("tp", "dp")}
        shared = grid.ep > 1
        alone, hybrid = shared & (grid.ep == grid.replicas), grid.zero_replicas > 1
        # Calls do not depend on which dimensions are 1. Those of data parallelism do not depend on recompute.
        repeats, same = _repeats(grid), np.zeros(len(grid), np.int64)
        of_layers = by_structure(model, workload, replace(grid, recompute=repeats), ones=False)
        self._check(of_layers)
        plain = by_structure(model, workload, replace(grid, recompute=same + RECOMPUTES.index("none")), ones=False)
        for rules, groups, columns in (
            (self._of_layers, of_layers, (same,)),
            (self._of_data_parallelism, plain, (grid.zero, deferred, shared, alone, hybrid)),
        ):
            for group in groups:
                first, kinds = distinct(*(column[group.rows] for column in columns))
                for kind, one in enumerate(group.rows[first].tolist()):
                    some = np.flatnonzero(kinds == kind)
                    here = group.rows[some]
                    setting = self._setting(group, some, int(grid.zero[one]), bool(alone[one]))
                    for item, call in rules(group.structure, setting, self._parts(here)):
                        self._add(item, call, here, setting, bool(deferred[one]))

    def _check(self, groups: list[StructureGroup]) -> None:
        if isinstance(self._ledgers, LedgerStore):
            needed = ((group.structure, part) for group in groups for part in self._parts(group.rows))
            self._ledgers.check({key for one in needed for key in recorded_keys(*one)})

    def _parts(self, here: Any) -> list[Part]:
        """The parts that some of these layouts have."""
        return [part for part, having in self._having.items() if having[here].any()]

    def _setting(self, group: StructureGroup, which: Whole, zero: int, alone: bool) -> Setting:
        """`which`: of the group's layouts."""
        some, workload = self.grid.take(group.rows[which]), self.workload
        copies = np.maximum(1, some.tp // self.model.key_heads)
        e, g = Factor("e", BYTES_OF[workload.precision]), Factor("g", BYTES_OF[workload.gradient_precision])
        hybrid = bool((some.zero_replicas > 1).any())
        return Setting(
            group.sizes(which), some.tp, some.replicas, some.microbatches, zero, group.structure.slicing == "sequence", e, g,
            copies, some.ep if some.ep[0] > 1 else 1, alone, replicas=some.zero_replicas if hybrid else 1, hybrid=hybrid,
        )  # fmt: skip

    def _of_layers(self, made: Structure, setting: Setting, parts: list[Part]) -> Iterator[tuple[StageItem, PredictedCall]]:
        """Calls over tp and cp, and messages over pp."""
        for part in parts:
            traffic = _summed(trained(ledger_of(self._ledgers, made, part)), part)
            for call in tensor_parallel(traffic, setting):
                yield _item_of(part, call.layer), call
            for call in messages(traffic, setting, (0, 1), receives=True):
                yield StageItem(part, "cut"), call

    def _of_data_parallelism(
        self, made: Structure, setting: Setting, parts: list[Part]
    ) -> Iterator[tuple[StageItem, PredictedCall]]:
        """Calls over dp, and those at the end of a step."""
        for part in parts:
            traffic = trained(ledger_of(self._ledgers, made, part))
            for item, use, count in _alike(traffic, part):
                for call in data_parallel(replace(traffic, buckets=(use,)), part, setting):
                    yield item, call.often(Factor("n", count))
            for call in tie(traffic, part, setting, (0, 1)) if StageItem(part, "ends") in self._numbers else ():
                yield StageItem(part, "ends"), call
        *norms, loss = norm_and_loss(setting, True)
        for call in norms:
            yield StageItem(None, "stage"), call
        yield StageItem(None, "last"), loss
        for item in self._numbers:
            for call in router_biases(setting, item.experts):
                yield item, call

    def _add(self, item: StageItem, call: PredictedCall, here: Whole, setting: Setting, deferred: bool) -> None:
        """Calls of items that no stage has are left out."""
        if item not in self._numbers:
            return
        degrees = {"tp": setting.tp, "cp": self.grid.cp[here], "dp": setting.dp, "pp": self.grid.pp[here], "ep": setting.ep}
        n = call.ranks(degrees[call.axis])
        calls = call.calls * call.made(n) * (setting.microbatches if call.reduced and not deferred else 1)
        amounts = calls * wire_bytes(call.collective, call.payload_bytes, n), calls
        late = call.axis == "dp" and call.phase in _LATE
        into = self.reduced if call.reduced and deferred else self.sums
        for traffic_class in (call.axis, "dp late") if late else (call.axis,):
            for measure in range(self.measures if traffic_class in into else 0):
                into[traffic_class][measure, self._numbers[item], here] += amounts[measure]


def _item_of(part: Part, layer: int) -> StageItem:
    """The item of a chunk's recorded layer, or of what is outside of layers."""
    layers, decoders = (0, 0) if part.kinds else part.recorded
    if layers == 3 and layer == 1:
        return StageItem(part, "t0")
    return StageItem(part, "t1" if decoders == 3 and layer == layers + 1 else "own")


@lru_cache(maxsize=_KEPT)
def _summed(chunk: ChunkTraffic, part: Part) -> ChunkTraffic:
    """The traffic of a chunk with one entry for calls of an item that differ only in the module that makes them."""
    found: dict[tuple[Any, ...], MicrobatchCall] = {}
    for one in chunk.calls:
        call, layer = one.call, one.layer
        key = _item_of(part, layer), layer == LOSS_CHUNK, call.axis, call.collective, call.payload, call.step
        found[key] = one._replace(times=one.times + found[key].times) if key in found else one
    return replace(chunk, calls=tuple(found.values()))


@lru_cache(maxsize=_KEPT)
def _alike(chunk: ChunkTraffic, part: Part) -> list[tuple[StageItem, BucketUse, int]]:
    """The buckets of each item of a chunk, and how many there are of each. Of those that make the same calls one is given."""
    found: dict[tuple[Any, ...], tuple[StageItem, BucketUse, int]] = {}
    for use in chunk.buckets:
        item = _item_of(part, use.bucket.layer)
        key = item, use.bucket.parameters, use.bucket.experts, use.deferred, use.gathers
        found[key] = item, use, found[key][2] + 1 if key in found else 1
    return list(found.values())
