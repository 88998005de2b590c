"""Common parts of the closed forms of schedules with several chunks a stage that are not V-shaped."""

from typing import Any

import numpy as np

from engine.spec.schedules.record import PipelineWork


def fill_of_rounds(work: PipelineWork) -> Any:
    """Seconds of filling and draining: 1/v of the other stages' time. If m < p, each round also waits for p − m microbatches."""
    p, m = work.p, work.m
    few = work.others / work.v * (m - 1) / np.maximum(1, p - 1) + (p - m) * work.slowest
    return np.where(m < p, few, work.others / work.v)


def waits_each_chunk(work: PipelineWork) -> Any:
    """Seconds of waiting for messages: one activation and one gradient for each chunk but the first."""
    return 2 * (work.p * work.v - 1) * work.message
