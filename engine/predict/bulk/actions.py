"""A form of chunk's actions at one ZeRO stage, without numbers: which spans and blocks come one behind the other in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.traces import ChunkForm, FormTrace, FormTraces, Held, Layouts, letter_of
from engine.predict.ledger.form import ACCUMULATES, EXPECTS, GATHERS, RELEASES
from engine.predict.ledger.keep import Ledgers
from engine.predict.ledger.store import ledger_store
from engine.predict.memory.reducing import FRESH, MANY, Reductions, State, Stretch
from engine.predict.terms import Factor

Whole = NDArray[np.int64]
_STRUCTURES = 256  # traces of so many are kept, the latest

# The highest points of actions. "B 1": of a first one with ZeRO 2 and 3, of a last one with ZeRO 1; "I over": while W is owed;
# "I after B": else, where the pass before was not halved. With ZeRO 1 and 0 the latter three are like the others.
# "late": with a message that holds the lent block longer than the chunk does, which then frees nothing.
ON_TIME = ("F", "B", "B 1", "I", "I 1", "I over", "I after B", "W", "W 1", "W over")
LATE = tuple(f"{name} late" for name in ON_TIME[1:])
ACTIONS = (*ON_TIME, *LATE)
BLOCKS = 3  # of a bucket: a share of its gradients, all of them, and all as they come


class Actions(NamedTuple):
    """Runs, one behind the other: what happens in a layer that stands for several is a run of its own."""

    runs: Whole  # numbers of runs among the structure's
    letters: Whole  # of each 0, or 1 or 2 for the letter that says how often it is there
    firsts: Whole  # the first run of each action that is not the same as an earlier one
    which: Whole  # of `ACTIONS`, which of these each is
    pending: dict[str, int]  # whose reduction each action leaves under way, as a number in `held`, or −1
    held: list[Held]


Run = tuple[int, ...]  # each is a number of a span, from one; or, if negative, a block as it comes, or as it goes: see `block`


def block(number: int, which: int, goes: bool) -> int:
    """What stands in a run for one of the `BLOCKS` of the sizes with that number."""
    return -1 - 2 * (BLOCKS * number + which) - goes


class FormActions(FormTraces):
    """Traces, and what they come to at each ZeRO stage. Most runs are in several actions and forms, and are worked out once."""

    def __init__(self, layouts: Layouts, ledgers: Ledgers) -> None:
        super().__init__(layouts, ledgers)
        self._actions: dict[tuple[ChunkForm, int, bool], Actions] = {}
        self._runs: dict[Run, int] = {}

    def actions(self, form: ChunkForm, zero: int, cut: bool) -> Actions:
        """`cut`: with tp > 1."""
        key = form, zero, cut
        with self.one_at_a_time:
            if key not in self._actions:
                self._actions[key] = self._of(self.of(form, zero >= 2, cut), zero)
            return self._actions[key]

    def _of(self, trace: FormTrace, zero: int) -> Actions:
        sizes = [one.number for one in trace.held]
        reductions = _Reductions(zero, self.layouts.e, self.layouts.width, trace.buckets, trace.stretches["W"], sizes)
        on_time = _States(_stretches(trace.stretches, zero, reductions), reductions)
        late = on_time if trace.late is trace.stretches else _States(_stretches(trace.late, zero, reductions), reductions)
        numbers, letters, firsts, which = list[int](), list[int](), list[int](), list[int]()
        found: dict[tuple[tuple[int, Run], ...], int] = {}
        for stretches in (*on_time.stretches_of(ON_TIME), *late.stretches_of(ON_TIME[1:])):
            runs = tuple(_runs(stretches))
            which.append(found.setdefault(runs, len(found)))
            if which[-1] == len(firsts):
                firsts.append(len(numbers))
                numbers += [self._runs.setdefault(run, len(self._runs)) for _, run in runs]
                letters += [letter for letter, _ in runs]
        return Actions(np.array(numbers), np.array(letters), np.array(firsts), np.array(which), on_time.pending, trace.held)

    def runs(self) -> list[Run]:
        with self.one_at_a_time:
            return list(self._runs)


@lru_cache(maxsize=_STRUCTURES)
def form_actions(layouts: Layouts) -> FormActions:
    """With the ledgers of `ledger_store`. Raises `NotRecordedError` when one that is missing is asked for."""
    return FormActions(layouts, ledger_store())


class _Reductions(Reductions):
    """`sizes`: the numbers of the buckets' sizes, by which their blocks are told in runs."""

    def __init__(self, zero: int, e: Factor, g: Factor, buckets: Any, later: list[Stretch], sizes: list[int]) -> None:
        self._sizes = sizes
        super().__init__(zero, e, g, buckets, later)

    def _blocks(self) -> tuple[list[Any], list[Any]]:
        share, size, incoming = ([block(number, which, False) for number in self._sizes] for which in range(BLOCKS))
        return [list(both) for both in zip(share, size, strict=True)], incoming


def _stretches(of: dict[str, list[Stretch]], zero: int, reductions: Reductions) -> dict[str, list[Stretch]]:
    """As they are at that ZeRO stage. With 3 values are gathered and released, in blocks as large as gradients that wait."""

    def told(events: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for event in events:
            sign, one = event
            if sign or (zero and one.kind in (EXPECTS, ACCUMULATES)):
                yield event
            elif zero == 3 and one.kind in (GATHERS, RELEASES):
                yield (1 if one.kind == GATHERS else -1), reductions.incoming[one.bucket]

    return {
        kind: [Stretch(layer, times, list(told(events))) for layer, times, events in stretches] for kind, stretches in of.items()
    }


def _runs(stretches: list[Stretch]) -> Iterator[tuple[int, Run]]:
    """An action's runs, each with its letter."""
    letter, run = 0, list[Any]()
    for _, times, events in stretches:
        of_stretch = letter_of(times)
        if of_stretch or letter:
            yield letter, tuple(run)
            letter, run = of_stretch, []
        run += [one - (sign < 0) for sign, one in events]
    yield letter, tuple(run)


class _States:
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

    def stretches_of(self, names: Sequence[str]) -> list[list[Stretch]]:
        return [self.stretches[name] for name in names]

    def _tell(self, name: str, kind: str, state: State) -> int:
        found, self.pending[name] = self.reductions.applied(kind, self._all[kind], state)
        self.stretches[name] = found
        return self.pending[name]
