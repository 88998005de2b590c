"""A form of chunk's actions at one ZeRO stage, without numbers: which spans and blocks come one behind the other in each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.plays import GATHERS, LETTERS, RELEASES, Form, Only, Played, Plays, Structure
from engine.predict.symbolic import Size
from engine.predict.tape.buckets import EXPECTS, TAKES, Bucket, numbers
from engine.predict.tape.reducing import FRESH, MANY, Reductions, State, Stretch

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
    """Runs, one behind the other: what happens in a layer that stands for several is a run of its own."""

    runs: Whole  # numbers of runs among the structure's
    letters: Whole  # of each 0, or 1 or 2 for the letter that says how often it is there
    firsts: Whole  # the first run of each action that is not the same as an earlier one
    which: Whole  # of `ACTIONS`, which of these each is
    pending: dict[str, int]  # whose reduction each action leaves under way, as a number in `held`, or −1
    held: list[Held]


Run = tuple[int, ...]  # each is a number of a chain, from one; or, if negative, a block as it comes, or as it goes: see `block`


def block(number: int, which: int, goes: bool) -> int:
    """What stands in a run for one of the `BLOCKS` of the sizes with that number."""
    return -1 - 2 * (BLOCKS * number + which) - goes


class Acted(Plays):
    """Plays, and what they come to at each ZeRO stage. Most runs are in several actions and forms, and are worked out once."""

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        self._actions: dict[tuple[Form, int, bool], Actions] = {}
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._runs: dict[Run, int] = {}

    def actions(self, form: Form, zero: int, cut: bool) -> Actions:
        """`cut`: with tp > 1."""
        key = form, zero, cut or not form.first
        with self.one_at_a_time:
            if key not in self._actions:
                self._actions[key] = self._of(self.of(form, zero >= 2, cut), zero, self.sizes[cut].e)
            return self._actions[key]

    def _of(self, played: Played, zero: int, e: Any) -> Actions:
        """`e`: bytes of a number of parameters."""
        reductions = Reductions(zero, e, self.structure.width, played.weights, played.stretches["W"])
        told = _Told(_stretches(played, zero, reductions), reductions)
        held = [Held(self._number_of(bucket), _letter(times), bucket.counted) for bucket, times in played.weights]
        records = zip(held, reductions.under_way, reductions.incoming, strict=True)
        of_buckets = [(one, [*(under_way or (None, None)), incoming]) for one, under_way, incoming in records]
        blocks = {
            id(record): block(one.number, kind, False) for one, several in of_buckets for kind, record in enumerate(several)
        }
        numbers, letters, firsts, which, found = list[int](), list[int](), list[int](), list[int](), list[list[Stretch]]()
        for name in ACTIONS:
            stretches = told.stretches[name]
            same = [i for i, other in enumerate(found) if other is stretches]
            which += same or [len(found)]
            if not same:
                found.append(stretches)
                firsts.append(len(numbers))
                for letter, run in self._told(stretches, blocks):
                    numbers.append(self._runs.setdefault(run, len(self._runs)))
                    letters.append(letter)
        return Actions(np.array(numbers), np.array(letters), np.array(firsts), np.array(which), told.pending, held)

    def runs(self) -> list[Run]:
        with self.one_at_a_time:
            return list(self._runs)

    def _told(self, stretches: list[Stretch], blocks: dict[int, int]) -> Iterator[tuple[int, Run]]:
        """An action's runs, each with its letter. `blocks`: what stands for records as they come."""
        letter, run, spans = 0, list[int](), list[int]()

        def chained() -> list[int]:
            found = [self.chain(spans)] if spans else []
            spans.clear()
            return found

        for _, times, events in stretches:
            of_stretch = _letter(times)
            if of_stretch or letter:
                yield letter, (*run, *chained())
                letter, run = of_stretch, []
            for sign, one in events:
                if isinstance(one, tuple):
                    spans += one
                else:
                    run += (*chained(), blocks[id(one)] - (sign < 0))
        yield letter, (*run, *chained())

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


_SINCE = {TAKES: 1, EXPECTS: 2, GATHERS: 3, RELEASES: 3}  # from which ZeRO stage on something happens


def _stretches(played: Played, zero: int, reductions: Reductions) -> dict[str, list[Stretch]]:
    """As they are at that ZeRO stage. With 3 values are gathered and released, in blocks as large as gradients that wait."""
    which = {id(bucket): n for n, (bucket, _) in enumerate(played.weights)}

    def told(events: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        spans: tuple[int, ...] = ()  # with nothing between them
        for sign, one in events:
            if sign:
                spans += (one,)
            elif isinstance(one, Only):
                spans += (one.span,) if one.hooked == (zero >= 2) else ()
            elif zero >= _SINCE[one.name]:
                if spans:
                    yield 1, spans
                    spans = ()
                if one.name in (EXPECTS, TAKES):
                    yield 0, one
                else:
                    yield (1 if one.name == GATHERS else -1), reductions.incoming[which[id(one.bucket)]]
        if spans:
            yield 1, spans

    return {
        kind: [(layer, times, list(told(events))) for layer, times, events in stretches]
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
