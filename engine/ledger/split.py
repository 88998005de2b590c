"""Which part of the model each chunk of a layout is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from engine.ledger.form import Part
from engine.ledger.mixed import KEPT, RECOMPUTED
from engine.spec import LayoutSpec, ModelSpec

Layers = tuple[int, int]  # layers of an encoder, or of a model with one stack; layers of a decoder


class Stack(NamedTuple):
    """All of a model that decides which parts its chunks are. `encoders`: how many of the layers are an encoder's; 0: there is
    none. `experts`: which layers have experts; empty: none has.
    """

    layers: int
    encoders: int = 0
    experts: tuple[bool, ...] = ()

    @classmethod
    def of(cls, model: ModelSpec) -> Stack:
        experts = tuple(map(model.has_experts, range(model.layers))) if model.experts else ()
        return cls(model.layers, model.encoder_layers, experts)

    def part(self, layers: range, first: bool, last: bool, recomputed: Sequence[bool] = (True,)) -> tuple[Part, Layers]:
        """The part of the model that a chunk with these layers is, and the number of its layers of each kind.

        `recomputed`: with full recompute, which of its layers are recomputed.
        """
        if self.experts:
            found = _with_experts(self.experts[layers.start : layers.stop], first, last)
        else:
            found = part_of_stack(self.layers, self.encoders, layers, first, last)
        return found if all(recomputed) else _with_recompute(*found, recomputed, bool(self.experts or self.encoders))

    @property
    def alike(self) -> bool:
        """Whether all layers are of one kind."""
        return not self.encoders and len(set(self.experts)) < 2


def part_of(model: ModelSpec, layers: range, first: bool, last: bool) -> tuple[Part, Layers]:
    """The part of the model that a chunk with these layers is, and the number of its layers of each kind."""
    return Stack.of(model).part(layers, first, last)


def _with_recompute(part: Part, layers: Layers, recomputed: Sequence[bool], two_kinds: bool) -> tuple[Part, Layers]:
    """A chunk of which only some layers are recomputed. `part`, `layers`: if all are. `two_kinds`: its layers may differ."""
    if not any(recomputed):
        return part._replace(again=KEPT * sum(part.recorded)), layers
    count, first = sum(recomputed), all(recomputed[: sum(recomputed)])
    if first and not two_kinds:
        found = part._replace(layers=min(count, 2), decoders=min(len(recomputed) - count, 2))
        again = "".join(kind * number for kind, number in zip((RECOMPUTED, KEPT), found.recorded, strict=True))
        return found._replace(again=again), (count, len(recomputed) - count)
    kinds = part.kinds or "d" * layers[0] + "e" * layers[1]
    again = "".join(RECOMPUTED if one else KEPT for one in recomputed)
    return part._replace(layers=layers[0], decoders=layers[1], kinds=kinds, again=again), layers


def _with_experts(has: Sequence[bool], first: bool, last: bool) -> tuple[Part, Layers]:
    """Of a model with experts, from which layers have them. These stand where a model of two stacks has decoders."""
    dense, experts = has.count(False), has.count(True)
    if sorted(has) == [*has]:
        return Part(first, last, min(dense, 2), False, min(experts, 2)), (dense, experts)
    return Part(first, last, dense, False, experts, kinds="".join("e" if one else "d" for one in has)), (dense, experts)


def part_of_stack(total: int, encoder_layers: int, layers: range, first: bool, last: bool) -> tuple[Part, Layers]:
    """The same for a model with `total` layers. The first `encoder_layers` are an encoder's; 0: there is no encoder."""
    encoders = len(range(layers.start, min(layers.stop, encoder_layers or total)))
    decoders = len(layers) - encoders
    ends = bool(encoder_layers and encoders and layers.stop >= encoder_layers)
    closes = bool(encoder_layers and decoders and not last and layers.stop == total)
    return Part(first, last, min(encoders, 2), ends, min(decoders, 2), closes), (encoders, decoders)


class ChunkSplit:
    """How a layout splits a model into chunks. `chunks`: the part and the layers of each, in the order of the model."""

    def __init__(self, model: ModelSpec, layout: LayoutSpec, trains: bool = True) -> None:
        """`trains`: it does not only generate."""
        last = len(layout.placement) - 1
        ranges, stack = layout.layer_ranges(model.layers), Stack.of(model)
        recomputed: Sequence[Sequence[bool]] = [(True,)] * (last + 1)
        if trains and layout.recomputes_some:
            recomputed = layout.recomputed_whole(model.layers, model.encoder_layers)
        self.chunks = [
            stack.part(layers, number == 0, number == last, again)
            for number, (layers, again) in enumerate(zip(ranges, recomputed, strict=True))
        ]
        self._on: dict[int, list[int]] = defaultdict(list)
        for number, stage in enumerate(layout.placement):
            self._on[stage].append(number)

    def on(self, stage: int) -> list[int]:
        """The chunks of a stage."""
        return self._on[stage]
