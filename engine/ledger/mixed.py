"""The ledger of a chunk that recomputes some of its layers whole, put together from two that are recorded.

One is of the same chunk without recompute, the other with recompute of all layers. Each action has one segment for each layer, in
the order of the layers or in the opposite one. What a layer allocates in forward and needs in backward is in its own segments,
and layers hand on to each other the same blocks in both ledgers. So a segment of either may follow a segment of the other. Only
the names of what is handed on may differ: a layer frees what the one before it really left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from engine.ledger.form import (
    ACCUMULATES,
    ALLOCATES,
    CALLS,
    EXPECTS,
    FREES,
    GATHERS,
    RELEASES,
    RUNS,
    Ledger,
    MicrobatchTrace,
    Part,
    RecordedBucket,
    Segment,
    Structure,
)  # fmt: skip
from engine.ledger.keep import Key, Ledgers

RECOMPUTED, KEPT = "r", "k"
_BUCKETS = (EXPECTS, ACCUMULATES, GATHERS, RELEASES)
_MIXED = 256  # ledgers in the cache


def recorded_keys(structure: Structure, part: Part) -> list[Key]:
    """The keys of the recorded ledgers that a part's is read or put together from."""
    if not part.again:
        return [(structure.of(part), part)]
    of, _ = _recorded_part(part)
    return [(structure._replace(recompute="full" if kind == RECOMPUTED else "none").of(of), of) for kind in sorted({*part.again})]


def ledger_of(ledgers: Ledgers, structure: Structure, part: Part) -> Ledger:
    """The ledger of a part of a structure. Raises as `ledgers` does."""
    found = {key[0].recompute: ledgers(*key) for key in recorded_keys(structure, part)}
    if not part.again:
        return next(iter(found.values()))
    kept = found.get("none") or found["full"]
    return _mixed(_Same(kept), _Same(found.get("full") or kept), part)


