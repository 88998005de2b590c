"""A form of chunk's actions at one ZeRO stage, without numbers: which spans and blocks come one behind the other in each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.plays import GATHERS, LETTERS, RELEASES, Form, Played, Plays, Structure
from engine.predict.symbolic import Size
from engine.predict.tape.buckets import Bucket, numbers
from engine.predict.tape.reducing import FRESH, MANY, Reductions, State, Stretch
from engine.predict.tape.tape import Note

Whole = NDArray[np.int64]
_STRUCTURES = 256  # plays of so many are kept, the latest

# The highest points of actions. "B 1": of a first one with ZeRO 2 and 3, of a last one with ZeRO 1; "I over": while W is owed;
# "I after B": else, where the pass before was not halved. With ZeRO 1 and 0 the latter three are like the others.
ACTIONS = ("F", "B", "B 1", "I", "I 1", "I over", "I after B", "W", "W 1", "W over")
BLOCKS = 3  # of a bucket: a share of its gradients, all of them, and all as they come


class Held(NamedTuple):
    """A bucket: the number of its sizes among the structure's; how often, as 0 for once, or 1 or 2 for the letter that says
    so; whether it counts in the norm.
    """

    number: int
    part: int
    counted: bool


class Actions(NamedTuple):
    """Rows, one behind the other, in runs: what happens in a layer that stands for several is a run of its own.

    A row is nothing, 0; or span number n − 1; or, if negative, a block as it comes, or as it goes: see `block`.
    """

    rows: Whole
    runs: Whole  # the first row of each
    letters: Whole  # of each run 0, or 1 or 2 for the letter that says how often it is there
    firsts: Whole  # the first run of each action that is not the same as an earlier one
    which: Whole  # of `ACTIONS`, which of these each is
    pending: dict[str, int]  # whose reduction each action leaves under way, as a number in `held`, or −1
    held: list[Held]


def block(number: int, which: int, goes: bool) -> int:
    """The row of one of the `BLOCKS` of the sizes with that number."""
    return -1 - 2 * (BLOCKS * number + which) - goes


def actions(played: Played, zero: int, e: Any, width: Any, number_of: Callable[[Bucket], int]) -> Actions:
    """`e`, `width`: bytes of a number of parameters, and of gradients that are added up."""
    reductions = Reductions(zero, e, width, played.weights, played.stretches["W"])
    told = _Told(_stretches(played, zero, reductions), reductions)
    held = [Held(number_of(bucket), _letter(times), bucket.counted) for bucket, times in played.weights]
    records = zip(held, reductions.under_way, reductions.incoming, strict=True)
    of_buckets = [(one, [*(under_way or (None, None)), incoming]) for one, under_way, incoming in records]
    blocks = {id(record): block(one.number, kind, False) for one, several in of_buckets for kind, record in enumerate(several)}
    lines, which, found = _Lines(), list[int](), list[list[Stretch]]()
    for name in ACTIONS:
        stretches = told.stretches[name]
        same = [i for i, other in enumerate(found) if other is stretches]
        which += same or [len(found)]
        if not same:
            found.append(stretches)
            lines.add(stretches, blocks)
    rows, runs, letters, firsts = (np.array(some, np.int64) for some in (lines.rows, lines.runs, lines.letters, lines.firsts))
    return Actions(rows, runs, letters, firsts, np.array(which), told.pending, held)


class Acted(Plays):
    """Plays, and what they come to at each ZeRO stage."""

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        self._actions: dict[tuple[Form, int, bool], Actions] = {}
        self._sizes: dict[tuple[Any, ...], int] = {}

    def actions(self, form: Form, zero: int, cut: bool) -> Actions:
        """`cut`: with tp > 1."""
        key = form, zero, cut or not form.first
        with self.one_at_a_time:
            if key not in self._actions:
                e, width = self.sizes[cut].e, self.structure.width
                self._actions[key] = actions(self.of(form, zero >= 2, cut), zero, e, width, self._number_of)
            return self._actions[key]

    def _number_of(self, bucket: Bucket) -> int:
        sizes = tuple(numbers([p.shape]) for p in sorted(bucket.parameters, key=lambda p: not p.whole))
        return self._sizes.setdefault((bucket.size.value, bucket.share.value, *sizes), len(self._sizes))

    def bucket_sizes(self) -> list[tuple[Any, ...]]:
        """Of all buckets that are not alike: numbers on a rank, in one replica's share, and of each parameter."""
        with self.one_at_a_time:
            return list(self._sizes)


