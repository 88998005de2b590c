"""Peak memory of very many layouts at once: the same ledgers as `engine.predict.memory`, as products of matrices.

What each form of chunk does is in `engine.predict.bulk.chunks`, what of it is there at once in
`engine.predict.bulk.peak_candidates`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import Grid, distinct, multiplied
from engine.ledger.keep import Key, Ledgers
from engine.ledger.split import Stack
from engine.ledger.store import NotRecordedError
from engine.predict.bulk.actions import form_actions
from engine.predict.bulk.chunks import VALUES, Chunks, ChunkValues
from engine.predict.bulk.peak_candidates import peak_candidates
from engine.predict.bulk.pieces import Piece, pieces, pieces_of
from engine.predict.bulk.traces import ChunkForm
from engine.predict.structures import StructureGroup, by_structure
from engine.schedule import SCHEDULES
from engine.schedule.orders import enough_microbatches
from engine.spec import SCHEDULE_FACTS, ModelSpec, WorkloadSpec

Array = NDArray[np.int64]
Real = NDArray[np.float64]


def fullest(
    model: ModelSpec, workload: WorkloadSpec, grid: Grid, ledgers: Ledgers | None = None, all_stages: bool = False
) -> tuple[Array, Array]:
    """The peak of each layout's fullest stage in bytes, and which stage that is, the first of several as full.

    `workload` gives what is not in the grid. Layers are split as evenly as can be. `ledgers`: those to read, in place of
    `ledger_store()`. `all_stages`: whether stages that cannot be the first of the fullest are worked out too. (n,), (n,)

    Raises `NotRecordedError` for all ledgers that are missing.
    """
    best, where = np.zeros(len(grid), np.int64), np.zeros(len(grid), np.int64)
    sizes = _SizesOf(model, workload, grid, ledgers)
    stack = Stack.of(model)
    tables, rows = sizes.tables(pieces_of(model, grid))
    microbatches = _enough(grid)
    early = grid.zero >= 2
    first, which = distinct(grid.schedule, grid.pp, grid.chunks, grid.recomputed)
    for one, of_shape in zip(first.tolist(), _groups(which), strict=True):
        name, pp, chunks = SCHEDULES[grid.schedule[one]], int(grid.pp[one]), int(grid.chunks[one])
        recomputed, bends = int(grid.recomputed[one]), SCHEDULE_FACTS[name].v_shaped
        found, _ = pieces(stack, pp, chunks, bends, recomputed)
        numbers = np.unique(microbatches[of_shape])
        candidates = peak_candidates(name, pp, chunks, tuple(numbers.tolist()), stack, all_stages, recomputed)
        each, kind = distinct(microbatches[of_shape], early[of_shape])
        here = of_shape[np.argsort(kind, kind="stable")]
        have = _had(tables, rows, found, candidates.columns, sizes.which[here])
        for example, part in zip(of_shape[each].tolist(), _runs(np.sort(kind), 0), strict=True):
            matrix, beside, stages = candidates.of[int(microbatches[example])]
            reached = multiplied(matrix[int(early[example])].astype(np.float64), have[:, part])
            reached += beside[:, None]
            best[here[part]] = most = reached.max(0)
            where[here[part]] = np.where(reached == most, stages[:, None], pp).min(0)
    return best, where


def _had(
    tables: dict[Piece, Real], rows: dict[Piece, Array], found: tuple[Piece, ...], columns: list[tuple[int, int]], sizes: Array
) -> Real:
    """What layouts of these sizes have of some values of some pieces, (columns, n)."""
    where = [rows[piece][sizes] for piece in found]
    have = np.empty((len(columns), len(sizes)))
    for out, (piece, value) in zip(have, columns, strict=True):
        tables[found[piece]][value].take(where[piece], out=out, mode="clip")  # which checks nothing, as all are there
    return have


def _groups(which: Array) -> list[Array]:
    """The rows of each combination."""
    return np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])


class _SizesOf:
    """Layouts by what their chunks' sizes depend on: `which[i]` is the number of layout i's sizes.

    Those of one structure stand together, and among them those of one ZeRO stage, which are a group.
    """

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, ledgers: Ledgers | None) -> None:
        self.workload, self.ledgers = workload, ledgers
        of_experts = grid.shards // grid.ep
        alone = (grid.zero > 0) & (grid.ep > 1) & (of_experts == 1)
        dp, of_experts = (np.where(grid.zero > 0, parts, 1) for parts in (grid.shards, of_experts))
        sequence = grid.sequence_parallel & (grid.tp > 1)
        first, which = distinct(
            grid.recompute, grid.context, alone, grid.zero, grid.tp, grid.cp, grid.ep, grid.microbatch_size, sequence, dp,
            of_experts,
        )  # fmt: skip
        known = {"zero": grid.zero, "alone": alone, "dp": dp, "dp of experts": of_experts}
        kinds, order = 2 * grid.zero[first] + alone[first], list[Array]()
        self.structures, start = list[tuple[StructureGroup, slice, list[slice]]](), 0
        for group in by_structure(model, workload, grid.take(first)):
            own = kinds[group.rows]
            sorted_ = np.argsort(own, kind="stable")
            order.append(group.rows[sorted_])
            here = slice(start, start + len(own))
            placed = group._replace(rows=order[-1], which=group.which[sorted_])
            self.structures.append((placed, here, _runs(own[sorted_], start)))
            start = here.stop
        every = np.concatenate(order)
        self.which, self.count = np.argsort(every)[which], len(every)
        self.known = {name: of[first[every]] for name, of in known.items()}

    def tables(self, masks: dict[Piece, Any]) -> tuple[dict[Piece, Real], dict[Piece, Array]]:
        """Of each piece a table of `VALUES`, (values, entries), and where in it each sizes' entry is, (sizes,)."""
        sizes, rows = dict[Piece, Array](), dict[Piece, Array]()
        for piece, mask in masks.items():
            present = np.zeros(self.count, np.bool_)
            present[self.which[mask]] = True
            sizes[piece], rows[piece] = np.flatnonzero(present), present.cumsum() - 1
        tables = {piece: np.empty((len(VALUES), len(of))) for piece, of in sizes.items()}
        entries = iter(self._entries(sizes))
        todo = [(structure, here, [(group, next(entries)) for group in groups]) for structure, here, groups in self.structures]
        forms_of = [list(dict.fromkeys(form for _, some in groups for form in some)) for _, _, groups in todo]
        self._check(forms_of)
        for (structure, here, groups), forms in zip(todo, forms_of, strict=True):
            chunks = Chunks(structure, forms, {name: size[here] for name, size in self.known.items()}, self.ledgers)
            for group, some in groups:
                values = ChunkValues(chunks, self.workload, list(some), slice(group.start - here.start, group.stop - here.start))
                for form, of in some.items():
                    several = [sizes[piece][part] for piece, part in of.items()]
                    lengths = [len(one) for one in several]
                    between = np.repeat([piece.between for piece in of], lengths, axis=0)
                    found = values.of(form, np.concatenate(several) - group.start, between)
                    for (piece, part), one in zip(of.items(), np.split(found, np.cumsum(lengths)[:-1], axis=1), strict=True):
                        tables[piece][:, part] = one
        return tables, rows

    def _entries(self, sizes: dict[Piece, Array]) -> list[dict[ChunkForm, dict[Piece, slice]]]:
        """Of each group, by form, the pieces that it has, and which of their sizes are the group's."""
        starts = [group.start for _, _, groups in self.structures for group in groups]
        found: list[dict[ChunkForm, dict[Piece, slice]]] = [defaultdict(dict) for _ in starts]
        for piece, of in sizes.items():
            bounds = [*np.searchsorted(of, starts).tolist(), len(of)]
            for some, (start, stop) in zip(found, itertools.pairwise(bounds), strict=True):
                if start < stop:
                    some[piece.form][piece] = slice(start, stop)
        return found

    def _check(self, forms_of: list[list[ChunkForm]]) -> None:
        """So that all ledgers that are missing are recorded at once."""
        missing = set[Key]()
        for (group, _, _), forms in zip(self.structures, forms_of, strict=True):
            missing |= form_actions(group.structure, self.ledgers).missing(forms)
        if missing:
            raise NotRecordedError(missing)


def _runs(of: Array, start: int) -> list[slice]:
    """Runs of equal numbers, the first of which is number `start`."""
    cuts = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(of)]
    return [slice(start + one, start + other) for one, other in itertools.pairwise(cuts)]


def _enough(grid: Grid) -> Array:
    """So many microbatches that more of them bring no higher instant."""
    cases = [grid.schedule == i for i in range(len(SCHEDULES))]
    return np.select(cases, [enough_microbatches(name, grid.pp, grid.microbatches) for name in SCHEDULES])
