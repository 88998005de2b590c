"""The form of a ledger: plain data, without torch.

A ledger lists the events of one chunk for one microbatch: of F, and of B or of I and W. Another kind of ledger lists the events
of a chunk that generates text. A ledger is recorded once for each structure. The structure has all settings that change which
events there are. Sizes are products of named dimensions (`engine.ledger.dimensions`). A layout or a batch of another size
changes only the values of the dimensions. If a chunk has three or more equal layers in a row, three are recorded. The middle one
represents all layers between the first and the last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.families import FamilyName, ModelParts, parts_of
from engine.spec import AttentionName, Precision, Recompute
from engine.spec.context import Context

Slicing = Literal["none", "features", "sequence"]  # by tp: nothing, as tp is 1; the features; the sequence as well
# A step of attention over cp ranks: none, or the first; one that stands for all others but the last; the last.
Step = Literal["", "middle", "last"]

# Transfers between the actions of a microbatch. The chunk receives its inputs and sends its outputs. It receives the gradients of
# the outputs and sends the gradients of the inputs.
INPUTS, OUTPUTS, OUTPUT_GRADIENTS, INPUT_GRADIENTS = "inputs", "outputs", "output gradients", "input gradients"

EVENTS = ALLOCATES, FREES, EXPECTS, ACCUMULATES, GATHERS, RELEASES, CALLS, RUNS = range(8)
"""The kinds of events. A block is allocated or freed. A bucket expects gradients, accumulates one, gathers its values (ZeRO 3),
or releases them. A call to other ranks is made. An operation runs. An event also has the index of its block, bucket, call or
operation in the ledger's table."""


LOSS_CHUNK = -2
"""The layer of events of one chunk of the loss. Each chunk has such events, with its own number of tokens for the dimension C.
Nothing that they allocate outlives them. So memory counts them once, for a whole chunk."""


_LONGEST = 96  # characters of the parts of a model in a name


class Structure(NamedTuple):
    """All settings that change the events of a chunk. Sizes alone do not change them.

    `ones`: the dimensions that are 1. They change the strides of tensors, and so whether a reshape copies. `generates`: the chunk
    generates text and does not train. `chunked_loss`: the loss is computed in chunks of tokens. `chosen_parts`,
    `sized_parts`: see the properties of `ModelSpec`. `context`: attention reaches the tokens of other cp ranks.
    """

    family: FamilyName
    recompute: Recompute
    precision: Precision
    slicing: Slicing
    ones: tuple[str, ...]
    generates: bool = False
    attention: AttentionName = "fused"
    chunked_loss: bool = False
    chosen_parts: tuple[tuple[str, Any], ...] = ()
    sized_parts: tuple[str, ...] = ()
    context: Context = ""

    @property
    def parts(self) -> ModelParts:
        return parts_of(self.family, dict(self.chosen_parts))

    def of(self, part: Part) -> Structure:
        """The structure of that part. The loss matters to a part with a head only; recompute and key heads to one with layers."""
        found, ones = self, set(self.ones)
        if not part.last:
            found, ones = found._replace(chunked_loss=False), ones - {"C"}
        if not part.layers + part.decoders:
            found, ones = found._replace(recompute="none"), ones - {"G/tp", "G/cp/tp"}
            if found.context not in ("", "ulysses"):  # without attention, what counts is which tokens a rank has
                found = found._replace(context="ring")
        return found._replace(ones=tuple(sorted(ones)))

    @property
    def archive(self) -> str:
        """The name of the archive in which its ledgers are shipped. It can be a file name, which has 255 characters at most."""
        chosen = "_".join((*(f"{name}-{value}" for name, value in self.chosen_parts), *self.sized_parts))
        if len(chosen) > _LONGEST:
            chosen = hashlib.sha256(chosen.encode()).hexdigest()[:16]
        return "_".join([self.family, *[chosen] * bool(chosen), self.precision])

    @property
    def name(self) -> str:
        """A name that can be a file name."""
        return "_".join([self.archive, self.group, *(one.replace("/", "-per-") for one in self.ones)])

    @property
    def group(self) -> str:
        """The name of its group in an archive. The structures of a group differ only in `ones`."""
        what = ["generates" if self.generates else self.recompute, self.slicing]
        context = [self.context.replace(" ", "-")] * bool(self.context)
        return "_".join([*what, *["fused"] * (self.attention == "fused"), *["chunked-loss"] * self.chunked_loss, *context])


