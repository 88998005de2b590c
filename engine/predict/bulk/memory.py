"""Peak memory of very many layouts at once: the same ledgers as `engine.predict.memory`, as products of matrices.

What each form of chunk does is in `engine.predict.bulk.chunks`, what of it is there at once in `engine.predict.bulk.instants`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.chunks import VALUES, Form, Structure, multiplied, table
from engine.predict.bulk.instants import instants, pieces
from engine.predict.grid import RECOMPUTES, Grid
from engine.schedule import SCHEDULES
from engine.spec import ModelSpec, ScheduleName, WorkloadSpec

Array = NDArray[np.int64]
Real = NDArray[np.float64]


def fullest(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> tuple[Array, Array]:
    """The peak of each layout's fullest stage in bytes, and which stage that is. `workload` gives what is not in the grid.

    Layers are split as evenly as can be. (n,), (n,)
    """
    best, where = np.zeros(len(grid), np.int64), np.zeros(len(grid), np.int64)
    sizes = _SizesOf(model, workload, grid)
    encoders = model.encoder_layers
    tables, rows = sizes.tables(pieces_of(model, grid))
    adamw = workload.optimizer == "adamw"
    microbatches = _enough(grid)
    early = grid.zero >= 2
    keys = (grid.schedule, grid.pp, microbatches, grid.chunks, early)
    shape = tuple(int(key.max()) + 1 for key in keys)
    _, first, which = np.unique(np.ravel_multi_index(keys, shape), return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    cuts = np.cumsum(np.bincount(which))[:-1]
    for one, some in zip(first.tolist(), np.split(order, cuts), strict=True):
        name, pp, chunks = SCHEDULES[grid.schedule[one]], int(grid.pp[one]), int(grid.chunks[one])
        found, _ = pieces(model.layers, encoders, pp * chunks)
        both = instants(name, pp, int(microbatches[one]), chunks, model.layers, encoders, adamw)
        matrix, beside, stages = both[bool(early[one])]
        mine = sizes.which[some]
        have = np.concatenate([tables[piece.form][:, rows[piece][mine]] for piece in found])
        reached = multiplied(matrix, have) + beside[:, None]
        top = reached.argmax(0)
        best[some] = reached[top, np.arange(len(some))]
        where[some] = stages[top]
    return best, where


def pieces_of(model: ModelSpec, grid: Grid) -> dict[Any, Any]:
    """Of each piece of a model that some layout has, which layouts: (n,) masks."""
    masks: dict[Any, Any] = {}
    total = grid.pp * grid.chunks
    for count in np.unique(total).tolist():
        for piece in pieces(model.layers, model.encoder_layers, count)[0]:
            mask = total == count
            masks[piece] = masks[piece] | mask if piece in masks else mask
    return masks


class _SizesOf:
    """Layouts by what their chunks' sizes depend on: `which[i]` is the number of layout i's sizes, a structure's together."""

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> None:
        self.model, self.workload = model, workload
        heads, groups = model.heads // grid.tp > 1, model.key_heads // grid.tp > 1
        flags = (grid.microbatch_size > 1, grid.tp > 1, heads, groups)
        kinds = (grid.zero, grid.sequence_parallel & (grid.tp > 1), grid.recompute, *flags)
        sizes = (grid.tp, grid.microbatch_size, np.where(grid.zero > 0, grid.dp, 1))
        keys = tuple(np.asarray(key, np.int64) for key in (*kinds, *sizes))
        shape = tuple(int(key.max()) + 1 for key in keys)
        _, first, self.which = np.unique(np.ravel_multi_index(keys, shape), return_index=True, return_inverse=True)
        self.known = {name: size[first] for name, size in zip(("tp", "B", "dp"), sizes, strict=True)}
        of_kind = np.ravel_multi_index(tuple(key[first] for key in keys[: len(kinds)]), shape[: len(kinds)])
        _, starts = np.unique(of_kind, return_index=True)
        self.groups = list(zip(starts.tolist(), [*starts.tolist()[1:], len(first)], strict=True))
        self.kinds = [tuple(int(key[first[start]]) for key in keys[: len(kinds)]) for start, _ in self.groups]

    def structure(self, group: int) -> Structure:
        zero, sequence, recompute, *flags = self.kinds[group]
        many, cut, heads, groups = (bool(flag) for flag in flags)
        return Structure(self.model, self.workload, RECOMPUTES[recompute], bool(sequence), (many, cut, heads, groups), zero)

    def tables(self, masks: dict[Any, Any]) -> tuple[dict[Form, Real], dict[Any, Array]]:
        """Of each form a table of `VALUES`, (values, entries), and of each piece where in it each sizes' entry is."""
        count = len(self.known["tp"])
        by_form: dict[Form, list[Any]] = defaultdict(list)
        for piece, mask in masks.items():
            present = np.zeros(count, np.bool_)
            present[self.which[mask]] = True
            by_form[piece.form].append((piece, np.flatnonzero(present)))
        tables, rows = {}, {}
        for form, found in by_form.items():
            total = sum(len(present) for _, present in found)
            out, done = np.empty((len(VALUES), total)), 0
            entries = np.concatenate([present for _, present in found])
            between = np.concatenate([np.tile(piece.between, (len(present), 1)) for piece, present in found])
            for piece, present in found:
                rows[piece] = np.zeros(count, np.int64)
                rows[piece][present] = done + np.arange(len(present))
                done += len(present)
            order = np.argsort(entries, kind="stable")
            bounds = np.searchsorted(entries[order], [start for start, _ in self.groups] + [count])
            for group, (start, stop) in enumerate(self.groups):
                some = order[bounds[group] : bounds[group + 1]]
                if len(some):
                    out[:, some] = self._values(group, form, start, stop, entries[some] - start, between[some])
            tables[form] = out
        return tables, rows

    def _values(self, group: int, form: Form, start: int, stop: int, which: Any, between: Any) -> Real:
        """`VALUES` of a form of chunk for some sizes and numbers of layers, (values, n)."""
        made = table(self.structure(group), form)
        own, *layers = made.sizes({name: size[start:stop] for name, size in self.known.items()})
        reached = own[:, which]
        for part, count, inner in zip(layers, between.T, made.inner, strict=True):
            if count.any():
                reached += part[:, which] * count
            none = np.flatnonzero(count == 0)
            if len(inner) and len(none):
                reached[np.ix_(inner, none)] = 0
        return np.maximum.reduceat(reached, made.starts, axis=0)


def _enough(grid: Grid) -> Array:
    """So many microbatches that more of them bring no higher instant: the rest repeats what was there already."""
    pp, m = grid.pp, grid.microbatches
    most: dict[ScheduleName, Any] = {
        "naive": np.full_like(pp, 3), "gpipe": m, "1f1b": pp + 2, "interleaved": np.where(m % pp, m, 3 * pp),
        "zb-h1": 2 * pp + 2, "zb-v": 4 * pp, "dualpipe-v": 4 * pp,
    }  # fmt: skip
    return np.minimum(m, np.select([grid.schedule == i for i in range(len(SCHEDULES))], [most[name] for name in SCHEDULES]))
