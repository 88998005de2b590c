"""STAND-IN until branch `memory` is merged, which brings the exact formulas behind the same name."""

from __future__ import annotations

import numpy as np

from engine.predict import accounting
from engine.predict.grid import RECOMPUTES, Grid, Whole
from engine.spec import ModelSpec, WorkloadSpec


def fullest(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> tuple[Whole, Whole]:
    """Bytes of the fullest rank of each layout, and its stage. (n,), (n,)"""
    width = 2 if workload.precision == "bf16" else 4
    gradient = 2 if workload.precision == workload.accumulate == "bf16" else 4
    optimizer = (8 if workload.optimizer == "adamw" else 0) + (4 if width == 2 else 0)
    layers = -(-model.layers // grid.pp)
    embedding = model.vocab * model.hidden
    of_a_layer = (model.parameters() - embedding * (1 if model.parts.tied else 2)) / model.layers
    parameters = (layers * of_a_layer + embedding) / grid.tp
    over = [np.where(grid.zero >= stage, grid.dp, 1) for stage in (1, 2, 3)]
    states = parameters * (optimizer / over[0] + gradient / over[1] + width / over[2])
    held = accounting.passes_held(grid) / grid.chunks * layers
    layer = accounting.activations_of_a_layer(model, grid) * width / 2
    one = np.where(grid.recompute == RECOMPUTES.index("full"), layer * 17, layer * 2)  # while a layer is computed again
    logits = 12 * model.seq * model.vocab * grid.microbatch_size / grid.tp * (grid.pp == 1)
    return (states + held * layer + one + logits).astype(np.int64), np.zeros(len(grid), np.int64)
