"""The actions of a form of chunk at one ZeRO stage, without numbers: which spans and blocks come one behind the other in each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.form import Structure
from engine.ledger.keep import Ledgers
from engine.ledger.store import ledger_store
from engine.predict.bulk.traces import BucketUse, ChunkForm, FormTrace, FormTraces, letter_of
from engine.predict.memory.reducing import Pending, ReductionBlocks, Reductions, RepeatedSegment
from engine.schedule.stage_passes import STATES

Whole = NDArray[np.int64]
_STRUCTURES = 256  # the number of structures whose traces are kept, the latest

# "late": with a message that holds the lent block longer than the chunk, which then frees nothing.
LATE = tuple(f"{name} late" for name in STATES[1:])
ACTIONS = (*STATES, *LATE)
BLOCKS = 2  # of a bucket: a share of its gradients, and all of them or of its values

Run = tuple[int, ...]  # each is a number of a span, from one; or, if negative, a block as it comes, or as it goes: see `block`


def block(number: int, which: int, goes: bool) -> int:
    """What stands in a run for one of the `BLOCKS` of the sizes with that number."""
    return -1 - 2 * (BLOCKS * number + which) - goes


class Actions(NamedTuple):
    """What happens in a layer that stands for several is a run of its own."""

    rows: list[tuple[int, ...]]  # of each action that is not the same as an earlier one: numbers of runs among the structure's
    letters: list[tuple[int, ...]]  # of each run 0, or 1 or 2 for the letter that says how often it is there
    which: Whole  # of `ACTIONS`, which of these rows each is
    pending: dict[str, Pending]  # in each state, numbers in `uses`
    uses: list[BucketUse]


class FormActions(FormTraces):
    """Traces, and what they come to at each ZeRO stage. Most runs are in several actions and forms, and are worked out once."""

    def __init__(self, structure: Structure, ledgers: Ledgers) -> None:
        super().__init__(structure, ledgers)
        self._actions: dict[tuple[ChunkForm, int, bool], Actions] = {}
        self._runs: dict[Run, int] = {}

    def actions(self, form: ChunkForm, zero: int, alone: bool) -> Actions:
        """`alone`: as of `Reductions`."""
        key = form, zero, alone
        with self.one_at_a_time:
            if key not in self._actions:
                self._actions[key] = self._of(self.of(form, zero >= 2), zero, alone)
            return self._actions[key]

    def _of(self, trace: FormTrace, zero: int, alone: bool) -> Actions:
        share, whole = ([block(one.number, which, False) for one in trace.uses] for which in range(BLOCKS))
        reductions = Reductions(zero, trace.buckets, ReductionBlocks(share, whole, whole), trace.segments["W"], alone)
        on_time, pending = reductions.by_state(trace.segments)
        several = [on_time[name] for name in STATES]
        if lends := trace.late is not trace.segments:
            late, _ = reductions.by_state(trace.late)
            several += [late[name] for name in STATES[1:]]
        found: dict[tuple[tuple[int, Run], ...], int] = {}
        which = [found.setdefault(tuple(_runs(segments)), len(found)) for segments in several]
        which += [] if lends else which[1:]
        rows = [tuple(self._runs.setdefault(run, len(self._runs)) for _, run in runs) for runs in found]
        letters = [tuple(letter for letter, _ in runs) for runs in found]
        return Actions(rows, letters, np.array(which), pending, trace.uses)

    def runs(self) -> list[Run]:
        with self.one_at_a_time:
            return list(self._runs)


@lru_cache(maxsize=_STRUCTURES)
def form_actions(structure: Structure, ledgers: Ledgers | None) -> FormActions:
    """`ledgers`: those to read, in place of `ledger_store()`."""
    return FormActions(structure, ledger_store() if ledgers is None else ledgers)


def _runs(segments: list[RepeatedSegment]) -> Iterator[tuple[int, Run]]:
    """An action's runs, each with its letter."""
    letter, run = 0, list[Any]()
    for _, times, events in segments:
        of_segment = letter_of(times)
        if of_segment or letter:
            yield letter, tuple(run)
            letter, run = of_segment, []
        run += [one - (sign < 0) for sign, one in events]
    yield letter, tuple(run)
