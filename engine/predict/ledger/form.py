"""The form of a ledger: plain data, without torch.

A ledger says what one chunk does with one microbatch: F, then B or I and W. Or it says what the chunk does when it generates.
It is recorded once for each structure. A structure is all that changes what happens. Sizes are products of named dimensions
(`engine.predict.ledger.dimensions`), and only these change how large it is. Of three or more equal layers in a row three are
recorded; the one in the middle stands for any number of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.families import FamilyName
from engine.spec import Precision, Recompute

Slicing = Literal["none", "features", "sequence"]  # by tp: nothing, as tp is 1; the features; the sequence as well

# What lies between the actions of a microbatch: the chunk receives inputs, sends outputs, receives their gradients and sends
# those of its inputs.
INPUTS, OUTPUTS, OUTPUT_GRADIENTS, INPUT_GRADIENTS = "inputs", "outputs", "output gradients", "input gradients"

EVENTS = ALLOCATES, FREES, EXPECTS, ACCUMULATES, GATHERS, RELEASES, CALLS, RUNS = range(8)
"""What happens: a block is allocated or freed; a bucket expects gradients, adds one up, gathers its values, or releases them; a
call to other ranks; an operation. Each goes with the number of that block, bucket, call or operation in its table."""


class Structure(NamedTuple):
    """All that changes what a chunk of a model does, but not how large it is.

    `ones`: the dimensions that are 1. They change how tensors lie in memory, and so whether a reshape copies. `generates`: the
    chunk generates and does not train.
    """

    family: FamilyName
    recompute: Recompute
    precision: Precision
    slicing: Slicing
    ones: tuple[str, ...]
    generates: bool = False

    @property
    def archive(self) -> str:
        """The name of the archive that it is shipped in, fit for a file's name."""
        return f"{self.family}_{self.precision}"

    @property
    def name(self) -> str:
        """Fit for a file's name."""
        return "_".join([self.archive, self.group, *(one.replace("/", "-per-") for one in self.ones)])

    @property
    def group(self) -> str:
        """The name of those that lie together in an archive: they differ in `ones`."""
        return f"{'generates' if self.generates else self.recompute}_{self.slicing}"


class Part(NamedTuple):
    """Which part of the model a chunk is. Of layers: none, one, or two, which stands for any number from two on.

    `layers` are those of an encoder, or of a model that has one stack; `ends`: the last of them is the encoder's last. `closes`:
    the last of the decoders is the model's last layer, and the head is another chunk's.
    """

    first: bool
    last: bool
    layers: int
    ends: bool = False
    decoders: int = 0
    closes: bool = False

    @property
    def name(self) -> str:
        """Fit for a file's name."""
        which = ("first" if self.first else "") + ("last" if self.last else "") or "middle"
        return f"{which}_{self.layers}{'_ends' * self.ends}_{self.decoders}{'_closes' * self.closes}"

    @property
    def recorded(self) -> tuple[int, int]:
        """How many layers of each kind are recorded."""
        layers, decoders = (3 if count == 2 else count for count in (self.layers, self.decoders))
        return layers, decoders

    def repeats(self, layers: Any, decoders: Any) -> list[Any]:
        """How often each recorded layer is there, of so many layers of each kind."""
        found: list[Any] = []
        for recorded, count in zip(self.recorded, (layers, decoders), strict=True):
            found += [1, count - 2, 1] if recorded == 3 else [1] * recorded
        return found


class Product(NamedTuple):
    """A size: a number times dimensions, by name and in the order of names."""

    times: int
    dimensions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "·".join([str(self.times), *self.dimensions])


class RecordedBlock(NamedTuple):
    """An allocation, and all that are like it.

    `name`: the module's path and the operation. `layered`: made in a layer. `lent`: sent on, and held by the chunk as well.
    """

    name: str
    bytes: Product
    category: str  # of `engine.tables.CATEGORIES`
    layered: bool
    lent: bool = False


class Call(NamedTuple):
    """One call to the other ranks of an axis, in `payload` bytes. `name`: the path of the module that makes it, or that of the
    forward that it is the gradient of.
    """

    name: str
    axis: str
    collective: str
    payload: Product


class Operation(NamedTuple):
    """One operation that launches a kernel: floating-point operations of matrix products, bytes read and bytes written."""

    name: str
    flops: tuple[Product, ...]
    read: tuple[Product, ...]
    written: tuple[Product, ...]


class Parameter(NamedTuple):
    """`whole`: every tp rank has all of it."""

    shape: tuple[Product, ...]
    whole: bool


class RecordedBucket(NamedTuple):
    """Parameters in one flat buffer. `layer`: which of the recorded layers it is, or −1."""

    name: str
    layer: int
    parameters: tuple[Parameter, ...]


