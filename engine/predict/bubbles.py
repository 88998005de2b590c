"""Closed forms of a pipeline's bubble and length, for stages that are all alike and messages that take no time.

p stages, m microbatches, v chunks a stage. `simulate` runs the schedule itself and is right for any durations; the tests hold
the one against the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.predict.durations import Durations
from engine.predict.timeline import simulate
from engine.schedule import plan
from engine.spec import LayoutSpec, ScheduleName

# Idle time as a share of total time, at the textbook's unit times: forward 1, backward 2, each half of it 1.
BUBBLE: dict[ScheduleName, str] = {
    "naive": "(p − 1) / p",
    "gpipe": "(p − 1) / (m + p − 1)",
    "1f1b": "(p − 1) / (m + p − 1)",
    "interleaved": "(p − 1) / (v · m + p − 1)",
    "zb-h1": "(p − 1) / (3 · m + p − 1)",
    "zb-v": "(p − 1) / (6 · m + p − 1)",
    "dualpipe-v": "(p − 1) / (6 · m + p − 1)",
}


def bubble_share(name: ScheduleName, pp: Any, microbatches: Any, chunks: Any = 1) -> Any:
    """`BUBBLE` in numbers; any argument may be an array.

    GPipe: Huang et al. 2019, section 2.3; 1F1B and interleaved: Narayanan et al. 2021, section 2.2, who quote it of ideal time;
    ZB-H1: Qi et al. 2024, table 2, with all of a pass's three parts 1. The two over a V: the plan's own, of which the first
    forward reaches stage p − 1 after p − 1 half stages, and all else is filled.
    Holds where the microbatches fill the pipeline: m ≥ p, over a V m ≥ 2 p; for naive, GPipe and 1F1B any m.
    """
    if name == "naive":
        return (pp - 1) / pp
    parts = {"gpipe": 1, "1f1b": 1, "interleaved": chunks, "zb-h1": 3, "zb-v": 6, "dualpipe-v": 6}[name]
    return (pp - 1) / (parts * microbatches + pp - 1)


def of_ideal(share: Any) -> Any:
    """The same bubble as a share of ideal time, which papers quote: (p − 1)/m for 1F1B."""
    return share / (1 - share)


def makespan_closed(
    name: ScheduleName, pp: Any, microbatches: Any, chunks: Any, forward: Any, backward: Any, weights: Any = 0.0
) -> Any:
    """From the first pass's start to the last one's end. Numbers or arrays; `forward` and `backward` are times of a whole stage.

    `weights`: the part of backward that W does, for the schedules that split it. Exact for naive, GPipe, 1F1B, interleaved and
    ZB-H1, whose (p − 1)(F + I − W) in Qi et al. 2024, table 2, holds where W is no longer than F and I. Over a V, for m ≥ 2 p:
    exact at textbook times (and ZB-V where neither forward nor W is longer than I); otherwise never above, and a few percent
    below (at most 11% in 800 random cases with times that differ by up to 3 times, and any m).
    """
    p, m, v, f, b, w = pp, microbatches, chunks, forward, backward, weights
    i = b - w
    work, short = m * (f + b), np.maximum(p - m, 0)
    if name == "naive":
        return p * work
    if name in ("gpipe", "1f1b"):
        return work + (p - 1) * (f + b)
    if name == "interleaved":  # with fewer microbatches than stages, a round waits for its first to come around
        return work + ((p - 1) + (v - 1) * short) * (f + b) / v
    if name == "zb-h1":
        longest = np.maximum(np.maximum(f, i), f + i - w)
        return work + (p - 1) * longest + short * (f + i - longest)
    if name == "zb-v":
        fill = (p - 1) * np.maximum(i, f + i - 2 * w) / 2
        return work + np.maximum(fill, (2 * p - 1 - m) * (f + i) / 2)
    return work + (p - 1) * (f + np.maximum(i - w, 0)) / 2


def makespan(layout: LayoutSpec, microbatches: int, durations: Durations) -> float:
    """The pipeline's length for any durations, of very many microbatches too, in the unit of `durations`.

    What comes between filling and draining repeats, every p microbatches if not sooner. So of more than 15 p only 4 p, 5 p and
    6 p are run, and the difference between them, once it has settled, is carried on. (It can settle and grow later, as one way
    through the pipeline overtakes another: then the result is too low. With layers alike, longer ends and messages this was
    seen in none of 210 random layouts; with every chunk's times between 1 and 12 it was in 2 of 140, by less than 2%.)
    """
    pp = layout.pp
    settled = 4 * pp + microbatches % pp
    uneven_rounds = layout.schedule == "interleaved" and microbatches % pp
    if microbatches <= 15 * pp or uneven_rounds or durations.each:  # `each` tells microbatches apart
        return _run(layout, microbatches, durations)
    short, longer, longest = (_run(layout, settled + i * pp, durations) for i in range(3))
    if not np.isclose(longer - short, longest - longer, rtol=1e-9):
        return _run(layout, microbatches, durations)
    return longest + (microbatches - settled - 2 * pp) // pp * (longest - longer)


def _run(layout: LayoutSpec, microbatches: int, durations: Durations) -> float:
    return simulate(plan(layout, microbatches), durations).pipeline
