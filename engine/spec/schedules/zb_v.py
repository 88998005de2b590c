"""Zero bubble in the shape of a V (Qi et al. 2024, section 6).

The first stage holds the first and the last chunk. So it begins backward as soon as it has the loss.
"""

from typing import Any

import numpy as np

from engine.spec.schedules.record import PipelineWork, ScheduleFacts, Script
from engine.spec.schedules.v_shape import fill_over_a_v, waits_over_a_v
from engine.spec.sentence import sentence


def _script(stage: Any, p: int, m: Any, v: int) -> Script:
    """The script for at least as many microbatches as fill the V. If m is smaller, passes of microbatches ≥ m are dropped."""
    behind = p - stage  # stages from this one to the last, included
    full = np.maximum(2 * p - 1, m)
    return [
        ("F↓", 2 * behind - 1),
        ("F↑ F↓", stage),
        ("F↑ I↑ W↑", behind),
        ("F↓ I↓ W↓ F↑ I↑ W↑", full - p - behind + 1),
        ("I↓ W↓ F↑ I↑ W↑", behind - 1),
        ("I↓ I↑", stage),
        ("I↓ W↓", behind),
        ("W↑", stage),
        ("W↓", stage),
    ]


def _reductions(p: Any, m: Any, stage: Any, run: Any) -> Any:
    full = np.maximum(2 * p - 1, m)  # microbatches that the script is written for
    alone = np.where(run == 0, full - p, full - stage)  # I that are directly followed by their W
    overlapping = np.where((run == 0) & (stage == 0), m - alone, 1)
    return np.where(m > alone, alone + overlapping, m)


def _fill(work: PipelineWork) -> Any:
    """Fitted to simulations of this engine's order."""
    return fill_over_a_v(work, np.maximum(work.backward / 2, work.forward + work.backward - 3 * work.weights))


ZB_V = ScheduleFacts(
    title=sentence("Zero bubble V"),
    summary=sentence("Two chunks a stage, down the stages and back up: almost no bubble, for 1F1B's memory."),
    script=_script,
    in_flight=lambda stage, p, m, v: np.minimum(2 * p, 2 * m),
    memory_repeats_after=lambda p, m: 2 * p + 1,
    bubble="(p − 1) / (6 · m + p − 1)",  # derived for this order: the first forward reaches stage p − 1 after p − 1 half stages
    fill=_fill,
    waits=waits_over_a_v,
    closed_from=lambda p: 2 * p,
    chunks=2,
    v_shaped=True,
    reductions=_reductions,
    elsewhere={"torchtitan": "ZBVZeroBubble"},
)
