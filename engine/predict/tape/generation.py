"""Memory of generating without training: `engine.inference` and `engine.generate`, in sizes.

A prompt goes through at once, then token by token. What is there grows with the tokens so far, so the peak is in the prompt's
pass or in the last token's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from engine.predict.tape.buckets import Buckets
from engine.predict.tape.chunk import Chunk, Shape, Streams
from engine.predict.tape.parts import Kit
from engine.predict.tape.passes import Counts, Key, Ledger
from engine.predict.tape.sizes import EIGHT, FOUR, TWO, WIDTHS, Sizes
from engine.predict.tape.tape import Block, Record, Tape, Value
from engine.predict.terms import Factor
from engine.spec import RunSpec, sentence
from engine.tables import KV_CACHE

NUMBER = "numbers of one element"


@dataclass(frozen=True)
class Pass:
    """One pass of some tokens through a stage: its actions, each with what it does, in order."""

    actions: tuple[tuple[str, Ledger], ...]


class Generation:
    def __init__(self, spec: RunSpec, shapes: list[Shape]) -> None:
        self.spec, self.shapes = spec, shapes
        self.prompt = len(spec.generate.prompt.encode())
        self.new = spec.generate.new_tokens
        self.placement = spec.layout.placement

    def chunks(self, stage: int) -> list[int]:
        return [c for c, s in enumerate(self.placement) if s == stage]

    def sizes(self, count: int, keys: int) -> Sizes:
        """For `count` tokens behind others, `keys` in all."""
        layout, model = self.spec.layout, self.spec.model
        tp = layout.tp
        flags = (False, tp > 1, model.heads // tp > 1 and count > 1, model.key_heads // tp > 1)
        return Sizes.of(model, self.spec.workload, tp, 1, False, "none", flags)._replace_rows(count, keys)

    def standing(self, stage: int) -> Counts:
        counts: Counts = defaultdict(int)
        for c in self.chunks(stage):
            _tape, z, chunk = self._chunk(c, 1, 1)
            for bucket, times in chunk.weights():
                key = Key(
                    "parameters",
                    sentence("weights of {bucket}", bucket=bucket.name),
                    (bucket.size, z.e),
                    bucket.name == "the layers",
                )
                counts[key] += times
            cached = (TWO, z.G, Factor("N", self.prompt + self.new), z.D, z.e)
            layers = sum(sample.count for sample in self.shapes[c].samples)
            if layers:
                counts[Key(KV_CACHE, "keys and values", cached, True)] += layers
        counts[Key("temporary", "the prompt", (Factor("P", self.prompt), EIGHT), False)] += 1
        return counts

    def _chunk(self, c: int, count: int, keys: int) -> tuple[Tape, Sizes, Chunk]:
        tape, z = Tape(), self.sizes(count, keys)
        tape.grad = False
        buckets = Buckets(tape, z, Factor("dp", 1), 0, False, Factor("g", WIDTHS["fp32"]))
        return tape, z, Chunk(Kit(tape, z, buckets), self.shapes[c])

    def passes(self, stage: int) -> list[tuple[str, Ledger]]:
        """Every kind of action that may be the peak, with all that it adds to what stands."""
        found = []
        numbers = [0] if self.new == 1 else [0, self.new - 1]
        for number in numbers:
            count, keys = (self.prompt, self.prompt) if number == 0 else (1, self.prompt + number)
            for c in self.chunks(stage):
                found.append((f"F chunk {c} microbatch {number}", self._forward(c, count, keys)))
        return found

    def _forward(self, c: int, count: int, keys: int) -> Ledger:
        tape, z, chunk = self._chunk(c, count, keys)
        tape.at("recv")
        streams: Streams = () if c == 0 else (Value(tape.new("inputs of the stage", *z.residual)),)
        token = tape.new("the token", EIGHT) if c == 0 and count == 1 else None
        cache = tape.new("", Factor("0", 0))
        tape.at("F")
        prompt = tape.new("", Factor("0", 0)) if c == 0 else None
        streams = chunk.extend(streams, prompt, cache)
        if c == len(self.placement) - 1:
            self._choose(tape, z, streams)
        tape.at("end")
        del streams, token, cache, prompt
        return _ledger(tape, self.shapes[c])

    def _choose(self, tape: Tape, z: Sizes, streams: Streams) -> None:
        """The next token, from the logits of the last."""
        logits: Block = tape.new("logits", z.V, FOUR) if z.wide else streams[0].block
        if self.spec.generate.temperature:
            scalar = tape.new(NUMBER, FOUR)
            divided = tape.new("logits", z.V, FOUR)
            del scalar
            noise = self._noise(tape, z)
            logits = tape.new("logits", z.V, FOUR)
            del divided, noise
        best = [tape.new("the likeliest token", TWO, EIGHT)]
        best += [tape.new(NUMBER, FOUR), tape.new(NUMBER, EIGHT)]
        best += [tape.new(NUMBER, EIGHT), tape.new(NUMBER, EIGHT), tape.new(NUMBER, EIGHT), tape.new(NUMBER, EIGHT)]
        best.append(tape.new("the likeliest token", TWO, EIGHT))
        del logits, best

    def _noise(self, tape: Tape, z: Sizes) -> Block:
        vocab, padded = Factor("V", z.model.vocab), Factor("V", z.V.value * z.tp.value)
        uniform = tape.new("noise to draw by", vocab, EIGHT)
        noise = tape.new("noise to draw by", padded, FOUR)
        log = tape.new("noise to draw by", vocab, EIGHT)
        for _ in range(3):
            log = tape.new("noise to draw by", vocab, EIGHT)
        del uniform, log
        return noise


def _ledger(tape: Tape, shape: Shape) -> Ledger:
    def key(record: Record, layer: int) -> Key:
        waits = record.born == "recv" or (record.born == "F" and record.died == "end")
        return Key("communication" if waits else "temporary", record.name, record.factors, layer >= 0)

    keys: dict[int, Key] = {}
    ledger = Ledger()
    for segment, events in tape.parts:
        for sign, record in events:
            if sign > 0:
                keys[id(record)] = key(record, segment.layer)
        times: Any = shape.samples[segment.layer].count if segment.layer >= 0 else 1
        ledger.parts.append((times, [(sign, keys[id(record)]) for sign, record in events if record.name]))
    return ledger