@lru_cache(maxsize=_STRUCTURES)
def acted(structure: Structure) -> Acted:
    return Acted(structure)


def _letter(times: Any) -> int:
    return 1 + LETTERS.index(times.atoms[0].name) if isinstance(times, Size) else 0


def _stretches(played: Played, zero: int, reductions: Reductions) -> dict[str, list[Stretch]]:
    """With ZeRO 3 values are gathered and released, in blocks as large as gradients that wait; else nothing happens there."""
    which = {id(bucket): n for n, (bucket, _) in enumerate(played.weights)}

    def told(event: tuple[int, Any]) -> tuple[int, Any]:
        name = event[1].name if isinstance(event[1], Note) else ""
        if name not in (GATHERS, RELEASES):
            return event
        return (1 if name == GATHERS else -1), reductions.incoming[which[id(event[1].bucket)]]

    def happens(event: tuple[int, Any]) -> bool:
        return zero == 3 or event[0] != 0 or event[1].name not in (GATHERS, RELEASES)

    return {
        kind: [(layer, times, [told(event) for event in events if happens(event)]) for layer, times, events in stretches]
        for kind, stretches in played.stretches.items()
    }


class _Told:
    """A chunk's actions in the states that most find it in, and the reduction that each leaves under way."""

    def __init__(self, stretches: dict[str, list[Stretch]], reductions: Reductions) -> None:
        self._all, self.reductions = stretches, reductions
        self.stretches, self.pending = dict[str, list[Stretch]](), dict[str, int]()
        self._tell("F", "F", FRESH)
        if reductions.zero < 2:  # a reduction lasts until all are over
            left = 1 if reductions.zero else MANY
            for name, kind, state in (
                ("B", "B", State(left=MANY)), ("B 1", "B", State(left=left)), ("I", "I", State(left=MANY)),
                ("I 1", "I", State(left=left)), ("W", "W", State(owed=1, left=MANY)), ("W 1", "W", State(owed=1, left=left - 1)),
            ):  # fmt: skip
                self._tell(name, kind, state)
            self.stretches |= {"I over": self.stretches["I"], "I after B": self.stretches["I"], "W over": self.stretches["W"]}
            return
        first = self._tell("B 1", "B", FRESH)
        whole = self._tell("B", "B", State(first))
        self._tell("I after B", "I", State(whole))
        first = self._tell("I 1", "I", FRESH)
        before = self._tell("W 1", "W", State(first, owed=1))
        halved = self._tell("I", "I", State(before))
        self._tell("W", "W", State(halved, owed=1))
        over = self._tell("I over", "I", State(halved, owed=1))
        self._tell("W over", "W", State(over, owed=MANY))

    def _tell(self, name: str, kind: str, state: State) -> int:
        found, self.pending[name] = self.reductions.told(kind, self._all[kind], state)
        self.stretches[name] = found
        return self.pending[name]


class _Lines:
    def __init__(self) -> None:
        self.rows, self.runs, self.letters, self.firsts = list[int](), list[int](), list[int](), list[int]()

    def _run(self, letter: int) -> None:
        """Another run, before which nothing has happened."""
        self.runs.append(len(self.rows))
        self.letters.append(letter)
        self.rows.append(0)

    def add(self, stretches: list[Stretch], blocks: dict[int, int]) -> None:
        """Another action. `blocks`: the rows of records as they come."""
        self.firsts.append(len(self.runs))
        self._run(0)
        for _, times, events in stretches:
            letter = _letter(times)
            if letter or self.letters[-1]:
                self._run(letter)
            things: list[tuple[int, Any]] = [event for event in events if event[0]]
            self.rows += [1 + one if isinstance(one, int) else blocks[id(one)] - (sign < 0) for sign, one in things]
