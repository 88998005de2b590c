"""What a layout's chunks do, read from ledgers: memory, its explanation and the curve over a step are made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from engine.predict.ledger.dimensions import dimensions, factors, slicing, structure, value
from engine.predict.ledger.form import (
    BORN,
    EXPECTS,
    GATHERS,
    GIVEN,
    GONE,
    GRADIENT_GIVEN,
    GRADIENT_HANDED,
    HANDED,
    RELEASES,
    TAKES,
    Block,
    Flight,
    Ledger,
    Part,
    Segment,
    Structure,
)  # fmt: skip
from engine.predict.ledger.form import Bucket as RecordedBucket
from engine.predict.memory import Memory, Place, Stages
from engine.predict.tape import buckets as notes
from engine.predict.tape.buckets import LAYERS, Bucket
from engine.predict.tape.moments import ALL_OF, MOST
from engine.predict.tape.passes import Counts, Lent, Passes, key_of
from engine.predict.tape.reducing import Stretch
from engine.predict.tape.tape import Note, Record
from engine.predict.terms import Factor
from engine.spec import ModelSpec, RunSpec

Ledgers = Callable[[Structure, Part], Ledger]  # where ledgers come from
Weights = list[tuple[Bucket, Any]]  # buckets, and how many there are of each
_NOTES = {EXPECTS: notes.EXPECTS, TAKES: notes.TAKES}
_BACKWARD = {"B": ("B",), "I": ("I", "W")}
_LIVES = {"activations": ("F", "B"), "temporary": ("F", "F"), "communication": ("F", HANDED)}  # from which to which action


def part_of(model: ModelSpec, layers: range, first: bool, last: bool) -> tuple[Part, tuple[int, int]]:
    """Which part of the model a chunk of those layers is, and how many layers it has of each kind."""
    border = model.encoder_layers if model.parts.encoder else model.layers
    before = len(range(layers.start, min(layers.stop, border)))
    behind = len(layers) - before
    ends = bool(model.parts.encoder and before and layers.stop >= border)
    closes = bool(model.parts.encoder and behind and not last and layers.stop == model.layers)
    return Part(first, last, min(before, 2), ends, min(behind, 2), closes), (before, behind)


class LedgerStages(Stages):
    """The stages of one spec, of which ledgers say what their chunks do."""

    def __init__(self, spec: RunSpec, ledgers: Ledgers, all_of: int = ALL_OF, most: int = MOST) -> None:
        super().__init__(spec, all_of, most)
        layout, workload, model = spec.layout, spec.workload, spec.model
        cut = slicing(layout.tp, layout.sequence_parallel)
        self.dimensions = dimensions(model, cut, layout.tp, workload.microbatch_size)
        self.structure = structure(model, workload, layout.recompute, cut, self.dimensions)
        self._ledgers = ledgers
        stop, self._ranges = 0, list[range]()
        for count in layout.chunk_layers(model.layers):
            start, stop = stop, stop + count
            self._ranges.append(range(start, stop))
        self._read: dict[Any, tuple[Passes, Weights]] = {}

    def needs(self) -> set[tuple[Structure, Part]]:
        """Which ledgers."""
        return {(self.structure, self._part(chunk)[0]) for chunk in range(len(self._ranges))}

    def _part(self, chunk: int) -> tuple[Part, tuple[int, int]]:
        return part_of(self.spec.model, self._ranges[chunk], chunk == 0, chunk == len(self._ranges) - 1)

    def passes(self, chunk: int) -> tuple[Passes, Weights]:
        key = self._part(chunk)
        if key not in self._read:
            part, counts = key
            self._read[key] = _Reading(self, self._ledgers(self.structure, part), part, counts).passes()
        return self._read[key]


def memory(spec: RunSpec, ledgers: Ledgers) -> Memory:
    """The peak of every rank."""
    stages = LedgerStages(spec, ledgers)
    peaks = tuple(stages.peak(Place(stage)) for stage in range(spec.layout.pp))
    return Memory(peaks, stages.others(peaks))


def counted(part: Part, bucket: RecordedBucket) -> bool:
    """Whether it counts in the norm of the gradients: the first chunk counts the token table, not the last one's copy of it."""
    return part.first or not bucket.name.endswith("token")


