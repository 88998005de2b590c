"""What ZeRO's reductions add to a pass: `engine.parallel.data`, by the state that an action finds its chunk in.

A bucket's gradients are reduced in the pass that brings the last of them. Which that is depends on the passes before: with
ZeRO 2 and 3, on whether an earlier one still owes its W; with ZeRO 1, on whether it is the step's last. And with ZeRO 2 and 3 a
reduction stays under way until the next begins. So the tape notes where a bucket expects gradients and where it takes one, and
what comes and goes there is told here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from engine.predict.tape.buckets import EXPECTS, LAYERS, REDUCING, Bucket
from engine.predict.tape.tape import Note, Record
from engine.predict.terms import Factor

Events = list[tuple[int, Record]]
Stretch = tuple[int, Any, Events]  # a layer, or −1; how often it is repeated; what happens


class State(NamedTuple):
    """How an action finds its chunk. Of `owed` and `left`, more than two are as good as two."""

    pending: int = -1  # which bucket's reduction is under way, with ZeRO 2 and 3
    owed: int = 0  # passes that have had their I and not their W
    left: int = 0  # passes whose B or I is to come, this one's included


FRESH = State()
MANY = 2


class Reductions:
    """Of one chunk."""

    def __init__(self, zero: int, e: Factor, g: Factor, weights: Iterable[tuple[Bucket, Any]], later: list[Stretch]) -> None:
        """`e`, `g`: bytes of a parameter and of what gradients are added up in. `weights`: every bucket, and how many there are
        of it. `later`: what W does.
        """
        self.zero, self.all = zero, list(weights)
        self.numbers = {id(bucket): number for number, (bucket, _) in enumerate(self.all)}
        self.e, self.width = e, g if zero == 1 else e
        self.under_way, self.incoming = self._blocks()
        self._later = Counter[int]()
        for note in (note for _, _, events in later for _, note in events if isinstance(note, Note)):
            self._later[self.numbers[id(note.bucket)]] += note.times

    def _blocks(self) -> tuple[list[Any], list[Any]]:
        """Of each bucket those of a reduction, and the one of gradients that wait for more."""
        width, several = self.width, [bucket for bucket, _ in self.all]
        under_way = [[_record(b, REDUCING[0], b.share, width), _record(b, REDUCING[1], b.size, width)] for b in several]
        return under_way, [_record(b, "gradients of a layer, not yet reduced", b.size, self.e) for b in several]

    def before(self, pending: int) -> list[Record]:
        """What is under way in that state."""
        return self.under_way[pending] if pending >= 0 else []

    def told(self, kind: str, stretches: list[Stretch], state: State) -> tuple[list[Stretch], int]:
        """What happens in an action, and which bucket's reduction is under way at its end."""
        if kind == "reduce":
            return self._finished(state), -1
        if not self.zero or kind == "F":
            return stretches, -1
        missing = [state.owed * self._later[n] for n in range(len(self.all))]
        incoming = [self.zero >= 2 and count > 0 for count in missing]
        if self.zero == 1:
            missing = [count + state.left * len(bucket.parameters) for count, (bucket, _) in zip(missing, self.all, strict=True)]
        pending, found = state.pending, []
        for layer, times, events in stretches:
            told: Events = []
            for event in events:
                note: Any = event[1]
                if not isinstance(note, Note):
                    told.append(event)
                    continue
                n = self.numbers[id(note.bucket)]
                if note.name == EXPECTS:
                    missing[n] += len(note.bucket.parameters)
                    if not incoming[n]:
                        told.append((1, self.incoming[n]))
                        incoming[n] = True
                    continue
                missing[n] -= note.times
                if missing[n]:
                    continue
                if self.zero >= 2:
                    told += [(-1, one) for one in reversed(self.before(pending))]
                    pending = n
                told += [(1, one) for one in self.under_way[n]]
                if incoming[n]:
                    told.append((-1, self.incoming[n]))
                    incoming[n] = False
            found.append((layer, times, told))
        return found, pending

    def _finished(self, state: State) -> list[Stretch]:
        """The end of what is under way: with ZeRO 1, of all."""
        if self.zero == 1:
            return [(-1, times, [(-1, one) for one in self.under_way[n]]) for n, (_, times) in enumerate(self.all)]
        return [(-1, 1, [(-1, one) for one in self.before(state.pending)])]


def _record(bucket: Bucket, name: str, *factors: Any) -> Record:
    """One that comes and goes in the door, in actions that differ."""
    record = Record(name, factors, True, "pending", bucket.name == LAYERS)
    record.died = "reduce"
    return record
