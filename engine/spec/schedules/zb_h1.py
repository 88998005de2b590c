"""1F1B in which later stages defer W, so that I reaches earlier stages sooner (Qi et al. 2024, ZB-H1).

Stage s begins s fewer microbatches than stage 0 and defers s of its W. So every stage holds as much as the first stage of 1F1B.
"""

from typing import Any

import numpy as np

from engine.spec.schedules.record import ScheduleFacts, Script, waits_each_round
from engine.spec.sentence import sentence


def _script(stage: Any, p: int, m: Any, v: int) -> Script:
    warm_up, late = np.minimum(p - stage, m), np.minimum(stage, m)
    forwards = m - warm_up
    return [
        ("F", warm_up),
        ("I F", np.minimum(late, forwards)),
        ("I", late - forwards),
        ("I W F", forwards - late),
        ("I W", m - np.maximum(late, forwards)),
        ("W", late),
    ]


ZB_H1 = ScheduleFacts(
    title=sentence("Zero bubble H1"),
    summary=sentence("Backward in two halves; the weight gradients are delayed and fill the bubble."),
    script=_script,
    in_flight=lambda stage, p, m, v: np.minimum(p, m),
    memory_repeats_after=lambda p, m: p + 2,
    bubble="(p − 1) / (3 · m + p − 1)",  # Qi et al. 2024, table 2, with F, I and W all 1
    fill=lambda work: np.maximum(np.maximum(0.0, work.forward + work.backward - work.weights), work.least_fill),
    waits=waits_each_round,
    closed_from=lambda p: p,
    reductions=lambda p, m, stage, run: np.where(stage == 0, m, 1),  # stage s defers s of its W until the end
)
