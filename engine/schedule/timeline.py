"""The ideal timeline of a schedule: a simulation of its action lists, and the figures of each stage.

There are four kinds of durations: `textbook` unit times; those `projected` from a run's measured CPU times
(`engine.predict.spans`); those of a device's figures (`engine.predict.speed.step_time.durations`); and any of these with one
stage `slowed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from engine.schedule.actions import Action, Flow, Kind, Schedule
from engine.schedule.clock import Timed, replay
from engine.schedule.plans import entries
from engine.spec import LayoutSpec, RequestError, Sentence, sentence

PASSES = ("F", "B", "I", "W")
MOST = 100_000  # passes and messages of a schedule that is simulated for a page or a table
UNIT_NS = 1e6  # nanoseconds for which a textbook unit is drawn: a stage's forward of one microbatch


@dataclass(frozen=True)
class Durations:
    """Durations in any one unit. An action that is missing takes no time.

    compute     (kind, chunk) of F, B, I, W and reduce
    messages    (flow, sending chunk): the time from the send to the arrival. The sender goes on meanwhile
    ends        (kind, stage) of tie, step and gather
    each        (kind, chunk, microbatch): a pass that differs from the others of its kind and chunk
    slow        stage → the factor of all its durations, except messages
    """

    compute: Mapping[tuple[Kind, int], float]
    messages: Mapping[tuple[Flow, int], float] = field(default_factory=dict)
    ends: Mapping[tuple[Kind, int], float] = field(default_factory=dict)
    each: Mapping[tuple[Kind, int, int], float] = field(default_factory=dict)
    slow: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, stage: int, action: Action) -> float:
        """The duration of an action; for a send, the time until its message arrives. `replay` calls it."""
        kind, chunk = action.kind, action.chunk
        if kind == "send":
            return self.messages.get((action.flow, chunk), 0.0)
        if kind == "recv":
            return 0.0
        if kind in ("tie", "step", "gather"):
            time = self.ends.get((kind, stage), 0.0)
        else:
            time = self.each.get((kind, chunk, action.microbatch), self.compute.get((kind, chunk), 0.0))
        return time * self.slow.get(stage, 1.0)


def textbook(layout: LayoutSpec) -> Durations:
    """Forward of a stage takes 1, backward 2, I and W 1 each. A chunk takes an equal part of its stage's time. All else takes
    none.

    These are the unit times of Narayanan et al. 2021, section 2.2, and Qi et al. 2024, section 2.
    """
    units: dict[Kind, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
    chunks = range(layout.pp * layout.chunks)
    return Durations({(kind, chunk): time / layout.chunks for kind, time in units.items() for chunk in chunks})


def slowed(durations: Durations, stage: int, factor: float) -> Durations:
    """The same durations, those of `stage` times `factor`. If the stage is slow already, the factors are multiplied."""
    return replace(durations, slow={**durations.slow, stage: durations.slow.get(stage, 1.0) * factor})


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


def textbook_bubble(layout: LayoutSpec, microbatches: int) -> float:
    """`bubble_share` of a layout, 0 to 1, for pipelines that are too long to be simulated.

    Raises `RequestError` if microbatches are too few to fill the pipeline.
    """
    needed = layout.facts.closed_from(layout.pp)
    if microbatches < needed:
        raise RequestError(
            sentence(
                "{schedule} with pp={pp} and {microbatches} microbatches is too long to simulate, and with fewer "
                "than {needed} its bubble has no closed form",
                schedule=layout.schedule,
                pp=layout.pp,
                microbatches=f"{microbatches:,}",
                needed=f"{needed:,}",
            )
        )
    return float(layout.facts.bubble_share(layout.pp, microbatches, layout.chunks))
