"""What the closed forms of schedules over a V have in common."""

from typing import Any

import numpy as np

from engine.spec.schedules.record import PipelineWork, waits_twice_a_stage


def waits_over_a_v(work: PipelineWork) -> Any:
    """The way down and back goes twice over the stages."""
    return 2 * waits_twice_a_stage(work)


def fill_over_a_v(work: PipelineWork, usual: Any) -> Any:
    """`usual`, which is seconds of filling and draining if all stages are alike, and less if the slowest has both ends.

    Such a stage is never without work for long, while the others wait for it anyway. With few microbatches it is at least what
    the first needs to go down and back; the way down of the others falls into that.
    """
    mean = work.others / np.maximum(1, work.p - 1)
    absorbed = np.clip(1 - 4 * (work.slowest / np.where(mean > 0, mean, work.slowest) - 1), 0.2, 1.0)
    return np.maximum(usual * absorbed, work.least_fill - (work.m - 1) * work.slowest_forward / 2)
