"""Full recompute of as few layers as fit: an alternative where all layers recomputed fit, and what keeps more does not.

The first n layers of each chunk are recomputed. Memory falls with n and the time of a step rises, so the least n that fits is the
fastest. Tried are only layouts that would be faster than all others that fit, if nothing were recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import RECOMPUTES, Grid, Whole, distinct
from engine.predict.bulk import memory as bulk
from engine.predict.speed.cost import Cost
from engine.predict.speed.step_time import estimate

_TRIED = 100  # layouts
_NONE, _FULL = RECOMPUTES.index("none"), RECOMPUTES.index("full")


@dataclass(frozen=True)
class Partial:
    """Entry i of each is one layout. (n,)"""

    grid: Grid
    memory: Whole  # of the fullest stage, in bytes
    stage: Whole  # the fullest

    def take(self, which: Any) -> Partial:
        return Partial(self.grid.take(which), self.memory[which], self.stage[which])


def partial_recompute(cost: Cost, fits: NDArray[np.bool_], judge: Callable[[Grid, Whole], Any]) -> Partial | None:
    """Layouts that recompute some layers, with as few as fit. None: there are none. Models with an encoder have none, and
    those whose written attention adds biases.

    `cost`: of all layouts. `fits`: which of them fit. `judge`: whether layouts with so many bytes of tensors fit.
    """
    grid, layers = cost.grid, cost.model.layers
    if cost.model.parts.encoder or cost.workload.adds_biases(cost.model) or not (fits & (grid.recompute == _FULL)).any():
        return None
    tried = _promising(cost, fits)
    if not len(tried):
        return None
    some, most = grid.take(tried), -(-layers // (grid.pp[tried] * grid.chunks[tried]))
    low, high = np.zeros_like(most), most.copy()  # none recomputed is too large, all recomputed fits
    memory, stage = np.zeros_like(most), np.zeros_like(most)
    while (open_ := np.flatnonzero(high - low > 1)).size:
        middle = (low[open_] + high[open_]) // 2
        few = replace(some.take(open_), recomputed=2 * middle)
        held, where = bulk.fullest(cost.model, cost.workload, few)
        fine = judge(few, held)
        low[open_], high[open_] = np.where(fine, low[open_], middle), np.where(fine, middle, high[open_])
        memory[open_], stage[open_] = np.where(fine, (held, where), (memory[open_], stage[open_]))
    found = Partial(replace(some, recomputed=2 * high), memory, stage)
    return found.take(high < most) if (high < most).any() else None


def _promising(cost: Cost, fits: NDArray[np.bool_]) -> Whole:
    """Rows with full recompute that fit, and would not without; those first that would then be fastest."""
    grid = cost.grid
    columns = (
        grid.dp, grid.tp, grid.pp, grid.cp, grid.ep, grid.context, grid.chunks, grid.microbatch_size, grid.microbatches,
        grid.zero, grid.sequence_parallel, grid.schedule,
    )  # fmt: skip
    _, group = distinct(*columns)
    less = np.zeros(int(group.max()) + 1, np.bool_)
    less[group[fits & (grid.recompute != _FULL)]] = True  # where less recompute fits too
    rows = np.flatnonzero(fits & (grid.recompute == _FULL) & ~less[group])
    if not len(rows):
        return rows
    best = estimate(cost.take(np.flatnonzero(fits))).step.min()
    kept = replace(grid.take(rows), recompute=np.full(len(rows), _NONE))
    least = estimate(Cost(cost.model, cost.workload, kept, cost.device, cost.assumed)).step
    order = np.argsort(least, kind="stable")[:_TRIED]
    return rows[order[least[order] < best]]
