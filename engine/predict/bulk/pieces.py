"""The pieces of a model that layouts cut it into: what one chunk holds, without the numbers that make it large or small."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from engine.grid import Grid, chosen_layers, distinct
from engine.ledger.split import Stack
from engine.predict.bulk.traces import ChunkForm
from engine.spec import LayoutSpec, ModelSpec, ScheduleName
from engine.spec.numbers import evenly

_KEPT = 512  # numbers of chunks, the latest


class Piece(NamedTuple):
    """A form of chunk, and how many layers there are between its first and last of each kind."""

    form: ChunkForm
    between: tuple[int, int]


@lru_cache(maxsize=_KEPT)
def pieces(
    stack: Stack, pp: int, chunks: int, bends: bool = False, recomputed: int = 0
) -> tuple[tuple[Piece, ...], tuple[int, ...]]:
    """Of layers split as evenly as can be into `chunks` chunks of each of `pp` stages: the pieces that there are, and which of
    them each chunk is.

    `bends`: whether chunks stand in the shape of a V, so that the one at its turn is followed by another on the same stage.
    `recomputed`: as of a grid.
    """
    count, forms, start = pp * chunks, list[Piece](), 0
    chosen = _recomputed(stack, pp, chunks, bends, recomputed) if recomputed else [()] * count
    for c, (again, number) in enumerate(zip(chosen, evenly(stack.layers, count), strict=True)):
        part, (before, behind) = stack.part(range(start, start + number), c == 0, c == count - 1, again)
        start += number
        between = (0, 0) if part.kinds else (max(0, before - 2), max(0, behind - 2))
        forms.append(Piece(ChunkForm(part), between))
    if bends and stack.encoders:
        last = len(forms) // 2
        forms[last - 1] = forms[last - 1]._replace(form=forms[last - 1].form._replace(behind=forms[last].form))
    found: dict[Piece, int] = {}
    which = tuple(found.setdefault(piece, len(found)) for piece in forms)
    return tuple(found), which


def _recomputed(stack: Stack, pp: int, chunks: int, bends: bool, recomputed: int) -> Sequence[tuple[bool, ...]]:
    schedule: ScheduleName = "zb-v" if bends else "1f1b"  # of which only the shape counts
    layout = LayoutSpec(pp=pp, chunks=chunks, schedule=schedule, recompute="full", **chosen_layers(recomputed))
    return layout.recomputed_whole(stack.layers, stack.encoders)


def pieces_of(model: ModelSpec, grid: Grid) -> dict[Piece, Any]:
    """Of each piece of a model that some layout has, which layouts: (n,) masks."""
    masks, stack = dict[Piece, Any](), Stack.of(model)
    # Where all layers are recomputed, or none, only the number of chunks counts.
    some = grid.recomputed > 0
    columns = np.where(some, grid.pp, grid.pp * grid.chunks), np.where(some, grid.chunks, 1), grid.v_shaped, grid.recomputed
    first, which = distinct(*columns)
    for number, (pp, chunks, bends, recomputed) in enumerate(zip(*(column[first].tolist() for column in columns), strict=True)):
        mask = which == number
        for piece in pieces(stack, pp, chunks, bool(bends), recomputed)[0]:
            masks[piece] = masks[piece] | mask if piece in masks else mask
    return masks
