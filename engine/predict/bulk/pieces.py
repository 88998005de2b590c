"""The pieces of a model that layouts cut it into: what one chunk holds, without the numbers that make it large or small."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from engine.ledger.split import Stack
from engine.predict.bulk.traces import ChunkForm
from engine.predict.grid import Grid
from engine.spec import ModelSpec

_KEPT = 512  # numbers of chunks, the latest


class Piece(NamedTuple):
    """A form of chunk, and how many layers there are between its first and last of each kind."""

    form: ChunkForm
    between: tuple[int, int]


@lru_cache(maxsize=_KEPT)
def pieces(stack: Stack, chunks: int, bends: bool = False) -> tuple[tuple[Piece, ...], tuple[int, ...]]:
    """Of layers split as evenly as can be into `chunks` chunks: the pieces that there are, and which of them each chunk is.

    `bends`: whether chunks stand in the shape of a V, so that the one at its turn is followed by another on the same stage.
    """
    each, rest = divmod(stack.layers, chunks)
    forms: list[Piece] = []
    start = 0
    for c in range(chunks):
        stop = start + each + (c < rest)
        part, (before, behind) = stack.part(range(start, stop), c == 0, c == chunks - 1)
        between = (0, 0) if part.kinds else (max(0, before - 2), max(0, behind - 2))
        forms.append(Piece(ChunkForm(part), between))
        start = stop
    if bends and stack.encoders:
        turn, following = forms[chunks // 2 - 1], forms[chunks // 2]
        forms[chunks // 2 - 1] = turn._replace(form=turn.form._replace(behind=following.form))
    found: dict[Piece, int] = {}
    which = tuple(found.setdefault(piece, len(found)) for piece in forms)
    return tuple(found), which


def pieces_of(model: ModelSpec, grid: Grid) -> dict[Piece, Any]:
    """Of each piece of a model that some layout has, which layouts: (n,) masks."""
    masks, stack = dict[Piece, Any](), Stack.of(model)
    total = grid.pp * grid.chunks * 2 + grid.v_shaped
    for count in np.unique(total).tolist():
        mask = total == count
        for piece in pieces(stack, count // 2, bool(count % 2))[0]:
            masks[piece] = masks[piece] | mask if piece in masks else mask
    return masks
