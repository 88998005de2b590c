"""How long each action of a schedule takes: what the simulator of the timeline is given.

Four ways to come by it: `textbook` unit times, `projected` from a run's measured CPU time, a device's figures (the planner makes
those), and any of them with one stage `slowed` by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pandas as pd

from engine.schedule import Action, Flow, Kind
from engine.spec import LayoutSpec, RunSpec

UNIT_NS = 1e6  # what a unit of the textbook's time is drawn as: a stage's forward of one microbatch


@dataclass(frozen=True)
class Durations:
    """Times of one unit, whichever; what is not named takes none.

    compute     (kind, chunk) of F, B, I, W and reduce
    messages    (flow, the chunk that sends): how long such a message is under way, beside the sender's work
    ends        (kind, stage) of tie, step and gather
    each        (kind, chunk, microbatch): where one pass differs from the others of its kind and chunk
    slow        stage → by how much longer everything takes there, messages apart
    """

    compute: Mapping[tuple[Kind, int], float]
    messages: Mapping[tuple[Flow, int], float] = field(default_factory=dict)
    ends: Mapping[tuple[Kind, int], float] = field(default_factory=dict)
    each: Mapping[tuple[Kind, int, int], float] = field(default_factory=dict)
    slow: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, stage: int, action: Action) -> float:
        """What `replay` asks: how long this action takes, or for a send how long its message is under way."""
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
    """Forward of a stage takes 1, backward 2, each half of a split backward 1; a chunk its even part; all else nothing.

    The unit times of the papers: Narayanan et al. 2021, section 2.2; Qi et al. 2024, section 2.
    """
    units: dict[Kind, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
    chunks = range(layout.pp * layout.chunks)
    return Durations({(kind, chunk): time / layout.chunks for kind, time in units.items() for chunk in chunks})


def projected(spec: RunSpec, spans: pd.DataFrame) -> Durations:
    """Every action as long as the CPU time that it was measured to take, in nanoseconds: as if each rank had its own device.

    `spans` is a run's table. Of a stage's ranks, which do equal work, the mean. A collective counts by what it cost the
    rank's own thread, which calls it and then sleeps until it is over; its transfer, and messages between stages, take none.
    """
    per_stage = spec.layout.mesh.stride("pp")
    table = spans[spans["lane"] == "compute"]
    keys = [(table["rank"] // per_stage).rename("stage"), table["kind"], table["chunk"], table["microbatch"]]
    each: dict[tuple[Kind, int, int], float] = {}
    compute: dict[tuple[Kind, int], float] = {}
    ends: dict[tuple[Kind, int], float] = {}
    for key, time in table["cpu_ns"].groupby(keys, sort=False).mean().items():
        stage, kind, chunk, microbatch = cast(tuple[int, Kind, int, int], key)
        if kind in ("tie", "step", "gather"):
            ends[kind, int(stage)] = float(time)
        elif kind == "reduce":
            compute[kind, int(chunk)] = float(time)
        else:
            each[kind, int(chunk), int(microbatch)] = float(time)
    return Durations(compute, ends=ends, each=each)


def slowed(durations: Durations, stage: int, factor: float) -> Durations:
    """The same with everything that `stage` does `factor` times as long, on top of what it was slowed before."""
    return replace(durations, slow={**durations.slow, stage: durations.slow.get(stage, 1.0) * factor})
