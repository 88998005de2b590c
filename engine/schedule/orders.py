"""Which chunk does what on which microbatch, in which order: the script of a schedule's record, written out.

Stage s of pp holds chunks s, s + pp, s + 2 pp, …, or over a V chunks s and 2 pp − 1 − s: down the stages and back up.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.schedule.actions import Action, Kind
from engine.spec import SCHEDULE_FACTS, ScheduleName

KINDS: tuple[Kind, ...] = ("F", "B", "I", "W")
_F, _B, _I, _W = range(len(KINDS))


class Passes(NamedTuple):
    """Orders as arrays, one behind the other. (n,) each"""

    kinds: NDArray[Any]  # as numbers, by `KINDS`
    chunks: NDArray[Any]
    microbatches: NDArray[Any]
    of: NDArray[Any]  # which order


def compute_order(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> list[list[Action]]:
    """The F, B, I and W of each stage, in order; a list a stage. `chunks` on each stage count where they go round and round."""
    orders: list[list[Action]] = [[] for _ in range(pp)]
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    for kind, chunk, microbatch, stage in zip(*(column.tolist() for column in found), strict=True):
        orders[stage].append(Action(KINDS[kind], chunk, microbatch))
    return orders


def stage_order(name: ScheduleName, pp: int, stage: int, microbatches: int, chunks: int = 1) -> list[Action]:
    """The F, B, I and W of one stage alone, in order."""
    found = passes(name, pp, np.array([stage]), np.array([microbatches]), chunks)
    columns = (found.kinds.tolist(), found.chunks.tolist(), found.microbatches.tolist())
    return [Action(KINDS[kind], chunk, microbatch) for kind, chunk, microbatch in zip(*columns, strict=True)]


def kinds_of(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> frozenset[Kind]:
    """Which of F, B, I and W there are."""
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    return frozenset(KINDS[kind] for kind in np.unique(found.kinds))


def passes(name: ScheduleName, pp: int, stages: Any, microbatches: Any, chunks: int = 1) -> Passes:
    """The same as arrays, of some stages, each with so many microbatches, (k,) both: the planner asks for very many."""
    facts = SCHEDULE_FACTS[name]
    script = facts.script(stages, pp, microbatches, chunks)
    parts = [_entries(text) for text, _ in script]
    widths = np.array([len(entries) for entries in parts])
    lengths = (np.array([often for _, often in script]).T.clip(0) * widths).ravel()  # of each order's parts
    which = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(len(which)) - np.repeat(lengths.cumsum() - lengths, lengths)
    of, part = np.divmod(which, len(parts))
    entry = (widths.cumsum() - widths)[part] + place % widths[part]
    kinds, ups, owed = (told.take(entry) for told in np.array([one for entries in parts for one in entries]).T)
    # The so manieth of its order, kind and direction; B counts as I.
    sort = ((of * len(KINDS) + np.where(kinds == _B, _I, kinds)) * 2 + ups).astype(np.min_scalar_type(8 * len(stages)))
    counts = np.bincount(sort)
    number = np.empty_like(of)
    number[np.argsort(sort, kind="stable")] = np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)
    if facts.chunk_and_microbatch:
        chunk, number = facts.chunk_and_microbatch(stages[of], pp, microbatches[of], chunks, kinds == _F, number)
    else:
        chunk = np.where(ups, 2 * pp - 1 - stages[of], stages[of])
    late, early = np.flatnonzero(owed), np.flatnonzero(kinds == _I)
    if len(late):  # in each order, as many W as I
        chunk[late], number[late] = chunk[early], number[early]
    there = number < microbatches[of]
    return Passes(kinds[there], chunk[there], number[there], of[there])


@cache
def _entries(text: str) -> tuple[tuple[int, int, int], ...]:
    """Of each entry its kind's number in `KINDS`, whether its chunk is on the way up, and whether it is a W without an arrow."""
    return tuple((list(KINDS).index(one[0]), int("↑" in one), int(one == "W")) for one in text.split())  # type: ignore[arg-type]


def splits(name: ScheduleName) -> bool:
    """Whether a schedule splits backward into I and W, at least of some microbatches."""
    return SCHEDULE_FACTS[name].splits


def enough_microbatches(name: ScheduleName, pp: Any, microbatches: Any) -> Any:
    """So many that more of them bring no higher instant of memory: the rest repeats what was there already. May be arrays."""
    return SCHEDULE_FACTS[name].enough_microbatches(pp, microbatches)


def script(name: ScheduleName, pp: int, stage: int, microbatches: int) -> list[tuple[list[Kind], int]]:
    """What a stage with one chunk does: kinds of passes, and how many times over these come, always of the next microbatch."""
    found = SCHEDULE_FACTS[name].script(stage, pp, microbatches, 1)
    return [([KINDS[kind] for kind, *_ in _entries(text)], max(0, int(often))) for text, often in found]


def in_flight_bound(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int = 1) -> int:
    """The most passes, of one microbatch through one chunk, whose activations a stage may hold at once.

    From the schedule's definition. Where a stage has several chunks, each pass holds that much less.
    """
    return int(SCHEDULE_FACTS[name].in_flight(stage, pp, microbatches, chunks))


def messages_held(name: ScheduleName, pp: int, microbatches: int) -> int:
    """How many messages of one flow to one stage may be under way when the next is sent. One, wherever that can work."""
    return int(SCHEDULE_FACTS[name].messages_held(pp, microbatches))