class _Same:
    """A ledger as a key of a cache: equal to itself alone, since comparing ledgers by value is slow."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ledger is other.ledger

    def __hash__(self) -> int:
        return id(self.ledger)


def _recorded_part(part: Part) -> tuple[Part, list[int]]:
    """The part that is recorded in place of one with `again`; and of each layer of the latter, which one that is there."""
    count = sum(part.recorded)
    if not part.kinds:
        if part.again.strip(part.again[0]):  # one kind of layers, of which those that are recomputed count by themselves
            return part._replace(layers=2, decoders=0, again=""), [0, *[1] * (count - 2), 2]
        return part._replace(again=""), list(range(count))
    if sorted(part.kinds) != [*part.kinds]:  # all layers are recorded
        return part._replace(again=""), list(range(count))
    of = part._replace(layers=min(part.layers, 2), decoders=min(part.decoders, 2), kinds="", again="")
    places, start = list[int](), 0
    for number, recorded in zip((part.layers, part.decoders), of.recorded, strict=True):
        places += [start, *[start + 1] * (number - 2), start + 2] if recorded == 3 else range(start, start + recorded)
        start += recorded
    return of, places


@lru_cache(maxsize=_MIXED)
def _mixed(kept: _Same, again: _Same, part: Part) -> Ledger:
    """`kept`: the ledger without recompute, `again`: with recompute of all layers."""
    _, places = _recorded_part(part)
    return _Mixing({KEPT: kept.ledger, RECOMPUTED: again.ledger}, part.again, places).ledger()


class _Step(NamedTuple):
    """One segment of an action: the layer of the part that it is about, or one outside of layers, and the recorded segment."""

    layer: int
    kind: str  # of `Part.again`: which ledger it is from
    segment: Segment


class _Mixing:
    def __init__(self, ledgers: dict[str, Ledger], again: str, places: list[int]) -> None:
        """`again`: of each layer, from which ledger it is. `places`: of each layer, the number of its recorded layer."""
        self.ledgers, self.again, self.places = ledgers, again, places
        self.blocks, self.calls, self.operations = dict[Any, int](), dict[Any, int](), dict[Any, int]()
        self._buckets = dict[tuple[int, str], int]()  # by the part's layer and the name
        self.buckets = list[RecordedBucket]()
        for bucket in ledgers[KEPT].buckets:
            if bucket.layer < 0:
                self._add(bucket, -1)
        for layer, place in enumerate(places):
            for bucket in ledgers[KEPT].buckets:
                if bucket.layer == place:
                    self._add(bucket, layer)

    def _add(self, bucket: RecordedBucket, layer: int) -> None:
        self._buckets[layer, bucket.name] = len(self.buckets)
        self.buckets.append(bucket._replace(layer=layer))

    def ledger(self) -> Ledger:
        traces = {name: self._trace(name) for name in self.ledgers[KEPT].traces}
        return Ledger(tuple(self.blocks), tuple(self.buckets), tuple(self.calls), tuple(self.operations), traces)

    def _trace(self, name: str) -> MicrobatchTrace:
        """Inputs are freed by the first layer, and what is lent or shared by the last."""
        first, last = (self.ledgers[kind].traces[name] for kind in (self.again[0], self.again[-1]))
        handed, actions = Counter[int](), dict[str, tuple[Segment, ...]]()
        for action in first.actions:  # one after the other: a message has the name under which a layer left it
            actions[action], handed = self._action(name, action, handed)
        return MicrobatchTrace(actions, first.input_ends, last.shared, last.lent)

    def _action(self, name: str, action: str, handed: Counter[int]) -> tuple[tuple[Segment, ...], Counter[int]]:
        """`handed`: what the actions before have left; with what this one leaves it is returned."""
        found = list[Segment]()
        for step in self._steps(name, action):
            codes = self._codes(step)
            handed = self._hand_on(step, codes, handed)
            found.append(Segment(step.layer, tuple(code for event in codes for code in event)))
        return tuple(found), handed

    def _steps(self, name: str, action: str) -> Iterator[_Step]:
        by_kind = {kind: ledger.traces[name].segments(action) for kind, ledger in self.ledgers.items()}
        recorded = {
            kind: {segment.layer: segment for segment in segments if segment.layer >= 0} for kind, segments in by_kind.items()
        }
        segments = by_kind[KEPT]
        order = [segment.layer for segment in segments if segment.layer >= 0]
        assert len(order) == len({*order}), "an action has one segment for each layer"
        layers = [layer for layer, place in enumerate(self.places) if place in recorded[KEPT]]
        if order != sorted(order):
            layers.reverse()
        for segment in segments:
            if segment.layer < 0:
                yield _Step(segment.layer, KEPT, segment)
                continue
            for layer in layers:
                kind = self.again[layer]
                yield _Step(layer, kind, recorded[kind][self.places[layer]])
            layers = []

    def _codes(self, step: _Step) -> list[tuple[int, int]]:
        ledger, found = self.ledgers[step.kind], list[tuple[int, int]]()
        tables = {
            ALLOCATES: (ledger.blocks, self.blocks), FREES: (ledger.blocks, self.blocks),
            CALLS: (ledger.calls, self.calls), RUNS: (ledger.operations, self.operations),
        }  # fmt: skip
        for kind, number in step.segment.events():
            if kind in _BUCKETS:
                found.append((kind, self._bucket(step, ledger.buckets[number])))
            else:
                table, numbers = tables[kind]
                found.append((kind, numbers.setdefault(table[number], len(numbers))))
        return found

    def _bucket(self, step: _Step, bucket: RecordedBucket) -> int:
        """That of the same layer, or of the next one, whose values are gathered meanwhile."""
        if bucket.layer < 0:
            return self._buckets[-1, bucket.name]
        if step.layer >= 0:
            return self._buckets[step.layer + bucket.layer - self.places[step.layer], bucket.name]
        return self._buckets[self.places.index(bucket.layer), bucket.name]

    def _hand_on(self, step: _Step, codes: list[tuple[int, int]], handed: Counter[int]) -> Counter[int]:
        """What this step leaves to the next one. What it takes of `handed` gets the name under which it was left."""
        blocks = list(self.blocks)
        change = Counter[int]()
        for kind, number in codes:
            if kind in (ALLOCATES, FREES) and blocks[number].category != "activations":
                change[number] += 1 if kind == ALLOCATES else -1
        for taken in [number for number, count in change.items() for _ in range(-count)]:
            if handed[taken] > 0:
                handed[taken] -= 1
                continue
            other = next((n for n, count in handed.items() if count > 0 and blocks[n].bytes == blocks[taken].bytes), None)
            if other is not None:
                handed[other] -= 1
                last = max(place for place, event in enumerate(codes) if event == (FREES, taken))
                codes[last] = FREES, other
        return +handed + Counter({number: count for number, count in change.items() if count > 0})
