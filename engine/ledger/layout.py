"""The ledgers of one layout, and the values of the dimensions in them."""

from __future__ import annotations

from typing import NamedTuple

from engine.ledger.dimensions import dimensions, slicing, structure
from engine.ledger.form import Ledger, Part, Structure
from engine.ledger.keep import Key, Ledgers
from engine.ledger.mixed import ledger_of, recorded_keys
from engine.ledger.split import ChunkSplit, Layers
from engine.ledger.store import LedgerStore, ledger_store
from engine.spec import BYTES_OF, LayoutSpec, ModelSpec, WorkloadSpec
from engine.spec.context import context_of
from engine.terms import Factor

Tokens = tuple[int, int]  # tokens of the prompt, and tokens in the KV cache when the last one goes through the model


class Chunk(NamedTuple):
    """A chunk of the model. `layers`: the number of its layers of each kind."""

    number: int
    part: Part
    layers: Layers
    ledger: Ledger

    @property
    def repeats(self) -> list[int]:
        """How many layers of the chunk each recorded layer represents."""
        return self.part.repeats(*self.layers)

    def times(self, layer: int) -> int:
        """How many layers recorded layer `layer` represents. 1 for −1 and `LOSS_CHUNK`, which are outside of layers."""
        return 1 if layer < 0 else self.repeats[layer]


def needs_of(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> set[Key]:
    """The keys of the ledgers that training needs. None is read, so it does not matter which are recorded."""
    return LayoutLedgers(model, layout, workload, ledgers=_unread).needs()


def _unread(structure: Structure, part: Part) -> Ledger:
    raise LookupError(f"{structure.name} {part.name}: which ledgers are needed is said without reading one")


class LayoutLedgers:
    """The ledgers of a layout's chunks.

    `sizes`: the values of the dimensions. `e`, `g`: bytes of a parameter, and of a number in which gradients are accumulated.
    """

    def __init__(
        self,
        model: ModelSpec,
        layout: LayoutSpec,
        workload: WorkloadSpec,
        tokens: Tokens | None = None,
        ledgers: Ledgers | None = None,
    ) -> None:
        """`tokens`: if the model generates. `ledgers`: where to read ledgers, in place of `ledger_store()`.

        Raises `NotRecordedError` with all keys that the store does not have.
        """
        self.model, self.layout, self.workload = model, layout, workload
        recompute, batch, cut = layout.recompute, workload.microbatch_size, slicing(layout.tp, layout.sequence_parallel)
        if tokens is not None:
            recompute, batch = "none", 1
        loss_chunk = workload.loss_tokens(model, layout.tp, layout.cp) if tokens is None else None
        context = context_of(layout)
        self.sizes = dimensions(model, cut, layout.tp, batch, tokens, loss_chunk, layout.cp, context, layout.ep)
        self.structure = structure(model, workload, recompute, cut, self.sizes, tokens is not None, context)
        self.split = ChunkSplit(model, layout, tokens is None)
        self.e, self.g = Factor("e", BYTES_OF[workload.precision]), Factor("g", BYTES_OF[workload.gradient_precision])
        self._ledgers = ledger_store() if ledgers is None else ledgers
        self._read: dict[Part, Ledger] = {}
        if isinstance(self._ledgers, LedgerStore):
            self._ledgers.check(self.needs())  # one error for all keys, so that they are recorded together

    def needs(self) -> set[Key]:
        """The keys of the ledgers that the layout needs."""
        return {key for part, _ in self.split.chunks for key in recorded_keys(self.structure, part)}

    def chunk(self, number: int) -> Chunk:
        """A chunk of the model, by its number."""
        part, layers = self.split.chunks[number]
        if part not in self._read:
            self._read[part] = ledger_of(self._ledgers, self.structure, part)
        return Chunk(number, part, layers, self._read[part])

    def on(self, stage: int) -> list[Chunk]:
        """The chunks of a stage."""
        return [self.chunk(number) for number in self.split.on(stage)]
