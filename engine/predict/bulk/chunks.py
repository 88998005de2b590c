"""What one chunk's passes do to memory, for very many layouts at once: the spans of a trace, put together as ZeRO has it.

The highest point of each action is the highest of some rows: one for the spans before the layers between a chunk's first and
last, and so on (see `_TableBuilder.points`). A row has a part of its own and parts for each of the layers between; so the same
rows serve for any number of layers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.keep import Ledgers
from engine.predict.bulk.actions import ACTIONS, Actions, Whole, form_actions
from engine.predict.bulk.arrays import joined
from engine.predict.bulk.traces import ChunkForm, FormTrace, Layouts, figures_of
from engine.predict.memory.amounts import AMOUNTS, between_passes
from engine.predict.memory.update import SizedBucket, UpdateMemory, bytes_of
from engine.terms import Factor

Real = NDArray[np.float64]

# What a stage holds all the time, and the optimizer's step twice; with that, all that a chunk has.
UPDATE = ("states", "norm", "step")
STANDS = (*AMOUNTS, *UPDATE)
VALUES = (*ACTIONS, *STANDS)
_A = {name: i for i, name in enumerate(ACTIONS)}


@dataclass(frozen=True)
class Table:
    """`parts`: each row's own part and parts for each of the layers `t0` and, where there are two kinds, `t1` between.
    (2 or 3, rows, n)

    Value i of `VALUES` is the highest of the rows from `starts[which[i]]` to the next start: some values are always the same.
    `inner`: rows that are there where `t0` or `t1` is not 0.
    """

    parts: Real
    starts: NDArray[np.int64]
    which: NDArray[np.int64]
    inner: tuple[NDArray[np.int64], NDArray[np.int64]]


class Chunks:
    """The chunks of one structure's layouts. `known`: `tp`, `B`, `dp` and `zero` of each, and whether it is `cut`, (n,)."""

    def __init__(self, layouts: Layouts, forms: list[ChunkForm], known: dict[str, Any], ledgers: Ledgers | None) -> None:
        self.layouts, self.known, self.does = layouts, known, form_actions(layouts, ledgers)
        kinds = {(zero, cut > 0) for zero, cut in zip(known["zero"].tolist(), known["cut"].tolist(), strict=True)}
        self.actions = {(form, *kind): self.does.actions(form, *kind) for form in forms for kind in kinds}
        self.runs = self.does.runs()
        letters = {"tp": known["tp"], "B": known["B"]}
        shape = tuple(int(of.max()) + 1 for of in letters.values())
        keys = np.ravel_multi_index(tuple(letters.values()), shape)
        _, first, self._which = np.unique(keys, return_index=True, return_inverse=True)
        self._nets, self._tops = self.does.figures({name: of[first] for name, of in letters.items()}, len(first))
        found: dict[Any, Any] = {}
        several = self.does.bucket_sizes()
        self.buckets = np.empty((len(several), 2, len(known["tp"])))  # numbers of each on a rank, and in one replica's share
        for sizes, out in zip(several, self.buckets, strict=True):
            out[0], out[1] = figures_of(sizes, self.known, found)

    def tables(self, forms: list[ChunkForm], here: slice) -> dict[ChunkForm, Table]:
        """`VALUES` of each form, of the layouts `here`, which all have one ZeRO stage and are all cut or not."""
        zero, cut = int(self.known["zero"][here.start]), bool(self.known["cut"][here.start])
        builder = _TableBuilder(self, zero, here)
        several = [self.actions[form, zero, cut] for form in forms]
        found = zip(forms, several, builder.points(several), strict=True)
        return {form: builder.table(self.does.of(form, zero >= 2, cut), actions, *points) for form, actions, points in found}

    def spans(self, here: slice) -> tuple[Real, Real]:
        which = self._which[here]
        return self._nets[:, which], self._tops[:, which]


class _ActionPoints(NamedTuple):
    """Of one form: highest points as in `Table`; and what each of `ACTIONS` leaves, (parts, actions, n)."""

    points: Table
    leaves: Real


