"""The predicted timeline: a simulation of a schedule's action lists, and the figures of each stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from engine.predict.durations import Durations, projected, slowed, textbook
from engine.schedule import Schedule, Timed, entries, replay
from engine.spec import LayoutSpec, RunSpec, Sentence, sentence
from engine.tables import Source, table

__all__ = ["Durations", "Timeline", "projected", "simulate", "slowed", "spans_table", "textbook", "too_long"]

PASSES = ("F", "B", "I", "W")
MOST_RANKS = 64  # up to here `spans_table` has rows of every rank
MOST = 100_000  # passes and messages of a schedule that is simulated for a page or a table


@dataclass(frozen=True)
class Timeline:
    """The result of `simulate`, in the unit of its durations."""

    schedule: Schedule
    timed: tuple[Timed, ...]  # those of one stage are in order, but stages are mixed

    @property
    def stages(self) -> int:
        return len(self.schedule.stages)

    def spans(self, stage: int) -> list[Timed]:
        """The actions of a stage, in order. The span of a receive is its wait."""
        return [t for t in self.timed if t.stage == stage]

    @cached_property
    def makespan(self) -> float:
        """The time to the end of the last action, with the optimizer's step."""
        return max(t.end for t in self.timed)

    @cached_property
    def _passes(self) -> list[Timed]:
        return [t for t in self.timed if t.action.kind in PASSES]

    @cached_property
    def pipeline(self) -> float:
        """The time from the start of the first pass to the end of the last. A bubble is a share of it."""
        return max(t.end for t in self._passes) - min(t.start for t in self._passes)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """The time that each stage spends on passes."""
        busy = [0.0] * self.stages
        for t in self._passes:
            busy[t.stage] += t.end - t.start
        return tuple(busy)

    @property
    def idle(self) -> tuple[float, ...]:
        """The time of the pipeline in which each stage runs no pass."""
        return tuple(self.pipeline - busy for busy in self.busy)

    @property
    def bubble(self) -> float:
        """The idle time of all stages ÷ (stages × pipeline), 0 to 1."""
        return sum(self.idle) / (self.stages * self.pipeline) if self.pipeline else 0.0

    @property
    def bubble_of_ideal(self) -> float:
        """The idle time of all stages ÷ their busy time. Papers that give (p − 1)/m for 1F1B mean this."""
        return sum(self.idle) / sum(self.busy) if sum(self.busy) else 0.0

    @cached_property
    def critical_path(self) -> tuple[Timed, ...]:
        """The chain of actions that ends with the last one, first to last. If one of them took longer, so would the whole."""
        return tuple(self._back())[::-1]

    def _back(self) -> Iterator[Timed]:
        at = max(range(len(self.timed)), key=lambda i: self.timed[i].end)
        while at >= 0:
            yield self.timed[at]
            at = self.timed[at].after


def simulate(schedule: Schedule, durations: Durations) -> Timeline:
    """Simulate the schedule with one device for each stage, by `replay`."""
    return Timeline(schedule, tuple(replay(schedule, durations)))


def too_long(layout: LayoutSpec, microbatches: int) -> Sentence | None:
    """Why a schedule is not simulated for a page or a table. None if it is short enough."""
    if (count := entries(layout, microbatches)) <= MOST:
        return None
    return sentence(
        "pp={pp} × chunks={chunks} with {microbatches} microbatches are {count} passes and messages, and a timeline "
        "has at most {most}",
        pp=layout.pp,
        chunks=layout.chunks,
        microbatches=f"{microbatches:,}",
        count=f"{count:,}",
        most=f"{MOST:,}",
    )


def spans_table(spec: RunSpec, timeline: Timeline, source: Source = "formula", unit_ns: float = 1.0) -> pd.DataFrame:
    """The timeline as a table "spans", without rows on the lane "comm". `unit_ns`: nanoseconds of the durations' unit.

    All ranks of a stage have the same timeline. Up to `MOST_RANKS` ranks, each has rows. Beyond that, only the first rank of each
    stage has rows.
    """
    layout = spec.layout
    per_stage = layout.mesh.stride("pp")
    rows = [
        {
            "rank": t.stage * per_stage, "lane": "compute", "kind": t.action.kind, "chunk": t.action.chunk,
            "microbatch": t.action.microbatch, "step": spec.workload.steps, "start_ns": round(t.start * unit_ns),
            "end_ns": round(t.end * unit_ns), "cpu_ns": round((t.end - t.start) * unit_ns),
            "axis": "none", "exposed_ns": 0,
        }
        for t in sorted(timeline.timed, key=lambda t: (t.stage, t.start))
        if t.action.kind not in ("send", "recv")
    ]  # fmt: skip
    one = table("spans", rows, source)
    if layout.ranks > MOST_RANKS:
        return one
    every = one.loc[np.repeat(one.index.to_numpy(), per_stage)].reset_index(drop=True)
    every["rank"] += np.tile(np.arange(per_stage), len(one))
    return every.sort_values(["rank", "start_ns"], kind="stable", ignore_index=True)