class Segment(NamedTuple):
    """A stretch of an action. `layer`: which of the recorded layers it is about, or −1. `codes`: kind, number, kind, number, …"""

    layer: int
    codes: tuple[int, ...]

    def events(self) -> Iterator[tuple[int, int]]:
        """One of `EVENTS`, and the number of what it is about."""
        return zip(self.codes[::2], self.codes[1::2], strict=True)


@dataclass(frozen=True)
class MicrobatchTrace:
    """One microbatch, from the chunk's inputs to the end of its backward.

    `actions`: F, B, I, W and what lies between. `input_ends`: of each input, the action in which its block is freed. `shared`:
    which outputs the chunk goes on to hold. `lent`: of the block of that output, which input it is, or −1, and the action in
    which the chunk frees it.
    """

    actions: dict[str, tuple[Segment, ...]]
    input_ends: tuple[str, ...] = ()
    shared: tuple[int, ...] = ()
    lent: tuple[int, str] | None = None

    def segments(self, action: str) -> tuple[Segment, ...]:
        """Nothing happens in an action that the chunk does not have."""
        return self.actions.get(action, ())


@dataclass(frozen=True)
class Ledger:
    """Of one part of a structure. `traces` by `case`: with B, or with I and W; with hooks in backward (ZeRO 2, 3) or without.

    Of one that generates: prefill and the decode of one token, where tokens are drawn (temperature > 0) or not.
    """

    blocks: tuple[RecordedBlock, ...]
    buckets: tuple[RecordedBucket, ...]
    calls: tuple[Call, ...]
    operations: tuple[Operation, ...]
    traces: dict[str, MicrobatchTrace]

    def trace(self, hooked: bool, split: bool) -> MicrobatchTrace:
        """`split`: backward is I and W."""
        return self.traces[case(hooked, split)]


def case(hooked: bool, split: bool) -> str:
    """The name of a trace of training."""
    return ("hooked" if hooked else "plain") + (" I W" if split else " B")


def generating(decode: bool, draws: bool) -> str:
    """The name of a trace of generating: of the whole prompt, or of one more token. `draws`: the temperature is not 0."""
    return ("decode" if decode else "prefill") + (" drawn" if draws else "")


# ---------------------------------------------------------------------------------------------------------------- as bytes


def pack(ledger: Ledger) -> bytes:
    """JSON. Equal products, names and segments are written once."""
    products: dict[Product, int] = {}
    names: dict[str, int] = {}
    segments: dict[Segment, int] = {}

    def product(size: Product) -> int:
        return products.setdefault(size, len(products))

    def name(text: str) -> int:
        return names.setdefault(text, len(names))

    plain = {
        "blocks": [(name(b.name), product(b.bytes), name(b.category), int(b.layered), int(b.lent)) for b in ledger.blocks],
        "buckets": [
            (name(b.name), b.layer, [([product(size) for size in p.shape], int(p.whole)) for p in b.parameters])
            for b in ledger.buckets
        ],
        "calls": [(name(c.name), name(c.axis), name(c.collective), product(c.payload)) for c in ledger.calls],
        "operations": [(name(o.name), *([product(size) for size in sizes] for sizes in o[1:])) for o in ledger.operations],
        "traces": {
            key: (
                {a: [segments.setdefault(s, len(segments)) for s in several] for a, several in trace.actions.items()},
                trace.input_ends,
                trace.shared,
                trace.lent,
            )
            for key, trace in ledger.traces.items()
        },
        "segments": list(segments),
        "products": [(size.times, [name(d) for d in size.dimensions]) for size in products],
        "names": list(names),
    }
    return json.dumps(plain, separators=(",", ":")).encode()


def unpack(data: bytes) -> Ledger:
    """What `pack` packed."""
    plain: dict[str, Any] = json.loads(data)
    names = plain["names"]
    products = [Product(times, tuple(names[d] for d in dimensions)) for times, dimensions in plain["products"]]

    def several(numbers: list[int]) -> tuple[Product, ...]:
        return tuple(products[n] for n in numbers)

    segments = [Segment(layer, tuple(codes)) for layer, codes in plain["segments"]]
    return Ledger(
        blocks=tuple(
            RecordedBlock(names[n], products[size], names[c], bool(layered), bool(lent))
            for n, size, c, layered, lent in plain["blocks"]
        ),
        buckets=tuple(
            RecordedBucket(names[n], layer, tuple(Parameter(several(shape), bool(whole)) for shape, whole in parameters))
            for n, layer, parameters in plain["buckets"]
        ),
        calls=tuple(
            Call(names[n], names[axis], names[collective], products[size]) for n, axis, collective, size in plain["calls"]
        ),
        operations=tuple(Operation(names[n], *map(several, sizes)) for n, *sizes in plain["operations"]),
        traces={
            key: MicrobatchTrace(
                {action: tuple(segments[n] for n in some) for action, some in actions.items()},
                tuple(ends),
                tuple(shared),
                None if lent is None else (lent[0], lent[1]),
            )
            for key, (actions, ends, shared, lent) in plain["traces"].items()
        },
    )