class Part(NamedTuple):
    """Which part of the model a chunk is.

    first, last   the chunk has the embedding, the head
    layers        encoder layers, or layers of a model with one stack: 0, 1, or 2, which means two or more
    ends          the last of these layers is the encoder's last layer
    decoders      decoder layers: 0, 1, or 2, which means two or more
    closes        the last of these is the model's last layer, and another chunk has the head
    kinds         of a model with experts whose layers with an MLP and with experts alternate: the kind of each layer, d for dense
                  and e for experts. Then all layers are recorded, and `layers` and `decoders` count them

    again         with full recompute of some layers: of each recorded layer, r for recomputed or k for kept. Nothing is recorded
                  of such a part: `engine.ledger.mixed` puts its ledger together. Of a model whose layers are alike, if those
                  that are recomputed come first, these count as layers, the others as decoders. Else `kinds` lists all layers

    Of a model with experts, layers with an MLP count as layers, those with experts as decoders.
    """

    first: bool
    last: bool
    layers: int
    ends: bool = False
    decoders: int = 0
    closes: bool = False
    kinds: str = ""
    again: str = ""

    @property
    def name(self) -> str:
        """A name that can be a file name."""
        which = ("first" if self.first else "") + ("last" if self.last else "") or "middle"
        name = f"{which}_{self.layers}{'_ends' * self.ends}_{self.decoders}{'_closes' * self.closes}"
        return "_".join([name, *[self.kinds] * bool(self.kinds), *[self.again] * bool(self.again)])

    @property
    def recorded(self) -> tuple[int, int]:
        """The number of recorded layers: (layers, decoders)."""
        if self.kinds:
            return self.layers, self.decoders
        layers, decoders = (3 if count == 2 else count for count in (self.layers, self.decoders))
        return layers, decoders

    def repeats(self, layers: Any, decoders: Any) -> list[Any]:
        """How many layers of the chunk each recorded layer represents. The chunk has `layers` and `decoders`."""
        if self.kinds:
            return [1] * len(self.kinds)
        found: list[Any] = []
        for recorded, count in zip(self.recorded, (layers, decoders), strict=True):
            found += [1, count - 2, 1] if recorded == 3 else [1] * recorded
        return found


class Product(NamedTuple):
    """A size: `times` × the product of `dimensions`, which are sorted by name."""

    times: int
    dimensions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "·".join([str(self.times), *self.dimensions])


class RecordedBlock(NamedTuple):
    """One allocation. All allocations that are equal share one record.

    `name`: the module's path and the operation. `layered`: it is allocated in a layer. `lent`: it is sent to the next chunk, and
    this chunk keeps it too.
    """

    name: str
    bytes: Product
    category: str  # of `engine.tables.CATEGORIES`
    layered: bool
    lent: bool = False


class Call(NamedTuple):
    """One communication call to the other ranks of an axis, of `payload` bytes.

    `name`: the path of the module that makes the call. In backward, the module whose forward is differentiated.
    """

    name: str
    axis: str
    collective: str
    payload: Product
    step: Step = ""


class Operation(NamedTuple):
    """One operation that launches a kernel: FLOPs of matrix products, bytes read, bytes written. Each is a sum of products."""

    name: str
    flops: tuple[Product, ...]
    read: tuple[Product, ...]
    written: tuple[Product, ...]
    step: Step = ""


class Parameter(NamedTuple):
    """`whole`: tp does not shard it. `keys`: the shape of the part at its end that makes keys and values; empty if there is none.

    If there are fewer key heads than tp ranks, several ranks hold the same such part.
    """

    shape: tuple[Product, ...]
    whole: bool
    keys: tuple[Product, ...] = ()


class RecordedBucket(NamedTuple):
    """Parameters in one flat buffer. `layer`: the index of its recorded layer, or −1 outside of layers."""

    name: str
    layer: int
    parameters: tuple[Parameter, ...]

    @property
    def experts(self) -> bool:
        """Whether these are a layer's experts, which have replicas of their own."""
        return self.name.endswith(".experts")


