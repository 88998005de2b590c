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

from engine.ledger.dimensions import dimensions
from engine.ledger.form import Slicing
from engine.ledger.keep import Key, Ledgers
from engine.ledger.split import Stack
from engine.ledger.store import NotRecordedError
from engine.predict.bulk.actions import form_actions
from engine.predict.bulk.chunks import VALUES, Chunks, ChunkValues
from engine.predict.bulk.peak_candidates import peak_candidates
from engine.predict.bulk.pieces import Piece, pieces, pieces_of
from engine.predict.bulk.traces import ONES, ChunkForm, Layouts
from engine.predict.grid import RECOMPUTES, Grid, chunked_loss, distinct, multiplied
from engine.schedule import SCHEDULES
from engine.schedule.orders import enough_microbatches
from engine.spec import SCHEDULE_FACTS, ModelSpec, WorkloadSpec
from engine.spec.context import CONTEXTS

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

    Those of one structure stand together, and among them those of one ZeRO stage that tp cuts or does not, which are a group.
    """

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, ledgers: Ledgers | None) -> None:
        self.model, self.workload, self.ledgers = model, workload, ledgers
        sequence = grid.sequence_parallel & (grid.tp > 1)
        chunked = chunked_loss(model, workload, grid)
        shared = grid.shards // grid.ep
        alone = (grid.zero > 0) & (grid.ep > 1) & (shared == 1)
        kinds = (sequence, grid.recompute, chunked, grid.context, alone, *_ones(model, grid))
        known = {
            "zero": grid.zero,
            "cut": grid.tp > 1,
            "tp": grid.tp,
            "B": grid.microbatch_size,
            "cp": grid.cp,
            "ep": grid.ep,
            "dp": np.where(grid.zero > 0, grid.shards, 1),
            "dp of experts": np.where(grid.zero > 0, shared, 1),
        }
        first, self.which = distinct(*kinds, *known.values())
        self.known = {name: size[first] for name, size in known.items()}
        _, of_kind = distinct(*(kind[first] for kind in kinds))
        self.structures = [
            (self._layouts([int(kind[first[here.start]]) for kind in kinds]), here, self._groups(here))
            for here in _runs(of_kind, 0)
        ]

    def _layouts(self, kinds: list[int]) -> Layouts:
        sequence, recompute, chunked, context, alone, *flags = kinds
        ones = tuple(name for name, one in zip(ONES, flags, strict=True) if one)
        recomputes = RECOMPUTES[recompute]
        return Layouts(
            self.model, self.workload, recomputes, bool(sequence), ones, bool(chunked), CONTEXTS[context], bool(alone)
        )  # fmt: skip

    def _groups(self, here: slice) -> list[slice]:
        return _runs(2 * self.known["zero"][here] + self.known["cut"][here], here.start)

    def tables(self, masks: dict[Piece, Any]) -> tuple[dict[Piece, Real], dict[Piece, Array]]:
        """Of each piece a table of `VALUES`, (values, entries), and where in it each sizes' entry is, (sizes,)."""
        sizes, rows = dict[Piece, Array](), dict[Piece, Array]()
        for piece, mask in masks.items():
            present = np.zeros(len(self.known["tp"]), np.bool_)
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
                values = ChunkValues(chunks, list(some), slice(group.start - here.start, group.stop - here.start))
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
        for (structure, here, _), forms in zip(self.structures, forms_of, strict=True):
            missing |= form_actions(structure, self.ledgers).missing(forms, set(self.known["cut"][here].tolist()))
        if missing:
            raise NotRecordedError(missing)


def _ones(model: ModelSpec, grid: Grid) -> list[NDArray[np.bool_]]:
    """Of each of `ONES`, where it is 1. (n,) each"""
    found = {name: np.zeros(len(grid), np.bool_) for name in ONES}
    first, which = distinct(grid.sequence_parallel & (grid.tp > 1), grid.context, grid.ep > 1)
    for kind, one in enumerate(first.tolist()):
        here = np.flatnonzero(which == kind)
        some, context = grid.take(here), CONTEXTS[grid.context[one]]
        cut: Slicing = "sequence" if grid.sequence_parallel[one] and grid.tp[one] > 1 else "features"
        ep = some.ep if grid.ep[one] > 1 else 1
        sizes = dimensions(model, cut, some.tp, some.microbatch_size, cp=some.cp, context=context, ep=ep)
        for name in ONES:
            found[name][here] = sizes.get(name, 2) == 1
    return [found[name] for name in ONES]


def _runs(of: Array, start: int) -> list[slice]:
    """Runs of equal numbers, the first of which is number `start`."""
    cuts = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(of)]
    return [slice(start + one, start + other) for one, other in itertools.pairwise(cuts)]


def _enough(grid: Grid) -> Array:
    """So many microbatches that more of them bring no higher instant."""
    cases = [grid.schedule == i for i in range(len(SCHEDULES))]
    return np.select(cases, [enough_microbatches(name, grid.pp, grid.microbatches) for name in SCHEDULES])
