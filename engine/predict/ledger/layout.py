"""The ledgers of one layout: which it needs, and the numbers that are put into them."""

from __future__ import annotations

from typing import NamedTuple

from engine.predict.ledger.dimensions import dimensions, slicing, structure
from engine.predict.ledger.form import Ledger, Part
from engine.predict.ledger.keep import Key, Ledgers
from engine.predict.ledger.split import ChunkSplit, Layers
from engine.predict.ledger.store import LedgerStore, ledger_store
from engine.predict.terms import Factor
from engine.spec import BYTES_OF, LayoutSpec, ModelSpec, WorkloadSpec

Tokens = tuple[int, int]  # of the prompt, and in all when the last one is passed


class Chunk(NamedTuple):
    """`layers`: how many of each kind."""

    number: int
    part: Part
    layers: Layers
    ledger: Ledger

    @property
    def repeats(self) -> list[int]:
        """How often each recorded layer is there."""
        return self.part.repeats(*self.layers)

    def times(self, layer: int) -> int:
        """How often what belongs to a recorded layer is there; −1 is the chunk itself, which is there once."""
        return 1 if layer < 0 else self.repeats[layer]


class LayoutLedgers:
    """`sizes`: of the dimensions. `e`, `g`: bytes of a parameter and of a number that gradients are added up in."""

    def __init__(
        self,
        model: ModelSpec,
        layout: LayoutSpec,
        workload: WorkloadSpec,
        tokens: Tokens | None = None,
        ledgers: Ledgers | None = None,
    ) -> None:
        """`tokens`: of a model that generates. `ledgers`: those to read, in place of `ledger_store()`.

        Raises `NotRecordedError` where the store lacks some.
        """
        self.model, self.layout, self.workload = model, layout, workload
        recompute, batch, cut = layout.recompute, workload.microbatch_size, slicing(layout.tp, layout.sequence_parallel)
        if tokens is not None:
            recompute, batch = "none", 1
        self.sizes = dimensions(model, cut, layout.tp, batch, tokens)
        self.structure = structure(model, workload, recompute, cut, self.sizes, generates=tokens is not None)
        self.split = ChunkSplit(model, layout)
        self.e, self.g = Factor("e", BYTES_OF[workload.precision]), Factor("g", BYTES_OF[workload.gradient_precision])
        self._ledgers = ledger_store() if ledgers is None else ledgers
        if isinstance(self._ledgers, LedgerStore):
            self._ledgers.check(self.needs())  # so that all that is missing is recorded at once

    def needs(self) -> set[Key]:
        """Which ledgers."""
        return {(self.structure, part) for part, _ in self.split.chunks}

    def chunk(self, number: int) -> Chunk:
        """A chunk of the model, by its number."""
        part, layers = self.split.chunks[number]
        return Chunk(number, part, layers, self._ledgers(self.structure, part))

    def on(self, stage: int) -> list[Chunk]:
        """The chunks of a stage."""
        return [self.chunk(number) for number in self.split.on(stage)]
