"""What the closed forms of schedules whose chunks go round and round have in common."""

from typing import Any

import numpy as np

from engine.spec.schedules.record import PipelineWork


def fill_of_rounds(work: PipelineWork) -> Any:
    """A v-th of the others' time; with fewer microbatches than stages each round waits for those that are missing."""
    p, m = work.p, work.m
    some = work.others / work.v * (m - 1) / np.maximum(1, p - 1) + (p - m) * work.slowest
    return np.where(m < p, some, work.others / work.v)


def waits_each_chunk(work: PipelineWork) -> Any:
    """A message's time for each chunk but one, down and back."""
    return 2 * (work.p * work.v - 1) * work.message
