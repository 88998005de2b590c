"""Common parts of the closed forms of V-shaped schedules."""

from typing import Any

import numpy as np

from engine.spec.schedules.record import PipelineWork, waits_twice_a_stage


def waits_over_a_v(work: PipelineWork) -> Any:
    """Seconds of waiting for messages: forward and backward go over all stages twice."""
    return 2 * waits_twice_a_stage(work)


def fill_over_a_v(work: PipelineWork, usual: Any) -> Any:
    """Seconds of filling and draining. `usual`: the seconds if all stages are equal.

    They are less if the slowest stage has embedding and head: it is nearly never idle, since the others wait for it. With few
    microbatches, they are at least the time in which the first microbatch goes forward and backward through the other stages,
    less the forwards of the others that the slowest stage runs meanwhile.
    """
    mean = work.others / np.maximum(1, work.p - 1)
    absorbed = np.clip(1 - 4 * (work.slowest / np.where(mean > 0, mean, work.slowest) - 1), 0.2, 1.0)
    return np.maximum(usual * absorbed, work.least_fill - (work.m - 1) * work.slowest_forward / 2)
