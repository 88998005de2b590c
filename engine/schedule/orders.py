"""The order of a stage's passes: kind, chunk and microbatch of each. It is made from the script in the schedule's record.

Stage s of pp holds chunks s, s + pp, s + 2 pp, …. Under a V-shaped schedule it holds chunks s and 2 pp − 1 − s: down the stages
and back up.
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
    """The passes of several orders, in arrays, one order after the other. (n,) each"""

    kinds: NDArray[Any]  # indices in `KINDS`
    chunks: NDArray[Any]
    microbatches: NDArray[Any]
    of: NDArray[Any]  # the index of the order that the pass belongs to


def compute_order(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> list[list[Action]]:
    """The F, B, I and W of each stage, in order. `chunks`: of each stage; only schedules without a fixed number use it."""
    orders: list[list[Action]] = [[] for _ in range(pp)]
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    for kind, chunk, microbatch, stage in zip(*(column.tolist() for column in found), strict=True):
        orders[stage].append(Action(KINDS[kind], chunk, microbatch))
    return orders


def kinds_of(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> frozenset[Kind]:
    """Which of F, B, I and W a schedule has."""
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    return frozenset(KINDS[kind] for kind in np.unique(found.kinds))


def passes(name: ScheduleName, pp: int, stages: Any, microbatches: Any, chunks: int = 1) -> Passes:
    """The orders of several stages, as arrays. The planner asks for very many.

    `stages`: the stage of each order. `microbatches`: its number of microbatches. (k,) both.
    """
    facts = SCHEDULE_FACTS[name]
    script = facts.script(stages, pp, microbatches, chunks)
    parts = [_entries(text) for text, _ in script]
    widths = np.array([len(entries) for entries in parts])
    lengths = (np.array([times for _, times in script]).T.clip(0) * widths).ravel()  # passes of each part of each order
    which = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(len(which)) - np.repeat(lengths.cumsum() - lengths, lengths)
    of, part = np.divmod(which, len(parts))
    entry = (widths.cumsum() - widths)[part] + place % widths[part]
    kinds, ups, deferred = (column.take(entry) for column in np.array([one for entries in parts for one in entries]).T)
    # The number of each pass among those of its order, kind and direction, from 0. B counts as I.
    group = ((of * len(KINDS) + np.where(kinds == _B, _I, kinds)) * 2 + ups).astype(np.min_scalar_type(8 * len(stages)))
    counts = np.bincount(group)
    number = np.empty_like(of)
    number[np.argsort(group, kind="stable")] = np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)
    if facts.chunk_and_microbatch:
        chunk, number = facts.chunk_and_microbatch(stages[of], pp, microbatches[of], chunks, kinds == _F, number)
    else:
        chunk = np.where(ups, 2 * pp - 1 - stages[of], stages[of])
    late, early = np.flatnonzero(deferred), np.flatnonzero(kinds == _I)
    if len(late):  # each order has as many of these W as I, so they match in order
        chunk[late], number[late] = chunk[early], number[early]
    valid = number < microbatches[of]
    return Passes(kinds[valid], chunk[valid], number[valid], of[valid])


@cache
def _entries(text: str) -> tuple[tuple[int, int, int], ...]:
    """For each entry: the index of its kind in `KINDS`; 1 if its chunk is on the way up; 1 if it is a W without an arrow."""
    return tuple((list(KINDS).index(one[0]), int("↑" in one), int(one == "W")) for one in text.split())  # type: ignore[arg-type]


def splits(name: ScheduleName) -> bool:
    """Whether a schedule splits backward into I and W, at least of some microbatches."""
    return SCHEDULE_FACTS[name].splits


def enough_microbatches(name: ScheduleName, pp: Any, microbatches: Any) -> Any:
    """The number of microbatches, at most `microbatches`, that is enough to reach the memory peak. Arguments may be arrays."""
    return SCHEDULE_FACTS[name].enough_microbatches(pp, microbatches)


def in_flight_bound(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int = 1) -> int:
    """The most passes of one microbatch through one chunk that may be in flight on a stage, by the schedule's definition.

    With v chunks on a stage, each pass holds 1/v of the stage's activations.
    """
    return int(SCHEDULE_FACTS[name].in_flight(stage, pp, microbatches, chunks))


def messages_held(name: ScheduleName, pp: int, microbatches: int) -> int:
    """How many messages of one flow to one stage may be sent and not yet received when the next is sent. 1 if that works."""
    return int(SCHEDULE_FACTS[name].messages_held(pp, microbatches))


def reductions(name: ScheduleName, pp: Any, microbatches: Any, stage: Any, run: Any) -> Any:
    """How often a step reduces a layer's gradients over dp under ZeRO 2 and 3, if W computes them. Arguments may be arrays.

    ZeRO 2 and 3 reduce gradients as soon as they are complete. If backward is not split, that is after every backward pass. If it
    is split, that is when no I of the chunk still waits for its W. The gradients of passes that overlap are accumulated and
    reduced together. `run`: which chunk of the stage in a V-shaped schedule; 0 is on the way down, 1 on the way up.
    """
    rule = SCHEDULE_FACTS[name].reductions
    return rule(pp, microbatches, stage, run) if rule else microbatches
