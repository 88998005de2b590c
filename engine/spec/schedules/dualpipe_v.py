"""V-shaped: forwards of one chunk alternate with backwards of the other (DeepSeek-AI 2025).

The original overlaps a forward with a backward, to hide their communication. Here they run one after the other. I and W run only
while the pipeline fills and drains: the last half of a stage's backwards is split.
"""

from typing import Any

import numpy as np

from engine.spec.schedules.record import MicrobatchRule, PipelineWork, ScheduleFacts, Script
from engine.spec.schedules.v_shape import fill_over_a_v, waits_over_a_v
from engine.spec.sentence import Sentence, sentence


def _script(stage: Any, p: int, m: Any, v: int) -> Script:
    ahead, behind = stage + 1, p - 1 - stage  # stages from stage 0 to this one, included; stages after this one
    half, odd = ahead // 2, ahead % 2
    return [
        ("F↓", 2 * behind),
        ("F↓ F↑", ahead),
        ("I↑ W F↑", behind),
        ("F↓ B↑ F↑ B↓", m - 2 * p + ahead),
        ("B↑ F↑ B↓", behind),
        ("B↑ B↓", half),
        ("B↑ I↓", odd),
        ("I↑ I↓", half),
        ("W I↓", behind),
        ("W", ahead),
    ]


def _reductions(p: Any, m: Any, stage: Any, run: Any) -> Any:
    ahead, behind = stage + 1, p - 1 - stage
    middle = m - 2 * p + ahead + behind
    down = middle + ahead // 2 + np.where(ahead == 1, behind, 0) + 1
    up = middle + behind + (ahead + 1) // 2 + (ahead > 1)
    return np.where(run == 0, down, up)


def _fill(work: PipelineWork) -> Any:
    """Fitted to simulations of this engine's order."""
    forward, backward = work.forward, work.backward
    usual = np.maximum(0.0, forward + backward - work.weights) / 2 + 0.4 * np.maximum(0.0, backward - forward)
    return fill_over_a_v(work, usual)


def _refusal(p: int, m: int, choices: tuple[int, ...]) -> Sentence:
    return sentence(
        "dualpipe-v needs at least one microbatch for each of its 2 × {pp} chunks and has {microbatches}; {needed} and more fit",
        pp=p,
        microbatches=m,
        needed=choices[0],
    )


DUALPIPE_V = ScheduleFacts(
    title="DualPipe V",
    summary=sentence("Two chunks per stage; forward passes of one overlap with backward passes of the other."),
    script=_script,
    in_flight=lambda stage, p, m, v: 2 * p + 1,
    memory_repeats_after=lambda p, m: 2 * p + 1,
    bubble="(p − 1) / (6 · m + p − 1)",  # derived for this engine's order, as for zb-v
    fill=_fill,
    waits=waits_over_a_v,
    closed_from=lambda p: 2 * p,
    chunks=2,
    v_shaped=True,
    microbatch_rule=MicrobatchRule(lambda p, m: m >= 2 * p, lambda p, m: (2 * p,), _refusal),
    reductions=_reductions,
    elsewhere={"torchtitan": "DualPipeV", "deepspeed": "DualPipeV"},
)
