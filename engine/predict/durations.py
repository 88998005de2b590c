"""The duration of each action of a schedule, for the simulator of the timeline.

There are four kinds: `textbook` unit times; `projected` from a run's measured CPU times; those of a device's figures
(`engine.predict.speed.step_time.durations`); and any of these with one stage `slowed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pandas as pd

from engine.schedule import Action, Flow, Kind
from engine.spec import LayoutSpec, RunSpec

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


def projected(spec: RunSpec, spans: pd.DataFrame) -> Durations:
    """Every action takes its measured CPU time, in nanoseconds: the times as if each rank had its own device.

    `spans`: the table of a run. The ranks of a stage do equal work, so their mean is taken. Of a collective only the CPU time of
    the calling thread counts, which sleeps until the collective is done. Its transfer, and messages between stages, take no time.
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
    """The same durations, those of `stage` times `factor`. If the stage is slow already, the factors are multiplied."""
    return replace(durations, slow={**durations.slow, stage: durations.slow.get(stage, 1.0) * factor})
