"""A chunk, in sizes: `engine.model.chunk`, of as many layers as tell those of any number of layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.predict.tape.buckets import LAYERS, Bucket, Run, Use
from engine.predict.tape.ends import Feed, Head, Places, Token, sinusoid
from engine.predict.tape.layers import Layer, norm_parameters
from engine.predict.tape.parts import Around, Kit
from engine.predict.tape.sizes import EIGHT, FOUR, TWO
from engine.predict.tape.tape import Block, Value
from engine.predict.terms import Factor
from engine.spec import ModelSpec, sentence

Streams = tuple[Value, ...]


@dataclass(frozen=True)
class Sample:
    """One layer that stands for `count` equal ones in a row."""

    decodes: bool
    ends: bool  # the last of the encoder, or of the decoder
    count: Any


@dataclass(frozen=True)
class Shape:
    """Which part of the model a chunk is."""

    first: bool
    last: bool
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, model: ModelSpec, layers: range, first: bool, last: bool) -> Shape:
        samples: list[Sample] = []
        cuts = sorted({layers.start, layers.stop, min(max(model.encoder_layers, layers.start), layers.stop)})
        for start, stop in itertools.pairwise(cuts):
            decodes = model.parts.encoder and start >= model.encoder_layers
            ends = {model.encoder_layers, model.layers} if model.parts.encoder else set()
            count = stop - start
            inner = [1] * count if count <= 3 else [1, count - 2, 1]
            for i, n in enumerate(inner):
                samples.append(Sample(decodes, i == len(inner) - 1 and stop in ends, n))
        return cls(first, last, tuple(samples))


class Chunk:
    def __init__(self, kit: Kit, shape: Shape) -> None:
        self.kit, self.shape = kit, shape
        z, buckets = kit.sizes, kit.buckets
        parts = z.parts
        self.token = self.places = self.head = None
        self.norm_bucket = None
        self.heads: list[Bucket] = []
        if shape.first or (shape.last and parts.tied):
            self.token = Token(kit, buckets.bucket(sentence("the token table")))
            self.token.bucket.counted = shape.first
        if shape.first:
            bucket = buckets.bucket(sentence("positions"))
            self.places = Places(kit, bucket)
            if not bucket.parameters:
                buckets.all.remove(bucket)
            if parts.embedding_norm:
                self.norm_bucket = buckets.bucket(sentence("the embedding's norm"))
                self.norm = norm_parameters(kit, self.norm_bucket)
        self.layers: list[tuple[Layer, Bucket]] = []
        for sample in shape.samples:
            bucket = buckets.bucket(LAYERS)
            self.layers.append((Layer(kit, bucket, sample.decodes), bucket))
        if shape.last:
            bucket = buckets.bucket(sentence("the head"))
            self.head = Head(kit, bucket)
            if bucket.parameters:
                self.heads = [bucket]
            else:
                buckets.all.remove(bucket)

    def weights(self) -> list[tuple[Bucket, Any]]:
        """Every bucket, and how many there are of it."""
        counts = {id(bucket): sample.count for (_, bucket), sample in zip(self.layers, self.shape.samples, strict=True)}
        return [(bucket, counts.get(id(bucket), 1)) for bucket in self.kit.buckets.all]

    def forward(self, inputs: Streams) -> Streams:
        needed = self.shape.first or self.shape.last or self.kit.sizes.parts.position == "relative"
        feed = Feed.of(self.kit) if needed else None
        return self.kit.buckets.through(self._uses(feed), inputs)

    def _uses(self, feed: Feed | None) -> list[tuple[Use, Run]]:
        kit, hold, uses = self.kit, self.kit.buckets.hold, list[tuple[Use, Run]]()
        if self.places is not None:
            assert self.token is not None and feed is not None
            there = [b for b in (self.token.bucket, *_of(self.places)) if b.parameters]
            uses.append((Use(there, lookup=True, fed=hold(feed.blocks)), lambda _: self._look_up(feed)))
            if self.norm_bucket is not None:
                norm = self.norm
                uses.append((Use([self.norm_bucket]), lambda streams: tuple(kit.norm(x, norm) for x in streams)))
        around = self._around(feed) if self.layers else Around()
        for number, ((layer, bucket), sample) in enumerate(zip(self.layers, self.shape.samples, strict=True)):
            run: Run = partial(self._pass, layer, sample, around)
            uses.append((Use([bucket], number, fed=hold(around.blocks)), run))
        if self.head is not None:
            assert feed is not None
            tied = self.token if kit.sizes.parts.tied else None
            table = [] if tied is None else [tied.bucket]
            own, borrowed = (self.heads, table) if self.shape.first else ([*self.heads, *table], [])
            uses.append((Use(own, borrowed=borrowed, fed=hold([feed.targets])), partial(self._loss, tied, feed.targets)))
        return uses

    def extend(self, streams: Streams, tokens: Block | None, cache: Block) -> Streams:
        """`TransformerChunk.extend`: some more tokens of a sequence, the last chunk's logits of the last one."""
        _kit, t, z = self.kit, self.kit.tape, self.kit.sizes
        if self.places is not None:
            assert self.token is not None and tokens is not None
            streams = (self.places.forward(self.token.look_up(tokens), None),)
        rotation = self._around(None).rotation if z.parts.position == "rotary" and self.layers else None
        around = Around(rotation=rotation, cache=cache)
        for number, (layer, _) in enumerate(self.layers):
            t.at(t.action, number)
            streams = (layer.forward(streams[0], around),)
        t.at(t.action)
        if self.head is not None:
            streams = (self.head.logits(Value(streams[0].block), self.token if z.parts.tied else None),)
        return streams

    def _loss(self, table: Token | None, targets: Block, streams: Streams) -> Streams:
        assert self.head is not None
        return (self.head.loss(streams[0], table, targets, self.shape.first and table is not None),)

    def _look_up(self, feed: Feed) -> Streams:
        kit, z = self.kit, self.kit.sizes
        assert self.token is not None and self.places is not None
        if feed.following is None:
            return (self.places.forward(self.token.look_up(feed.tokens), feed.segments),)
        tokens = kit.tape.new("tokens and targets", TWO, z.B, z.S, EIGHT)
        looked = self.token.look_up(tokens, (TWO,))
        del tokens
        both = self.places.forward(looked, None, (TWO,))
        node = kit.tape.node(both)
        node.run = lambda gradients, saved: [kit.tape.new("gradients of the embeddings", TWO, *z.residual)]
        return Value(both.block, node, 0), Value(both.block, node, 1)

    def _around(self, feed: Feed | None) -> Around:
        t, z = self.kit.tape, self.kit.sizes
        position = z.parts.position
        if position == "rotary":
            exponents = t.new("angles", z.half, FOUR)
            angles = t.new("angles", z.R, z.half, FOUR)
            out = tuple(t.new("angles", z.R, z.half, FOUR) for _ in range(2))
            del angles, exponents
            return Around(rotation=out)  # type: ignore[arg-type]
        if position != "relative":
            return Around()
        assert feed is not None
        places = t.new("positions", z.S, EIGHT)
        rows = Factor("2 S − 1", 2 * z.S.value - 1)
        waves = sinusoid(self.kit, rows)
        if z.wide:
            waves = t.new("waves", rows, z.H, z.e)
        difference = t.new("distances", z.B, z.R, z.S, EIGHT)
        distance = t.new("distances", z.B, z.R, z.S, EIGHT)
        del places, difference
        return Around(hidden=feed.hidden, waves=waves, distance=distance)

    def _pass(self, layer: Layer, sample: Sample, around: Around, streams: Streams) -> Streams:
        if not self.kit.sizes.parts.encoder:
            return (self._run(layer, around, streams[0]),)
        if not sample.decodes:
            x, following = streams
            x = self._run(layer, around, x)
            return (following, x) if sample.ends else (x, following)
        y, memory = streams
        y = self._run(layer, around, y, memory)
        return (y,) if sample.ends else (y, memory)

    def _run(self, layer: Layer, around: Around, *inputs: Value) -> Value:
        if self.kit.sizes.recompute != "full":
            return layer.forward(inputs[0], around, *inputs[1:])
        return self.kit.tape.checkpoint(lambda x, *more: layer.forward(x, around, *more), *inputs)


def _of(places: Places) -> list[Bucket]:
    return [places.bucket]
