"""Which part of the model each chunk of a layout is."""

from __future__ import annotations

from collections import defaultdict

from engine.predict.ledger.form import Part
from engine.spec import LayoutSpec, ModelSpec

Layers = tuple[int, int]  # of an encoder, or of a model that has one stack; and of a decoder


def part_of(model: ModelSpec, layers: range, first: bool, last: bool) -> tuple[Part, Layers]:
    """Which part of the model a chunk of those layers is, and how many layers it has of each kind."""
    border = model.encoder_layers if model.parts.encoder else model.layers
    before = len(range(layers.start, min(layers.stop, border)))
    behind = len(layers) - before
    ends = bool(model.parts.encoder and before and layers.stop >= border)
    closes = bool(model.parts.encoder and behind and not last and layers.stop == model.layers)
    return Part(first, last, min(before, 2), ends, min(behind, 2), closes), (before, behind)


class ChunkSplit:
    """`chunks`: of each its part and its layers, in the order of the model."""

    def __init__(self, model: ModelSpec, layout: LayoutSpec) -> None:
        last = len(layout.placement) - 1
        ranges = enumerate(layout.layer_ranges(model.layers))
        self.chunks = [part_of(model, layers, number == 0, number == last) for number, layers in ranges]
        self._on: dict[int, list[int]] = defaultdict(list)
        for number, stage in enumerate(layout.placement):
            self._on[stage].append(number)

    def on(self, stage: int) -> list[int]:
        """The chunks of a stage."""
        return self._on[stage]
