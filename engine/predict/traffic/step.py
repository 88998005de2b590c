"""All communication calls of one layout's ranks, in a training step or in a whole generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from engine.ledger.form import generating
from engine.ledger.keep import Ledgers
from engine.ledger.layout import Chunk, LayoutLedgers
from engine.predict.traffic.calls import PredictedCall
from engine.predict.traffic.chunk import ChunkTraffic, generated, trained
from engine.predict.traffic.rules import Setting, data_parallel, messages, norm_and_loss, router_biases, tensor_parallel, tie
from engine.schedule.orders import reductions
from engine.spec import LayoutSpec, ModelSpec, Precision, RunSpec, WorkloadSpec, sentence
from engine.terms import Factor, Term
from engine.topology import CallAxis

_TOKEN = Factor("8", 8)  # bytes of a token


def calls(spec: RunSpec, stage: int, ledgers: Ledgers | None = None) -> list[PredictedCall]:
    """All calls that one rank of `stage` makes in a step."""
    found = Generating(spec, ledgers) if spec.generate.skip_training else Training(spec, ledgers)
    return found.calls(stage)


def terms(spec: RunSpec, rank: int) -> dict[tuple[CallAxis, str, str], tuple[Term, ...]]:
    """(axis, collective, phase) → terms whose sum is the payload bytes of this rank in the table, over all its groups."""
    stage = spec.layout.mesh.coordinate(rank).pp
    found: dict[tuple[CallAxis, str, str], list[Term]] = {}
    for call in calls(spec, stage):
        found.setdefault((call.axis, call.collective, call.phase), []).append(call.term)
    return {key: tuple(sums) for key, sums in found.items()}


class Training:
    """The calls of a training step."""

    def __init__(self, spec: RunSpec, ledgers: Ledgers | None = None) -> None:
        self.spec = spec
        self.ledgers = LayoutLedgers(spec.model, spec.layout, spec.workload, None, ledgers)
        layout, workload = spec.layout, spec.workload
        self.setting = Setting(
            self.ledgers.sizes, layout.tp, layout.mesh.replicas, workload.microbatches, layout.zero,
            layout.sequence_parallel and layout.tp > 1, self.ledgers.e, self.ledgers.g, spec.model.key_copies(layout.tp),
            layout.ep, replicas=layout.zero_replicas, hybrid=layout.zero_replicas > 1,
        )  # fmt: skip
        self._found: dict[tuple[Any, ...], tuple[list[PredictedCall], list[PredictedCall]]] = {}

    def calls(self, stage: int) -> list[PredictedCall]:
        """The calls of one rank of `stage`."""
        held = self.ledgers.on(stage)
        found = [call for chunk in held for call in self.of_chunk(chunk)]
        placement = self.spec.layout.placement
        ends = placement[0], placement[-1]
        if self.spec.model.parts.tied and ends[0] != ends[1] and stage in ends:
            tied = next(chunk for chunk in held if chunk.part.first or chunk.part.last)
            found += tie(trained(tied.ledger), tied.part, self.setting, ends)
        found += norm_and_loss(self.setting, stage == ends[1])
        if self.spec.model.parts.balancing == "bias":
            found += router_biases(self.setting, sum(chunk.layers[1] for chunk in held))
        return self._needed(found)

    def of_chunk(self, chunk: Chunk) -> list[PredictedCall]:
        """The calls of a chunk, without those at the end of the step."""
        layers, gradients = self._alike(chunk)
        cuts = _cuts(self.spec.layout.placement, chunk.number)
        between = [call for behind, ends, here in cuts for call in messages(self._traffic(behind), self.setting, ends, here)]
        return [*layers, *self._needed(_repeated(chunk, between)), *gradients]

    def _alike(self, chunk: Chunk) -> tuple[list[PredictedCall], list[PredictedCall]]:
        """The calls of a chunk's layers, and those for its gradients and values. Many chunks make the same."""
        layout, m = self.spec.layout, self.spec.workload.microbatches
        stage, run = layout.placement[chunk.number], chunk.number // layout.pp
        times = int(reductions(layout.schedule, layout.pp, m, stage, run))
        key = chunk.part, chunk.layers, times
        if key not in self._found:
            setting = self.setting._replace(reductions=Factor("m" if times == m else "r", times))
            traffic = trained(chunk.ledger)
            both = tensor_parallel(traffic, setting), data_parallel(traffic, chunk.part, setting)
            layers, gradients = (self._needed(_repeated(chunk, calls)) for calls in both)
            self._found[key] = layers, gradients
        return self._found[key]

    def _traffic(self, number: int) -> ChunkTraffic:
        return trained(self.ledgers.chunk(number).ledger)

    def _needed(self, found: Iterable[PredictedCall]) -> list[PredictedCall]:
        """Without calls that are not made."""
        degrees = self.spec.layout.mesh
        return [call for call in found if call.calls and call.made(call.ranks(degrees.degree(call.axis)))]


