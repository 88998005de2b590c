"""What a rank holds of the model, in numbers: its chunks, and for each layer the bucket that data parallelism moves.

The sizes follow `engine.model`, the buckets `TransformerChunk.parts` and `engine.parallel.data`. Formulas take `tp` as a
number or as an array of numbers, and then give arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.spec import LayoutSpec, ModelSpec


@dataclass(frozen=True)
class Part:
    """One chunk of the model: how many plain layers and how many that attend to an encoder, and which ends it has.

    `index` of the chunks of the model, on `stage`, as its `run`-th there; `start` is its first layer.
    """

    index: int
    stage: int
    run: int
    start: int
    layers: int
    crossing: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Bucket:
    """The parameters of one layer on one tp rank, in elements; `alike` of them are in the chunk.

    `deferred`: a schedule that splits backward leaves some of its gradients to W. `gathers`: how often ZeRO-3 fetches its values
    in one forward pass and in one backward pass.
    """

    name: str
    whole: Any  # what tp does not cut
    cut: Any
    alike: int = 1
    deferred: bool = False
    gathers: tuple[int, int] = (1, 1)

    @property
    def size(self) -> Any:
        return self.whole + self.cut

    def padded(self, parts: Any) -> Any:
        """Its size as a multiple of `parts`, which ZeRO shards evenly."""
        return -(-self.size // parts) * parts


def parts(model: ModelSpec, layout: LayoutSpec) -> list[Part]:
    """Every chunk of the model, in its order."""
    counts, found, start = layout.chunk_layers(model.layers), [], 0
    decoder = model.encoder_layers if model.parts.encoder else model.layers
    for index, (stage, count) in enumerate(zip(layout.placement, counts, strict=True)):
        crossing = max(0, start + count - max(start, decoder))
        last = index == len(counts) - 1
        found.append(Part(index, stage, index // layout.pp, start, count - crossing, crossing, index == 0, last))
        start += count
    return found


def buckets(model: ModelSpec, tp: int, part: Part) -> Iterator[Bucket]:
    """In the order of the forward pass, equal layers as one entry."""
    family = model.parts
    tied_here = part.last and family.tied
    if part.first or tied_here:
        # On a chunk that is first and last, the table is looked up and then borrowed by the head.
        gathers = (int(part.first) + int(tied_here), int(tied_here))
        yield Bucket("table", 0, table_size(model, tp), deferred=not part.first, gathers=gathers)
    if part.first and places_size(model):
        yield Bucket("positions", places_size(model), 0, gathers=(1, 0))
    if part.first and family.embedding_norm:
        yield Bucket("norm", family.norm_vectors * model.hidden, 0)
    for crossing, count in ((False, part.layers), (True, part.crossing)):
        if count:
            yield Bucket("decoder" if crossing else "layer", *layer_size(model, tp, crossing), count, deferred=True)
    whole, cut = head_size(model, tp)
    if part.last and (family.head != "bare" or not family.tied or family.output_bias):
        yield Bucket("head", whole, cut, deferred=not family.tied)


def layer_size(model: ModelSpec, tp: Any, crossing: bool) -> tuple[Any, Any]:
    """(what tp does not cut, a rank's slice of the rest). Biases behind a sum, and norms, are whole."""
    family, h = model.parts, model.hidden
    queries, keys = model.heads * model.head_width // tp, model.key_heads * model.head_width // tp
    attentions = 2 if crossing else 1
    inner = (2 if family.inner == "swiglu" else 1) * (model.ffn_width // tp)
    cut = attentions * (queries + 2 * keys + queries) * h + (inner + model.ffn_width // tp) * h
    whole = (attentions + 1) * family.norm_vectors * h
    if family.attention_bias:
        cut, whole = cut + attentions * (queries + 2 * keys), whole + attentions * h
    if family.mlp_bias:
        cut, whole = cut + inner, whole + h
    if family.position == "relative":
        cut = cut + queries * h + 2 * queries
    return whole, cut


def table_size(model: ModelSpec, tp: Any) -> Any:
    """A rank's rows of the token table: the vocabulary is padded to a multiple of tp."""
    return -(-model.vocab // tp) * model.hidden


def places_size(model: ModelSpec) -> int:
    """Learned positions and segments; 0 where a family has neither."""
    learned = model.seq if model.parts.position == "learned" else 0
    return (learned + (2 if model.parts.segments else 0)) * model.hidden


def head_size(model: ModelSpec, tp: Any) -> tuple[Any, Any]:
    """(what tp does not cut, a rank's slice of the rest), without a table that is tied."""
    family, h = model.parts, model.hidden
    norm = family.norm_vectors * h
    whole = {"norm": norm, "transform": h * h + h + norm, "bare": 0}[family.head]
    cut = (0 if family.tied else table_size(model, tp)) + (-(-model.vocab // tp) if family.output_bias else 0)
    return whole, cut
