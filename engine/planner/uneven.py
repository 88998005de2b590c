"""Uneven splits of layers into chunks: where embedding and head make a stage slower or fuller, other stages take its layers.

The planner weighs all layouts with layers split as evenly as possible. Here a few of them are offered with another split beside:

    faster    the slowest stage gets fewer layers, or one chunk more than there are layers has the embedding or the head alone
    smaller   where layers do not divide evenly, the larger chunks are not on the first stages, whose ranks hold most activations
    fitting   a layout that is slightly too large for the device, with layers moved away from its fullest stage

Each is predicted by itself: simulated time, memory and traffic as those of one layout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engine.grid import Grid, Whole, distinct
from engine.ledger.split import Stack
from engine.predict.memory import memory
from engine.predict.speed.cost import Cost
from engine.predict.speed.passes import ModelPasses, PartName
from engine.predict.speed.step_time import StepTime, estimate, simulated_all
from engine.predict.traffic import wire_bytes
from engine.predict.traffic.step import Training
from engine.spec import LayoutSpec, RunSpec, misfits
from engine.topology import CALL_AXES_BY_FREQUENCY

Split = tuple[int, ...]
Marks = NDArray[np.bool_]
_WEIGHED = 200  # layouts whose balanced split is worked out
_TRIED = 8  # of these, those that are simulated
_NEAR, _NEAR_TRIED, _ROUNDS = 1.1, 3, 3  # times the device's memory; layouts so near; moves of layers until one is given up
_GAINS, _SAVES = 1.001, 1.01  # times as slow, or as large, as with a split that is worth offering


@dataclass(frozen=True)
class Uneven:
    """Entry i of each is one layout. (n,)"""

    grid: Grid
    splits: list[Split]
    times: StepTime
    memory: Whole
    stage: Whole  # the fullest
    wire: dict[str, Whole]  # as of `bulk_traffic`


@dataclass(frozen=True)
class _Tried:
    """A layout with an uneven split."""

    row: int  # of the layout with the even one
    spec: RunSpec


def uneven(cost: Cost, times: StepTime, held: Whole, fits: Marks, free: Callable[[Grid, Whole], Whole]) -> Uneven | None:
    """Layouts with uneven splits that fit, and that are faster or smaller than the same with the even one. None: there are none.

    `cost`: of all layouts with even splits, `times`: their seconds, `held`: bytes of tensors of each, `fits`: whether it fits.
    `free`: bytes to keep free of layouts with these bytes of tensors. Models whose layers are of two kinds have none.
    """
    if not Stack.of(cost.model).alike:
        return None
    have = cost.device.memory_bytes
    found = list[tuple[_Tried, list[int]]]()  # and the bytes of each of its stages
    for one, even_s, own_s in _as_fast(cost, times, fits):
        peaks = _peaks(one.spec)
        if own_s * _GAINS < even_s or max(peaks) * _SAVES < held[one.row]:
            found.append((one, peaks))
    found += _made_to_fit(cost, times, held, fits, free)
    if not found:
        return None
    tried = [one for one, _ in found]
    most, stage = np.array([(max(peaks), peaks.index(max(peaks))) for _, peaks in found]).T
    grid = _grid(cost.grid, [one.row for one in tried], [one.spec.layout for one in tried])
    fitting = np.flatnonzero(most + free(grid, most) <= have)
    if not len(fitting):
        return None
    tried, grid = [tried[i] for i in fitting], grid.take(fitting)
    wire = [_busiest(one.spec) for one in tried]
    return Uneven(
        grid=grid,
        splits=[one.spec.layout.split for one in tried],
        times=_times(cost, tried),
        memory=most[fitting],
        stage=stage[fitting],
        wire={axis: np.array([sent[axis] for sent in wire]) for axis in CALL_AXES_BY_FREQUENCY},
    )


# --------------------------------------------------------------------------------------------------------------- faster


def _as_fast(cost: Cost, times: StepTime, fits: Marks) -> Iterator[tuple[_Tried, float, float]]:
    """Layouts that fit, with a balanced split that is not slower: seconds of a step with the even one, and with it.

    Those that promise most: at best all stages take as long as they do on average.
    """
    piped = np.flatnonzero(fits & (cost.grid.pp > 1))
    each = times.take(piped)
    slowest = each.compute + each.tp + each.dp
    least = each.step - np.maximum(0.0, slowest - (1 - each.bubble) * (slowest + each.pp + each.idle))
    weighed = _balanced(cost, piped[np.argsort(least, kind="stable")[:_WEIGHED]])
    if not weighed:
        return
    rows, layouts = zip(*weighed, strict=True)
    order = np.argsort(_estimate(cost, rows, layouts).step, kind="stable")
    best = list(islice(filter(_fits, (_tried(cost, *weighed[i]) for i in order)), _TRIED))
    if not best:
        return
    even = [cost.grid.spec(one.row, cost.model, cost.workload) for one in best]
    passes = _passes(cost, [one.row for one in [*best, *best]])
    simulations = simulated_all([*even, *(one.spec for one in best)], cost.device, cost.assumed, passes)
    seconds = [step for step, _ in simulations]
    for one, even_s, own_s in zip(best, seconds[: len(best)], seconds[len(best) :], strict=True):
        if own_s < _GAINS * even_s:
            yield one, even_s, own_s


def _balanced(cost: Cost, rows: Whole) -> list[tuple[int, LayoutSpec]]:
    """Those of these rows whose balanced split is not the even one, each with a layout that has this split and its chunks.

    Of that layout only schedule, stages, chunks and split count. Rows that come to the same are there once.
    """
    if not len(rows):
        return []
    few, layers = cost.take(rows), cost.model.layers
    kind: PartName = "decoder" if cost.model.experts else "layer"
    layer, embedding, head = (few.passes.of(part).sum((0, 1)) for part in (kind, "embedding", "head"))
    ends = zip(rows.tolist(), (embedding / layer).round(2).tolist(), (head / layer).round(2).tolist(), strict=True)
    _, alike = distinct(*(getattr(few.grid, field.name) for field in fields(Grid) if field.name != "chunks"))
    shapes, found = dict[tuple[int, ...], LayoutSpec](), dict[tuple[int, int, Split], tuple[int, LayoutSpec]]()
    for (row, first, last), others in zip(ends, alike.tolist(), strict=True):
        key = int(cost.grid.pp[row]), int(cost.grid.chunks[row]), int(cost.grid.schedule[row])
        if key not in shapes:
            shapes[key] = cost.grid.spec(row, cost.model, cost.workload).layout
        for chunks, split in _splits(shapes[key], layers, first, last):
            layout = shapes[key].model_copy(update={"chunks": chunks, "split": split})
            found.setdefault((others, chunks, split), (row, layout))
    return list(found.values())


def _tried(cost: Cost, row: int, pipeline: LayoutSpec) -> _Tried:
    """The layout of a row with the chunks and the split of `pipeline`."""
    spec = cost.grid.spec(row, cost.model, cost.workload)
    layout = spec.layout.model_copy(update={"chunks": pipeline.chunks, "split": pipeline.split})
    return _Tried(row, spec.model_copy(update={"layout": layout}))


def _fits(one: _Tried) -> bool:
    return not misfits(one.spec.model, one.spec.layout, one.spec.workload)


def _splits(layout: LayoutSpec, layers: int, embedding: float, head: float) -> Iterator[tuple[int, Split]]:
    """Chunks of a stage, and their balanced split, where it is not the layout's even one."""
    more = _with_ends_alone(layers, layout.pp) if layout.facts.chunks is None else set[int]()
    for chunks in sorted({layout.chunks, *more}):
        split = balanced(layout.model_copy(update={"chunks": chunks}).placement, layers, embedding, head)
        if chunks != layout.chunks or split != layout.chunk_layers(layers):
            yield chunks, split