class Segment(NamedTuple):
    """Consecutive events of an action. `layer`: the index of their recorded layer; −1 outside of layers; or `LOSS_CHUNK`.

    `codes`: kind, index, kind, index, …
    """

    layer: int
    codes: tuple[int, ...]

    def events(self) -> Iterator[tuple[int, int]]:
        """Pairs of a kind, one of `EVENTS`, and the index in the table of its block, bucket, call or operation."""
        return zip(self.codes[::2], self.codes[1::2], strict=True)


@dataclass(frozen=True)
class MicrobatchTrace:
    """The events of one microbatch, from receiving the chunk's inputs to the end of its backward.

    actions      F, B, I, W and the transfers between them → their events
    input_ends   for each input, the action that frees its block
    shared       the indices of the outputs whose blocks the chunk keeps after they are sent
    lent         for the block of such an output: the index of the input that it is, or −1; and the action in which the chunk
                 frees it
    """

    actions: dict[str, tuple[Segment, ...]]
    input_ends: tuple[str, ...] = ()
    shared: tuple[int, ...] = ()
    lent: tuple[int, str] | None = None

    def segments(self, action: str) -> tuple[Segment, ...]:
        """The events of an action. Empty if the chunk does not have this action."""
        return self.actions.get(action, ())

    def events(self, action: str, kind: int) -> Iterator[tuple[int, int]]:
        """The events of one kind in an action: the layer of their segment, and the number of what each is about."""
        for segment in self.segments(action):
            yield from ((segment.layer, number) for event, number in segment.events() if event == kind)


@dataclass(frozen=True)
class Ledger:
    """The ledger of one part of a structure: its tables, and traces by name.

    Training has four traces, named by `case`: with B, or with I and W; with hooks in backward (ZeRO 2 and 3) or without.
    Generating has four too, named by `generating`: prefill, or decode of one token; with sampling (temperature > 0) or without.
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
    """The name of a trace of training. `hooked`: ZeRO 2 or 3. `split`: backward is I and W."""
    return ("hooked" if hooked else "plain") + (" I W" if split else " B")


def generating(decode: bool, draws: bool) -> str:
    """The name of a trace of generating: prefill of the whole prompt, or decode of one token. `draws`: the temperature is > 0."""
    return ("decode" if decode else "prefill") + (" drawn" if draws else "")


# ---------------------------------------------------------------------------------------------------------------- as bytes


def pack(ledger: Ledger) -> bytes:
    """The ledger as JSON. Equal products, names and segments are written once."""
    products: dict[Product, int] = {}
    names: dict[str, int] = {}
    segments: dict[Segment, int] = {}

    def product(size: Product) -> int:
        return products.setdefault(size, len(products))

    def several(sizes: Iterable[Product]) -> list[int]:
        return [product(size) for size in sizes]

    def name(text: str) -> int:
        return names.setdefault(text, len(names))

    plain = {
        "blocks": [(name(b.name), product(b.bytes), name(b.category), int(b.layered), int(b.lent)) for b in ledger.blocks],
        "buckets": [
            (
                name(b.name),
                b.layer,
                [[several(p.shape), int(p.whole), *([several(p.keys)] if p.keys else [])] for p in b.parameters],
            )
            for b in ledger.buckets
        ],
        "calls": [
            (name(c.name), name(c.axis), name(c.collective), product(c.payload), *[c.step] * bool(c.step)) for c in ledger.calls
        ],
        "operations": [
            (name(o.name), *map(several, (o.flops, o.read, o.written)), *[o.step] * bool(o.step)) for o in ledger.operations
        ],
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
    """The ledger that `pack` wrote."""
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
            RecordedBucket(
                names[n],
                layer,
                tuple(Parameter(several(shape), bool(whole), *map(several, keys)) for shape, whole, *keys in parameters),
            )
            for n, layer, parameters in plain["buckets"]
        ),
        calls=tuple(
            Call(names[n], names[axis], names[collective], products[size], *step)
            for n, axis, collective, size, *step in plain["calls"]
        ),
        operations=tuple(
            Operation(names[n], several(flops), several(read), several(written), *step)
            for n, flops, read, written, *step in plain["operations"]
        ),
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
