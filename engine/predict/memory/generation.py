"""Memory of generating without training: `engine.inference` and `engine.generate`, read from ledgers.

A prompt goes through at once, then token by token. What is there grows with the tokens so far, so the peak is in the prompt's
pass or in the last token's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from engine.ledger.form import INPUTS, generating
from engine.ledger.keep import Ledgers
from engine.ledger.layout import LayoutLedgers
from engine.predict.memory.blocks import BlockKind, Counts, total_of
from engine.predict.memory.passes import ActionTrace, layout_reading
from engine.spec import RunSpec, Sentence, sentence
from engine.tables import KV_CACHE
from engine.terms import Factor


class Generation:
    """Of one spec."""

    def __init__(self, spec: RunSpec, ledgers: Ledgers | None = None) -> None:
        """`ledgers`: those to read, in place of `ledger_store()`. Raises `NotRecordedError`."""
        self.spec, self.prompt, self.new = spec, len(spec.generate.prompt.encode()), spec.generate.new_tokens
        tokens = self.prompt, self.prompt + self.new - 1
        own = LayoutLedgers(spec.model, spec.layout, spec.workload, tokens, ledgers)
        self.split, self.e = own.split, own.e
        self.readings = [layout_reading(own.chunk(number), own.sizes) for number in range(len(own.split.chunks))]

    def standing(self, stage: int) -> Counts:
        """Weights, the cache of keys and values, and the prompt."""
        layout, model, counts = self.spec.layout, self.spec.model, defaultdict[BlockKind, int](int)
        for chunk in self.split.on(stage):
            for bucket, times in self.readings[chunk].buckets(1):
                name = sentence("weights of {bucket}", bucket=bucket.name)
                counts[BlockKind("parameters", name, (bucket.size, self.e), bucket.layered)] += times
            tokens = Factor("N", self.prompt + self.new)
            heads = Factor("G" if layout.tp == 1 else "G/tp", model.keys_on_rank(layout.tp))
            width = Factor("D", model.head_width)
            cached: dict[Sentence, tuple[Factor, ...]] = {
                sentence("keys and values"): (Factor("2", 2), heads, tokens, width, self.e)
            }
            if model.latent:
                latent, turned = Factor("Lkv", model.kv_lora_rank), Factor("D′", model.rotated)
                cached = {
                    sentence("latents"): (tokens, latent, self.e),
                    sentence("turned part of the keys"): (tokens, turned, self.e),
                }
            if layers := sum(self.split.chunks[chunk][1]):
                for what, factors in cached.items():
                    counts[BlockKind(KV_CACHE, what, factors, True)] += layers
        counts[BlockKind("temporary", sentence("the prompt"), (Factor("P", self.prompt), Factor("8", 8)), False)] += 1
        return counts

    def highest(self, stage: int) -> tuple[str, Counts]:
        """The action of the peak, and what is there in it beside what stands."""
        chunk, number, there = max(self.passes(stage), key=lambda found: total_of(found[2]))
        return f"F chunk {chunk} microbatch {number}", there

    def passes(self, stage: int) -> Iterator[tuple[int, int, Counts]]:
        """The passes of the prompt and of the last token: the chunk, the token's number, and the most that is there in it."""
        draws = self.spec.generate.temperature > 0
        for number in dict.fromkeys((0, self.new - 1)):
            for chunk in self.split.on(stage):
                reading = self.readings[chunk]
                trace = reading.ledger.traces[generating(number > 0, draws)]
                segments = reading.segments(trace, "F")
                forward = ActionTrace([(times, [event for event in events if event[0]]) for _, times, events in segments])
                counts = defaultdict(int, reading.amounts(trace, INPUTS, 1))
                if number:  # every stage holds one, its own or a place for it
                    counts[BlockKind("communication", sentence("the token"), (Factor("8", 8),), False)] += 1
                for kind, count in forward.counts_at(forward.highest[1]).items():
                    counts[kind] += count
                yield chunk, number, counts
