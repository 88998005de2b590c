"""The engine's own memory in bulk, roughly: arrays for 100,000 layouts in milliseconds, where exact formulas take minutes.

States are exact but for padding and for what tp leaves whole. Activations are counted like those of Korthikanti et al. 2022,
section 4, with what this engine keeps: no dropout, so no masks, and of the scores the probabilities alone.
"""

from __future__ import annotations

import numpy as np

from engine.predict import accounting
from engine.predict.grid import RECOMPUTES, Grid, Whole
from engine.schedule import SCHEDULES
from engine.spec import V_SHAPED, ModelSpec, WorkloadSpec


def fullest(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> tuple[Whole, Whole]:
    """Bytes of the fullest rank of each layout, and its stage, the first or the last. (n,), (n,)"""
    width = 2 if workload.precision == "bf16" else 4
    gradient = 2 if workload.precision == workload.accumulate == "bf16" else 4
    optimizer = (8 if workload.optimizer == "adamw" else 0) + (4 if width == 2 else 0)
    layers = -(-model.layers // grid.pp)
    table = model.vocab * model.hidden
    of_a_layer = (model.parameters() - table * (1 if model.parts.tied else 2)) / model.layers
    parameters = (layers * of_a_layer + table) / grid.tp
    over = [np.where(grid.zero >= stage, grid.dp, 1) for stage in (1, 2, 3)]
    states = parameters * (optimizer / over[0] + gradient / over[1] + width / over[2])
    gathered = np.where(grid.zero == 3, 2 * width, np.where(grid.zero == 2, gradient, 0)) * of_a_layer / grid.tp
    full, selective = (grid.recompute == RECOMPUTES.index(name) for name in ("full", "selective"))
    put_off = np.isin(grid.schedule, [SCHEDULES.index(name) for name in ("zb-h1", "zb-v", "dualpipe-v")])
    # For each row and unit of the hidden width: norms' inputs and outputs, cut by sequence parallelism alone; q, k, v, the
    # attention's output and both sides of the nonlinearity; the probabilities.
    cut = np.where(grid.sequence_parallel, grid.tp, 1)
    kept = 4 / cut + (4 + 2 * model.ffn_width / model.hidden) / grid.tp
    scores = model.heads * model.seq / model.hidden / grid.tp
    whole = np.where(selective, kept, kept + scores)
    # A W that is put off keeps what it needs, which includes what was computed again.
    layer = np.where(full & ~put_off, 1 / cut, whole) * model.rows * grid.microbatch_size * model.hidden * width
    again = (
        np.where(full, kept + scores, np.where(selective, scores, 0)) * model.rows * grid.microbatch_size * model.hidden * width
    )
    softmax = 4 * model.seq * model.vocab * grid.microbatch_size / grid.tp  # and 10 bytes in place of 4 while it is made
    m, pp, chunks = grid.microbatches, grid.pp, grid.chunks
    both_ends = (pp == 1) | np.isin(grid.schedule, [SCHEDULES.index(name) for name in V_SHAPED])
    gpipe, h1, runs = (grid.schedule == SCHEDULES.index(name) for name in ("gpipe", "zb-h1", "interleaved"))
    each = m // np.maximum(1, m // pp)
    at_last = np.select([gpipe, h1, runs], [m, np.minimum(pp, m), (chunks - 1) * each + 1], 1) / chunks
    losses = softmax * (np.where(gpipe, m, 1) + 1.5)
    fixed = states + gathered + 2 * again
    first = fixed + accounting.passes_held(grid) / chunks * layers * layer + np.where(both_ends, losses, 0)
    last = np.where(both_ends, 0, fixed + at_last * (model.layers // pp) * layer + losses)
    return np.maximum(first, last).astype(np.int64), np.where(last > first, pp - 1, 0)
