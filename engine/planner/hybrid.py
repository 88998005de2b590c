"""Hybrid sharding: where dp spans several nodes, ZeRO shards within a node, and the nodes hold replicas of the shards.

The planner weighs all layouts with ZeRO over all of dp. Here those that could gain most are weighed with the devices of a node in
place of dp. More memory is the price, so only layouts that fit with ZeRO over all of dp are tried.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.grid import Grid, Marks, Whole
from engine.planner import candidates
from engine.predict.speed.cost import Cost
from engine.predict.speed.step_time import StepTime, estimate

_WEIGHED = 500  # layouts
_WAITS, _GAINS = 0.001, 1.001  # share of a step that waits for dp; times as slow as with hybrid sharding that is worth offering


def hybrids(cost: Cost, times: StepTime, fits: Marks) -> tuple[Whole, Grid, StepTime]:
    """Layouts with hybrid sharding that are faster than the same without it: rows of these, (n,); the layouts; their times.

    `cost`: of all layouts, `times`: their seconds in closed form, `fits`: whether each fits its device, (m,).
    """
    grid = cost.grid
    group = np.gcd(grid.replicas, np.maximum(1, cost.device.node_size // grid.tp))  # ranks of dp in a node
    could = fits & (grid.zero > 0) & (grid.ep == 1) & (group > 1) & (group < grid.replicas) & (times.dp > _WAITS * times.step)
    rows = np.flatnonzero(could)
    least = (times.step - times.dp)[rows]  # with a dp that takes no time
    if len(rows) > _WEIGHED:
        rows = rows[np.argpartition(least, _WEIGHED)[:_WEIGHED]]
    taken = replace(grid.take(rows), zero_replicas=(grid.replicas // group)[rows])
    fitting = np.flatnonzero(candidates.fits(cost.model, taken))
    rows, taken = rows[fitting], taken.take(fitting)
    faster = estimate(cost.like(rows, taken)) if len(rows) else times.take(rows)
    gains = np.flatnonzero(faster.step * _GAINS < times.step[rows])
    return rows[gains], taken.take(gains), faster.take(gains)