class _TableBuilder:
    """The tables of some forms of chunk at one ZeRO stage."""

    def __init__(self, chunks: Chunks, zero: int, here: slice) -> None:
        self.layouts, self.zero = chunks.layouts, zero
        self.known = {name: of[here] for name, of in chunks.known.items()}
        self.count = len(self.known["tp"])
        self.parts = 1 + (2 if self.layouts.model.parts.encoder else 1)
        self.found: dict[Any, Any] = {}
        self.e = self.layouts.e.value
        self.width = self.layouts.width.value if zero == 1 else self.e  # bytes of a number that a reduction receives
        self.buckets = chunks.buckets[:, :, here]  # (buckets, 2, n)
        spans, highest = chunks.spans(here)
        whole, share = self.buckets.swapaxes(0, 1)
        blocks = np.stack([share * self.width, -share * self.width, whole * self.e, -whole * self.e], axis=1)
        blocks = blocks.reshape(-1, self.count)
        nothing = np.zeros((1, self.count))
        self.leaves = np.concatenate([nothing, spans, blocks[::-1]])  # blocks are counted from the end
        self.tops = np.concatenate([nothing, highest, np.maximum(blocks[::-1], 0)])
        self.runs = chunks.runs

    def points(self, several: list[Actions]) -> list[_ActionPoints]:
        """Of each of several forms, all at once.

        Of a run that is there `t` times the highest point is in the first or in the last: t − 1 times what it leaves higher.
        Points are summed up for a run that is there once; so its own part is that, less what it leaves.
        """
        firsts, letters, points, bounds = self._runs(several)
        repeats = letters > 0
        runs = np.repeat(np.arange(len(letters)), 1 + repeats)
        ahead = runs + np.append(False, runs[1:] == runs[:-1])  # how many are over; of a run that is there again, it as well
        of_action = firsts[np.searchsorted(firsts, runs, side="right") - 1]
        stops = np.append(firsts[1:], len(letters))
        begin, end = np.concatenate([of_action, firsts]), np.concatenate([ahead, stops])
        parts = np.zeros((self.parts, len(begin), self.count))
        parts[0, : len(runs)] = points[runs] - bounds[of_action]
        parts[0, len(runs) :] = bounds[stops] - bounds[firsts]
        for letter in np.unique(letters[repeats]).tolist():
            again = np.flatnonzero(letters == letter)
            passed = np.zeros((len(again) + 1, self.count))
            np.cumsum(bounds[again + 1] - bounds[again], axis=0, out=passed[1:])
            before, over = np.searchsorted(again, begin), np.searchsorted(again, end)
            some = np.flatnonzero(over > before)
            parts[letter, some] = passed[over[some]] - passed[before[some]]
            parts[0, some] -= parts[letter, some]
        return _apart(several, parts, letters[runs], np.append(np.searchsorted(runs, firsts), len(runs)).tolist())

    def _runs(self, several: list[Actions]) -> tuple[Whole, Whole, Real, Real]:
        """All runs, one behind the other: the first of each action; the letter of each; its highest point, (runs, n); and what
        there is before each and after the last, (runs + 1, n).
        """
        before = np.cumsum([0, *(len(one.runs) for one in several)]).tolist()
        firsts = np.concatenate([one.firsts + runs for one, runs in zip(several, before, strict=False)])
        numbers, which = np.unique(np.concatenate([one.runs for one in several]), return_inverse=True)
        leaves, tops = joined(self.leaves, self.tops, [self.runs[number] for number in numbers.tolist()])
        bounds = np.zeros((len(which) + 1, self.count))
        np.cumsum(leaves[which], axis=0, out=bounds[1:])
        return firsts, np.concatenate([one.letters for one in several]), bounds[:-1] + tops[which], bounds

    def table(self, trace: FormTrace, actions: Actions, points: Table, leaves: Real) -> Table:
        """With what stands between actions."""
        figures = figures_of(trace.amounts.values(), self.known, self.found)
        messages = {name: self._once(size) for name, size in zip(trace.amounts, figures, strict=True)}
        found = between_passes(
            lambda state: leaves[:, _A[state]], messages, actions.pending, lambda bucket: self._under_way(actions, bucket)
        )
        ends = np.stack([*(found[name] for name in AMOUNTS), *self._standing(actions)], axis=1)
        return Table(
            np.concatenate([points.parts, ends], axis=1),
            np.concatenate([points.starts, points.parts.shape[1] + np.arange(len(STANDS))]),
            np.concatenate([points.which, len(points.starts) + np.arange(len(STANDS))]),
            points.inner,
        )

    def _once(self, size: Any) -> Real:
        """A size that does not depend on the number of layers, (parts, n)."""
        found = np.zeros((self.parts, self.count))
        found[0] = size
        return found

    def _under_way(self, actions: Actions, bucket: int) -> Real:
        if bucket < 0:
            return self._once(0.0)
        whole, share = self.buckets[actions.uses[bucket].number]
        return self._once(share * self.width + (whole * self.e if self.zero >= 2 else 0.0))

    def _standing(self, actions: Actions) -> Real:
        """Parameters, gradients and the optimizer's, and what its step takes: (3, parts, n)."""
        places = np.zeros((len(UPDATE), self.parts, self.count))
        for number, part, counted in actions.uses:
            for which, (place, each) in enumerate(zip(places, self._updated, strict=True)):
                if counted or which != 1:
                    place[part] += each[number]
        return places

    @cached_property
    def _updated(self) -> tuple[Real, Real, Real]:
        """Of each bucket what stands, what its norm takes, which is two numbers, and its update. (buckets, n) each"""
        whole, share = self.buckets.swapaxes(0, 1)
        memory = UpdateMemory(self.layouts.workload, self.zero, self.layouts.e, self.layouts.width)
        every, nothing = SizedBucket(Factor("Ψ", whole), Factor("Ψ/dp", share)), np.zeros_like(share)
        return nothing + bytes_of(memory.standing(every)), nothing + 8, nothing + bytes_of(memory.update(every))


def _apart(several: list[Actions], parts: Real, letters: Whole, starts: list[int]) -> list[_ActionPoints]:
    """`parts`: rows of all actions, and behind them what each action leaves. `letters`: of each row; `starts`: of each action."""
    out = []
    actions = np.cumsum([0, *(len(one.firsts) for one in several)]).tolist()
    for one, (start, stop) in zip(several, itertools.pairwise(actions), strict=True):
        here = slice(starts[start], starts[stop])
        inside = np.flatnonzero(letters[here] == 1), np.flatnonzero(letters[here] == 2)
        table = Table(parts[:, here], np.array(starts[start:stop]) - here.start, one.which, inside)
        out.append(_ActionPoints(table, parts[:, len(letters) + start + one.which]))
    return out
