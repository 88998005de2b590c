"""How often a step reduces a layer's gradients over dp, where ZeRO does so as soon as they are whole (stages 2 and 3).

After every backward pass, unless the schedule splits it: then a layer is whole when no I of its chunk waits for its W. Passes
that overlap are added up and reduced together. Numbers of each chunk, from the order of the schedule's actions
(`engine.schedule.orders`); arguments may be arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.spec import ScheduleName


def reductions(name: ScheduleName, pp: Any, microbatches: Any, stage: Any, run: Any) -> Any:
    """Of a layer whose weights wait for W. `run`: 0 for the chunk on the way down a V, 1 for the one on the way up."""
    m = microbatches
    if name == "zb-h1":  # stage s keeps s of its W back until the end
        return np.where(stage == 0, m, 1)
    if name == "zb-v":
        full = np.maximum(2 * pp - 1, m)  # microbatches that the order is written for
        alone = np.where(run == 0, full - pp, full - stage)  # I with its W right behind
        overlapping = np.where((run == 0) & (stage == 0), m - alone, 1)
        return np.where(m > alone, alone + overlapping, m)
    if name == "dualpipe-v":
        ahead, behind = stage + 1, pp - 1 - stage
        middle = m - 2 * pp + ahead + behind
        down = middle + ahead // 2 + np.where(ahead == 1, behind, 0) + 1
        up = middle + behind + (ahead + 1) // 2 + (ahead > 1)
        return np.where(run == 0, down, up)
    return m