def _cuts(placement: Sequence[int], chunk: int) -> Iterator[tuple[int, tuple[int, int], bool]]:
    """The cuts between two stages before and behind a chunk: the chunk that is behind the cut; the stages, in order; whether this
    chunk receives there in forward.
    """
    for number, receives in ((chunk, True), (chunk + 1, False)):
        if 0 < number < len(placement) and placement[number - 1] != placement[number]:
            low, high = sorted(placement[number - 1 : number + 1])
            yield number, (low, high), receives


def _repeated(chunk: Chunk, found: Iterable[PredictedCall]) -> list[PredictedCall]:
    """The calls of all layers, from those of the recorded layers. Equal calls become one."""
    layers: dict[PredictedCall, int] = {}
    for call in found:
        equal = replace(call, layer=min(call.layer, 0))
        layers[equal] = layers.get(equal, 0) + chunk.times(call.layer)
    return [call.often(Factor("L" if call.layer >= 0 else "n", count)) for call, count in layers.items()]


class Generating:
    """The calls of a whole generation: one pass of the prompt (prefill), then one for each new token but the last (decode)."""

    def __init__(self, spec: RunSpec, ledgers: Ledgers | None = None) -> None:
        self.spec, prompt = spec, len(spec.generate.prompt.encode())
        workload = spec.workload
        self.passes = (
            ("prefill", 1, TokenPass(spec.model, spec.layout, workload.precision, prompt, 1, ledgers)),
            ("decode", spec.generate.new_tokens - 1, TokenPass(spec.model, spec.layout, workload.precision, 1, 1, ledgers)),
        )

    def calls(self, stage: int) -> list[PredictedCall]:
        """The calls of one rank of `stage`."""
        return [call.often(Factor("n", times)) for phase, times, one in self.passes if times for call in one.calls(stage, phase)]


class TokenPass:
    """One forward pass of generating: the next `count` tokens of each of `batch` sequences."""

    def __init__(
        self, model: ModelSpec, layout: LayoutSpec, precision: Precision, count: int, batch: int, ledgers: Ledgers | None = None
    ) -> None:
        self.layout, self.count, self.batch = layout, count, Factor("B", batch)
        workload = WorkloadSpec(precision=precision)
        self.ledgers = LayoutLedgers(model, layout, workload, (2, 3) if count == 1 else (count, count), ledgers)
        self.setting = Setting(self.ledgers.sizes, layout.tp, 1, 1, 0, False, self.ledgers.e, self.ledgers.g, ep=layout.ep)

    def calls(self, stage: int, phase: str) -> list[PredictedCall]:
        """The calls of one rank of `stage`."""
        found = []
        for chunk in self.ledgers.on(stage):
            made = tensor_parallel(self._traffic(chunk, phase), self.setting) if self.layout.tp > 1 or self.layout.ep > 1 else ()
            found += [*_repeated(chunk, made), *self._transfers(chunk, phase)]
        return [replace(call, payload=(self.batch, *call.payload)) for call in found if call.calls]

    def _traffic(self, chunk: Chunk, phase: str) -> ChunkTraffic:
        return generated(chunk.ledger, generating(self.count == 1, False), phase)

    def _transfers(self, chunk: Chunk, phase: str) -> Iterator[PredictedCall]:
        """Activations between stages, and the new token from the last chunk's stage to the first chunk's."""
        placement = self.layout.placement
        here, ends = placement[chunk.number], {placement[0], placement[-1]}
        for number, between, receives in _cuts(placement, chunk.number):
            onward, _ = messages(self._traffic(self.ledgers.chunk(number), phase), self.setting, between, receives)
            yield replace(onward, phase=phase)
        if len(ends) == 2 and (chunk.part.first or chunk.part.last):
            how, between = "recv" if here == placement[0] else "send", (min(ends), max(ends))
            yield PredictedCall("pp", how, phase, sentence("the new token"), (Factor("1", 1),), (_TOKEN,), between)
