"""Many layouts as arrays: the planner searches them, and formulas are evaluated for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engine.schedule import SCHEDULES
from engine.spec import (
    SCHEDULE_FACTS,
    LayoutSpec,
    ModelSpec,
    Recompute,
    RecomputePart,
    RunSpec,
    ScheduleFacts,
    WorkloadSpec,
    recomputes,
)
from engine.spec.context import CONTEXTS, context_of, kind_of
from engine.topology import AXES, AXES_AS_WRITTEN, REPLICATED, Axis

RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
Whole = NDArray[np.int64]
Real = NDArray[np.float64]
Marks = NDArray[np.bool_]
_SMALL = 200_000  # multiplications


def distinct(*columns: Any) -> tuple[Whole, Whole]:
    """The distinct rows of columns of whole numbers ≥ 0, (n,) each. As `np.unique` of rows, but faster.

    Returns the index of the first row of each distinct one, in the order of their values, and the number of the distinct row that
    each row equals, (n,). It is fast if the numbers are small, since numpy sorts narrow keys by radix, or if rows are nearly
    sorted.
    """
    shape = [int(column.max(initial=0)) + 1 for column in columns]
    if prod(shape) > 2**62:  # does not fit into one key of 64 bits
        _, half = distinct(*columns[: len(columns) // 2])
        return distinct(half, *columns[len(columns) // 2 :])
    key = np.ravel_multi_index(columns, shape).astype(np.min_scalar_type(prod(shape)))
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return first, which


def multiplied(one: Real, other: Real) -> Real:
    """(a, b) · (b, c), some columns at a time: products so small are not shared out among threads, which would wait for work."""
    at_once = max(1, _SMALL // one.size)
    if at_once >= other.shape[1]:
        return one @ other
    return np.concatenate([one @ other[:, i : i + at_once] for i in range(0, other.shape[1], at_once)], axis=1)


def which_layers(layout: LayoutSpec) -> int:
    """Which layers full recompute recomputes, as one number ≥ 0: 0 all, 2 n the first n of each chunk, 2 n + 1 every n-th."""
    if not layout.recomputes_some:
        return 0
    return 2 * layout.recompute_layers if layout.recompute_layers else 2 * layout.recompute_every + 1


def recomputed_of(recomputed: Whole, layers: Any, stages: Any, chunks: Any) -> Whole:
    """How many of `layers` on so many stages with so many chunks each are recomputed whole, where `recomputed` > 0. (n,)"""
    count, every = recomputed // 2, recomputed % 2 == 1

    def spread(parts: Any, of_part: Callable[[Any], Any]) -> Any:
        each, more = np.divmod(layers, parts)
        return (parts - more) * of_part(each) + more * of_part(each + 1)

    first, by_turn = spread(stages * chunks, lambda n: np.minimum(n, count)), spread(stages, lambda n: n // np.maximum(1, count))
    found: Whole = np.where(every, by_turn, first)
    return found


def chosen_layers(number: int) -> dict[str, int]:
    """The fields of a layout that `which_layers` says in one number."""
    count, every = divmod(number, 2)
    return {"recompute_every": count} if every else {"recompute_layers": count}


@dataclass(frozen=True)
class Grid:
    """Entry i of every array, (n,), is one layout with its microbatches. Layers are split as evenly as possible."""

    dp: Whole
    tp: Whole
    pp: Whole
    chunks: Whole
    microbatch_size: Whole
    microbatches: Whole
    zero: Whole
    sequence_parallel: NDArray[np.bool_]
    recompute: Whole  # index in RECOMPUTES
    schedule: Whole  # index in SCHEDULES
    cp: Whole
    context: Whole  # index in CONTEXTS
    ep: Whole
    recomputed: Whole  # with full recompute, which layers: see `which_layers`
    zero_replicas: Whole  # groups over which ZeRO shards, see `LayoutSpec`

    def __len__(self) -> int:
        return len(self.dp)

    @property
    def degrees(self) -> dict[Axis, Whole]:
        """The degrees of all meshes, by axis. (n,) each"""
        return {axis: getattr(self, axis) for axis in AXES_AS_WRITTEN}

    @property
    def replicas(self) -> Whole:
        """The ranks that hold the same parameters, see `engine.topology.REPLICATED`. (n,)"""
        found: Whole = np.multiply.reduce([self.degrees[axis] for axis in REPLICATED])
        return found

    @property
    def shards(self) -> Whole:
        """The ranks over which ZeRO shards. (n,)"""
        return self.replicas // self.zero_replicas

    def take(self, which: Any) -> Grid:
        """The layouts that an index array, a slice or a mask selects."""
        return Grid(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def joined(self, other: Grid) -> Grid:
        """The layouts of this one, and then of the other."""
        return Grid(**{f.name: np.append(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def recomputes(self, part: RecomputePart) -> NDArray[np.bool_]:
        """Whether each layout computes that part of layers again in backward, and not whole layers. (n,)"""
        return np.array([recomputes(kind, part) for kind in RECOMPUTES])[self.recompute]

    def recomputed_share(self, layers: int) -> Real:
        """The share of so many layers that backward computes again whole. (n,)"""
        some = recomputed_of(self.recomputed, layers, self.pp, self.chunks) / layers
        return np.where(self.recompute == RECOMPUTES.index("full"), np.where(self.recomputed > 0, some, 1.0), 0.0)

    def by_schedule(self, fact: Callable[[ScheduleFacts], Any]) -> Any:
        """`fact` of each layout's schedule. (n,)"""
        return np.array([fact(SCHEDULE_FACTS[name]) for name in SCHEDULES])[self.schedule]

    @property
    def v_shaped(self) -> NDArray[np.bool_]:
        return self.by_schedule(lambda facts: facts.v_shaped)

    def schedules(self) -> Iterator[tuple[ScheduleFacts, Whole]]:
        """Every schedule, and the indices of the rows that have it."""
        for index, name in enumerate(SCHEDULES):
            yield SCHEDULE_FACTS[name], np.flatnonzero(self.schedule == index)

    @classmethod
    def of(cls, specs: Sequence[RunSpec]) -> Grid:
        """The grid of the layouts of `specs`."""
        layouts, workloads = [spec.layout for spec in specs], [spec.workload for spec in specs]

        def whole(values: Iterable[int]) -> Whole:
            return np.fromiter(values, np.int64, len(specs))

        return cls(
            **{axis: whole(layout.mesh[axis] for layout in layouts) for axis in AXES},
            chunks=whole(layout.chunks for layout in layouts),
            microbatch_size=whole(workload.microbatch_size for workload in workloads),
            microbatches=whole(workload.microbatches for workload in workloads),
            zero=whole(layout.zero for layout in layouts),
            sequence_parallel=np.fromiter((layout.sequence_parallel for layout in layouts), np.bool_, len(specs)),
            recompute=whole(RECOMPUTES.index(layout.recompute) for layout in layouts),
            schedule=whole(SCHEDULES.index(layout.schedule) for layout in layouts),
            context=whole(CONTEXTS.index(context_of(layout)) for layout in layouts),
            ep=whole(layout.ep for layout in layouts),
            recomputed=whole(map(which_layers, layouts)),
            zero_replicas=whole(layout.zero_replicas for layout in layouts),
        )

    def spec(self, index: int, model: ModelSpec, workload: WorkloadSpec, split: tuple[int, ...] = ()) -> RunSpec:
        """Row `index` as a spec. `workload`: the settings that are not in the grid. Raises `RequestError` if it does not fit.

        `split`: layers of each chunk, if it is not the even split.
        """
        layout = LayoutSpec(
            split=split, **{axis: int(degree[index]) for axis, degree in self.degrees.items()}, chunks=int(self.chunks[index]),
            schedule=SCHEDULES[self.schedule[index]], zero=int(self.zero[index]),
            sequence_parallel=bool(self.sequence_parallel[index]), recompute=RECOMPUTES[self.recompute[index]],
            context_parallel=kind_of(CONTEXTS[self.context[index]]), ep=int(self.ep[index]),
            **chosen_layers(int(self.recomputed[index])), zero_replicas=int(self.zero_replicas[index]),
        )  # fmt: skip
        counts = {"microbatch_size": int(self.microbatch_size[index]), "microbatches": int(self.microbatches[index])}
        return RunSpec(model=model, layout=layout, workload=workload.model_copy(update=counts))