def _with_ends_alone(layers: int, pp: int) -> set[int]:
    """Chunks of a stage with which the last chunk of all, or the first as well, has no layer, and each other has one."""
    return {(layers + alone) // pp for alone in (1, 2) if (layers + alone) % pp == 0 and layers + alone >= 2 * pp}


@lru_cache(maxsize=1024)
def balanced(placement: Split, layers: int, embedding: float, head: float) -> Split:
    """The layers of each chunk with which the slowest stage takes least; of equal ones, the first stages have fewest.

    `placement`: the stage of each chunk. `embedding`, `head`: how many layers take as long. Chunks between the first and the
    last have one layer at least, which is no more than `layers` in total.
    """
    last = len(placement) - 1
    counts = [0 if chunk in (0, last) else 1 for chunk in range(last + 1)]
    extra = [0.0] * (last + 1)
    extra[0], extra[last] = embedding, head
    on = defaultdict[int, list[int]](list)
    for chunk, stage in enumerate(placement):
        on[stage].append(chunk)
    loads = [(sum(counts[chunk] + extra[chunk] for chunk in on[stage]), -stage) for stage in on]
    heapify(loads)
    for _ in range(layers - sum(counts)):
        load, stage = heappop(loads)
        smallest = min(on[-stage], key=lambda chunk: (counts[chunk] + extra[chunk], -chunk))
        counts[smallest] += 1
        heappush(loads, (load + 1, stage))
    return tuple(counts)


# -------------------------------------------------------------------------------------------------------------- fitting


def _made_to_fit(
    cost: Cost, times: StepTime, held: Whole, fits: Marks, free: Callable[[Grid, Whole], Whole]
) -> Iterator[tuple[_Tried, list[int]]]:
    """The fastest layouts that are slightly too large, with a split that makes them fit, and the bytes of each of their stages.

    Only those that are faster than all that fit, and whose last stages have room: with one chunk a stage, each holds one
    microbatch less than the stage before it.
    """
    have = cost.device.memory_bytes
    best = times.step[fits].min(initial=np.inf)
    descends = cost.grid.by_schedule(lambda facts: facts.chunks == 1 and facts.memory_repeats_after is not None)
    near = np.flatnonzero(~fits & (cost.grid.pp > 1) & descends & (held <= _NEAR * have) & (times.step < best))
    kept = free(cost.grid.take(near), held[near])
    close = np.flatnonzero(held[near] <= _NEAR * (have - kept))
    for place in close[np.argsort(times.step[near[close]], kind="stable")][:_NEAR_TRIED].tolist():
        row, room = int(near[place]), have - int(kept[place])
        spec = cost.grid.spec(row, cost.model, cost.workload)
        peaks = _peaks(spec)
        for _ in range(_ROUNDS):
            split = moved(spec, peaks, room)
            if split is None:
                break
            spec = spec.model_copy(update={"layout": spec.layout.model_copy(update={"split": split})})
            peaks = _peaks(spec)
            if max(peaks) <= room:
                yield _Tried(row, spec), peaks
                break


def moved(spec: RunSpec, peaks: Sequence[int], room: int) -> Split | None:
    """A split with layers moved from stages that need more than `room` bytes to the emptiest ones. None where that cannot help.

    `peaks`: bytes of each stage. A layer is taken to need its share of its stage's bytes.
    """
    layout, layers = spec.layout, spec.model.layers
    counts, stages = list(layout.chunk_layers(layers)), layout.stage_layers(layers)
    a_layer = [peak / max(1, count) for peak, count in zip(peaks, stages, strict=True)]
    now, last = [float(peak) for peak in peaks], len(counts) - 1
    for _ in range(layers):
        fullest, emptiest = int(np.argmax(now)), int(np.argmin(now))
        if now[fullest] <= room:
            return tuple(counts)
        giving = [c for c, s in enumerate(layout.placement) if s == fullest and counts[c] > (0 if c in (0, last) else 1)]
        taking = [c for c, s in enumerate(layout.placement) if s == emptiest]
        if not giving or now[emptiest] + a_layer[emptiest] > room:
            return None
        counts[max(giving, key=lambda chunk: counts[chunk])] -= 1
        counts[min(taking, key=lambda chunk: counts[chunk])] += 1
        now[fullest] -= a_layer[fullest]
        now[emptiest] += a_layer[emptiest]
    return None


# --------------------------------------------------------------------------------------------------- of one layout each


def _peaks(spec: RunSpec) -> list[int]:
    return [peak.total for peak in memory(spec).peaks]


def _busiest(spec: RunSpec) -> dict[str, int]:
    """Wire bytes of the busiest rank over each axis."""
    found, mesh = Training(spec), spec.layout.mesh
    most: dict[str, int] = dict.fromkeys(CALL_AXES_BY_FREQUENCY, 0)
    for stage in range(spec.layout.pp):
        sent: dict[str, int] = defaultdict(int)
        for call in found.calls(stage):
            sent[call.axis] += call.calls * wire_bytes(call.collective, call.payload_bytes, call.ranks(mesh.degree(call.axis)))
        most = {axis: max(bytes_, sent[axis]) for axis, bytes_ in most.items()}
    return most


def _grid(grid: Grid, rows: Sequence[int], layouts: Sequence[LayoutSpec]) -> Grid:
    """These rows, each with the number of chunks of its layout."""
    return replace(grid.take(list(rows)), chunks=np.array([layout.chunks for layout in layouts]))


def _passes(cost: Cost, rows: Sequence[int]) -> ModelPasses:
    """Of their layers and ends, which do not depend on the split."""
    return cost.passes.take(list(rows))


def _estimate(cost: Cost, rows: Sequence[int], layouts: Sequence[LayoutSpec]) -> StepTime:
    """In closed form, with the chunks and the split of `layouts`."""
    few = Cost(cost.model, cost.workload, _grid(cost.grid, rows, layouts), cost.device, cost.assumed, _passes(cost, rows))
    counts = [layout.stage_layers(cost.model.layers) for layout in layouts]
    first, last, middle = np.array([(one[0], one[-1], max(one[1:-1], default=0)) for one in counts]).T
    return estimate(few, (first, last, middle))


def _times(cost: Cost, tried: Sequence[_Tried]) -> StepTime:
    """Simulated. The difference to the closed form is added to `idle`, as for other layouts."""
    rows, specs = [one.row for one in tried], [one.spec for one in tried]
    closed = _estimate(cost, rows, [spec.layout for spec in specs])
    step, bubble = np.array(simulated_all(specs, cost.device, cost.assumed, _passes(cost, rows))).T
    return replace(closed, step=step, idle=closed.idle + step - closed.step, bubble=bubble)
