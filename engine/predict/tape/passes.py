"""What one chunk's passes do to memory: F, and B or I and W, each as a ledger of blocks, in any state that changes it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from engine.predict.tape.buckets import Owed
from engine.predict.tape.chunk import Chunk, Shape
from engine.predict.tape.ends import scaled
from engine.predict.tape.parts import Kit
from engine.predict.tape.reducing import FRESH, Reductions, State, Stretch
from engine.predict.tape.sizes import FOUR
from engine.predict.tape.tape import Block, Factors, Gradients, Node, Record, Value


class Key(NamedTuple):
    """Blocks that are alike. `layered`: whether there is one in each layer."""

    category: str
    name: str
    factors: Factors
    layered: bool


Counts = dict[Key, Any]
Part = tuple[Any, list[tuple[int, Key]]]  # how often it is repeated; blocks that come and go


@dataclass
class Ledger:
    """What an action does: its parts in order."""

    parts: list[Part] = field(default_factory=list)

    def net(self) -> Counts:
        """What it leaves, less what it takes away."""
        counts: Counts = defaultdict(int)
        for times, events in self.parts:
            for sign, key in events:
                counts[key] += sign * times
        return {key: count for key, count in counts.items() if _any(count)}

    def counts_at(self, at: tuple[int, int, bool]) -> Counts:
        """What it has added when so far: number of the part, events of it, and whether in its last repetition."""
        number, reach, again = at
        counts: Counts = defaultdict(int)
        for i, (times, events) in enumerate(self.parts[: number + 1]):
            if i < number or again:
                for sign, key in events:
                    counts[key] += sign * (times if i < number else times - 1)
            if i == number:
                for sign, key in events[:reach]:
                    counts[key] += sign
        return counts

    def highest(self) -> tuple[Any, tuple[int, int, bool]]:
        """The most bytes it ever adds, and where that is."""
        best, at, base = 0, (0, 0, False), 0
        sizes: dict[Factors, int] = {}
        for number, (times, events) in enumerate(self.parts):
            now = top = top_at = 0
            for reach, (sign, key) in enumerate(events, 1):
                size = sizes.get(key.factors)
                if size is None:
                    size = sizes[key.factors] = size_of(key.factors)
                now += sign * size
                if now > top:
                    top, top_at = now, reach
            for again in (False, True) if times > 1 else (False,):
                here = base + top + ((times - 1) * now if again else 0)
                if here > best:
                    best, at = here, (number, top_at, again)
            base += times * now
        return best, at


def _any(count: Any) -> bool:
    return bool(count) if isinstance(count, int) else bool(count.any())


def size_of(factors: Factors) -> Any:
    size: Any = 1
    for factor in factors:
        size = size * factor.value
    return size


def total_of(counts: Counts) -> Any:
    return sum(count * size_of(key.factors) for key, count in counts.items())


@dataclass
class Lent:
    """The block that a forward hands on while its chunk goes on to hold it: an encoder's output that passes a decoder's stage, or
    the embeddings of source and target, which are one block.
    """

    records: list[Record]  # of every microbatch played
    given: int  # which of the tensors given it is; −1 where the chunk makes it
    ends: dict[str, str]  # by what backward begins with, B or I: the action in which the chunk lets go of it

    @property
    def key(self) -> Key:
        """Of one that the message holds longer than the chunk: `engine.measure.memory` counts it as communication all along."""
        return key_of(self.records[0])._replace(category="communication")


@dataclass(eq=False)
class Passes:
    """The ledgers of a chunk, by action and state, and what it is given and gives."""

    segments: dict[str, list[Stretch]]
    chunk: Chunk
    given: Counts  # what a forward is given
    handed: Counts  # what a forward leaves to be handed on
    gradient_given: dict[str, Counts]  # by what it is for, B or I
    gradient_handed: dict[str, Counts]  # by what leaves it, B or I
    given_ends: dict[str, list[str]]  # by what backward begins with, B or I: the action in which each tensor given goes
    shared: list[int]  # which tensors of those that a forward hands on the chunk goes on to hold itself
    lent: Lent | None  # the block of that one

    @cached_property
    def reductions(self) -> Reductions:
        buckets = self.chunk.kit.buckets
        return Reductions(buckets.zero, buckets.sizes.e, buckets.g, self.chunk.weights(), self.segments.get("W", []))

    def ledger(self, kind: str, state: State = FRESH, late: bool = False) -> tuple[Ledger, int]:
        """What an action does that finds the chunk in `state`; and the bucket whose reduction it leaves under way, or −1.

        `late`: the message that holds what is lent goes later than the chunk lets go of it.
        """
        told, pending = self.reductions.told(kind, self.segments.get(kind, []), state)
        lent = {id(record) for record in self.lent.records} if late and self.lent else set()

        def entries(events: list[tuple[int, Record]]) -> list[tuple[int, Key]]:
            found = []
            for sign, one in events:
                if id(one) not in lent:
                    found += [(sign, key_of(one))] if sign else []
                elif sign > 0 and self.lent:
                    found.append((sign, self.lent.key))
            return found

        return Ledger([(times, entries(events)) for _, times, events in told]), pending


class ChunkPasses:
    """Plays the microbatches of one chunk on a tape."""

    def __init__(self, kit: Kit, shape: Shape, kinds: frozenset[str]) -> None:
        """`kinds`: which of B, I and W the schedule has."""
        self.kit, self.shape, self.kinds = kit, shape, kinds
        self.chunk = Chunk(kit, shape)
        self.tape = kit.tape

    def play(self) -> Passes:
        """One microbatch tells all; what ZeRO's reductions add to it depends on what came before, and is told by state."""
        self._record()
        return self._read()

    def _record(self) -> None:
        self._blocks: dict[str, list[Record]] = defaultdict(list)
        self._passes: defaultdict[str, int] = defaultdict(int)
        self._shared: list[int] = []
        self._ends: dict[str, list[str]] = {}
        self._lent: Lent | None = None
        for kind in ("I", "B"):
            if kind not in self.kinds:
                continue
            flight = self._forward("F" if kind == "I" or "I" not in self.kinds else "F again")
            self._backward(kind, flight)
            if kind == "I":
                self._weights("W", flight)
            self._ends[kind] = ["W" if record.died == "W" else kind for record in flight.given]
            if flight.lent:
                self._lend(kind, flight)
        self.tape.at("end")

    def _lend(self, kind: str, flight: _Flight) -> None:
        """Note what a microbatch lent, now that it is gone."""
        (record,) = flight.lent
        if self._lent is None:
            self._lent = Lent([], next((i for i, one in enumerate(flight.given) if one is record), -1), {})
        self._lent.records.append(record)
        self._lent.ends[kind] = "W" if record.died == "W" else kind

    def _segments(self) -> dict[str, list[Stretch]]:
        """What is on the tape, by action."""
        found: dict[str, list[Stretch]] = defaultdict(list)
        for segment, events in self.tape.parts:
            if events:
                times = self.shape.samples[segment.layer].count if segment.layer >= 0 else 1
                found[segment.action].append((segment.layer, times, events))
        return found

    def _forward(self, action: str) -> _Flight:
        t, z = self.tape, self.kit.sizes
        self._passes["given"] += 1
        flight = _Flight()
        t.at("given")
        if not self.shape.first:
            count = 2 if z.parts.encoder and not self._decoded() else 1
            for _ in range(count):
                block = t.new("inputs of the stage", *z.residual)
                self._blocks["given"].append(block.record)
                flight.given.append(block.record)
                flight.inputs.append(Value(block, t.leaf(self._keep(flight))))
                del block
        t.at(action)
        outputs = self.chunk.forward(tuple(flight.inputs))
        t.at(action)
        if self.shape.last:
            outputs = (scaled(self.kit, outputs[0]),)
        roots, handed = [], []
        for x in outputs:
            assert x.node is not None
            roots.append((x.node, x.slot))
            if not self.shape.last:
                handed.append(x.block)
        flight.roots = roots
        del outputs, x
        t.at("handed")
        records = self._drop(handed, "handed")
        self._shared = [i for i, record in enumerate(records) if not record.died]
        flight.lent = [records[i] for i in self._shared]
        return flight

    def _decoded(self) -> bool:
        """Whether the chunk is given one stream, by a decoder that is done."""
        return not self.shape.samples

    def _drop(self, blocks: list[Block], what: str) -> list[Record]:
        """Let go of what was handed on, and return it; what then goes is what waits to be sent."""
        records = [block.record for block in blocks]
        blocks.clear()
        self._passes[what] += 1
        self._blocks[what] += [record for record in dict.fromkeys(records) if record.died]
        return records

    def _keep(self, flight: _Flight):  # type: ignore[no-untyped-def]
        place = len(flight.inputs)

        def run(gradients: Gradients, saved: list[Block]) -> Gradients:
            owned = self.tape.owns(gradients, 0)
            (gradient,) = gradients
            assert gradient is not None
            if owned:
                self.tape.written(gradient)
            else:
                gradient = self.tape.like(gradient)
            flight.gradients[place] = gradient
            return []

        return run

    def _backward(self, action: str, flight: _Flight) -> None:
        t, z = self.tape, self.kit.sizes
        given: list[Block | None] = []
        if not self.shape.last:
            t.at("gradient given")
            self._passes[f"gradient given {kind_of(action)}"] += 1
            for _ in range(len(flight.roots)):
                block = t.new("gradients received", *z.residual)
                self._blocks[f"gradient given {kind_of(action)}"].append(block.record)
                given.append(block)
                del block
        t.at(action)
        if self.shape.last:
            given.append(t.new("numbers of one element", FOUR))
        owed = flight.owed if action.startswith("I") else None
        self.kit.buckets.owed = owed
        roots: list[tuple[Node, int, Block | None]] = [
            (node, slot, block) for (node, slot), block in zip(flight.roots, given, strict=True)
        ]
        t.backward(roots)
        self.kit.buckets.owed = None
        t.at(action)
        handed = [flight.gradients[i] for i in sorted(flight.gradients)]
        flight.gradients.clear()
        flight.inputs.clear()
        given.clear()
        flight.roots.clear()
        t.at("gradient handed")
        self._drop(handed, f"gradient handed {kind_of(action)}")

    def _weights(self, action: str, flight: _Flight) -> None:
        t, buckets = self.tape, self.kit.buckets
        t.at(action)
        for parameter in list(flight.owed):
            compute, held, layer = flight.owed.pop(parameter)
            t.at(action, layer)
            gradient = compute(*held)
            del held
            parameter.bucket.take()
            del gradient
        assert buckets.owed is None

    def _read(self) -> Passes:
        """Afterwards every block is gone."""
        segments = self._segments()
        counted: dict[str, Counts] = {}
        kinds = [f"gradient {way} {kind}" for way in ("given", "handed") for kind in ("B", "I")]
        for what in ("given", "handed", *kinds):
            counts: Counts = defaultdict(int)
            for record in self._blocks[what]:
                counts[key_of(record)] += 1
            passes = max(1, self._passes[what])
            counted[what] = {key: count // passes for key, count in counts.items()}
        given, handed = ({kind: counted[f"gradient {way} {kind}"] for kind in ("B", "I")} for way in ("given", "handed"))
        return Passes(
            segments, self.chunk, counted["given"], counted["handed"], given, handed, self._ends, self._shared, self._lent
        )


class _Flight:
    """One microbatch between its forward and its last backward."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.given: list[Record] = []
        self.lent: list[Record] = []
        self.roots: list[tuple[Node, int]] = []
        self.gradients: dict[int, Block] = {}
        self.owed: Owed = {}


def kind_of(action: str) -> str:
    return action.split(" ")[0]


def key_of(record: Record) -> Key:
    return Key(category(record), record.name, record.factors, record.layered)


def category(record: Record) -> str:
    """`engine.measure.memory`'s rule, by the actions in which a block comes and goes."""
    born, died = kind_of(record.born), kind_of(record.died)
    if record.born == record.died:
        return "communication" if record.door else "temporary"
    if born in ("F", "given") and died in ("B", "I", "W"):
        return "activations"
    if (record.born == "gradient given" or born == "I") and died == "W" and not record.door:
        return "activations"
    return "communication"