class _Reading:
    """One ledger with the numbers of a layout put in."""

    def __init__(self, stages: LedgerStages, ledger: Ledger, part: Part, counts: tuple[int, int]) -> None:
        self.ledger, self.zero, self.sizes, self.e = ledger, stages.spec.layout.zero, stages.dimensions, stages.sizes.e
        self.kinds, self.times = stages.kinds, part.repeats(*counts)
        self.owner: Any = SimpleNamespace(zero=self.zero, dp=stages.dp, sizes=stages.sizes, g=stages.g)
        self.weights = [self._bucket(one, part) for one in ledger.buckets]
        self.records = [self._record(block) for block in ledger.blocks]

    def _bucket(self, one: RecordedBucket, part: Part) -> tuple[Bucket, Any]:
        bucket: Any = Bucket(self.owner, LAYERS if one.layer >= 0 else one.name)
        for p in one.parameters:
            shape = tuple(Factor(str(size), value(size, self.sizes)) for size in p.shape)
            bucket.parameters.append(SimpleNamespace(shape=shape, whole=p.whole))
        bucket.counted = counted(part, one)
        return bucket, self.times[one.layer] if one.layer >= 0 else 1

    def _record(self, block: Block) -> Record:
        """As `engine.predict.tape.passes` has it, which tells the category from the actions that a block lives in."""
        born, died = _LIVES[block.category]
        record = Record(block.name, factors(block.bytes, self.sizes), False, born, block.layered)
        record.died = died
        return record

    def passes(self) -> tuple[Passes, Weights]:
        backward = [kind for kind in ("I", "B") if kind in self.kinds]
        flights: dict[str, Flight] = {kind: self.ledger.flight(self.zero >= 2, kind == "I") for kind in backward}
        first = next(iter(flights.values()))
        segments = {"F": self._stretches(first, "F")}
        for kind, flight in flights.items():
            segments |= {action: self._stretches(flight, action) for action in _BACKWARD[kind]}
        found = Passes(
            segments,
            SimpleNamespace(kit=SimpleNamespace(buckets=self.owner), weights=lambda: self.weights),  # type: ignore[arg-type]
            self._counts(first, GIVEN, 1),
            self._counts(first, HANDED, -1),
            {kind: self._counts(flight, GRADIENT_GIVEN, 1) for kind, flight in flights.items()},
            {kind: self._counts(flight, GRADIENT_HANDED, -1) for kind, flight in flights.items()},
            {kind: list(flight.given_ends) for kind, flight in flights.items()},
            list(first.shared),
            self._lent(flights),
        )
        return found, self.weights

    def _lent(self, flights: dict[str, Flight]) -> Lent | None:
        lent = {kind: flight.lent for kind, flight in flights.items() if flight.lent is not None}
        if not lent:
            return None
        records = [record for record, block in zip(self.records, self.ledger.blocks, strict=True) if block.lent]
        return Lent(records, next(iter(lent.values()))[0], {kind: end for kind, (_, end) in lent.items()})

    def _counts(self, flight: Flight, action: str, sign: int) -> Counts:
        counts: Counts = defaultdict(int)
        for segment in flight.segments(action):
            for kind, number in segment.events():
                if kind in (BORN, GONE):
                    counts[key_of(self.records[number])] += sign if kind == BORN else -sign
        return {key: count for key, count in counts.items() if count}

    def _stretches(self, flight: Flight, action: str) -> list[Stretch]:
        found: list[Stretch] = []
        for segment in flight.segments(action):
            times = self.times[segment.layer] if segment.layer >= 0 else 1
            if times:
                found.append((segment.layer, times, list(self._events(segment))))
        return found

    def _events(self, segment: Segment) -> Iterator[tuple[int, Record]]:
        for kind, number in segment.events():
            if kind in (BORN, GONE):
                yield (1 if kind == BORN else -1), self.records[number]
            elif kind in _NOTES and self.zero:
                yield 0, Note(_NOTES[kind], self.weights[number][0])
            elif kind in (GATHERS, RELEASES) and self.zero == 3:
                bucket = self.weights[number][0]
                values = Record("gathered weights of a layer", (bucket.size, self.e), True, "F", bucket.name == LAYERS)
                values.died = "F"
                yield (1 if kind == GATHERS else -1), values
