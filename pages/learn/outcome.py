"""What the engine predicts of a layout that the reader tries: memory, the time of a step and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import streamlit as st

from engine.devices import DEVICES
from engine.grid import Grid
from engine.papers.accounting import accounting
from engine.planner.reserve import reserve
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import estimate
from engine.spec import Recompute, RunSpec
from engine.topology import AXES
from pages.shared.predicted import with_ledgers_shown


@dataclass(frozen=True)
class Outcome:
    """`needs`: bytes of the fullest rank, with what a plan keeps free beside its tensors. `step_s`: seconds of a step.

    `communication`: the share of a step that ranks wait for each other's data, 0 to 1. `bubble`: idle share of the pipeline's
    total time. `stage`: that of the fullest rank. `sequences`: of a step; `size`: of them in a microbatch.
    """

    needs: int
    stage: int
    holds: int
    step_s: float
    communication: float
    bubble: float
    sequences: int
    size: int
    recompute: Recompute
    ep: int  # expert-parallel ranks

    @property
    def fits(self) -> bool:
        return self.needs <= self.holds


@st.cache_data(max_entries=256, show_spinner=False)
def outcome(spec: RunSpec, device: str) -> Outcome:
    return outcomes([spec], device)[0]


def outcomes(specs: Sequence[RunSpec], device: str) -> list[Outcome]:
    """The outcomes of specs of one model. They may differ in their layouts, and in number and size of microbatches."""
    model, workload, hardware = specs[0].model, specs[0].workload, DEVICES[device]
    grid = Grid.of(list(specs))
    memory, stage = with_ledgers_shown(lambda: accounting("engine")(model, workload, grid))
    needs = memory + reserve(hardware, grid, model, memory)
    times = with_ledgers_shown(lambda: estimate(Cost(model, workload, grid, hardware, Assumptions())))
    waits = np.maximum(0.0, np.sum([getattr(times, axis) for axis in AXES], axis=0))
    return [
        Outcome(
            needs=int(needs[i]),
            stage=int(stage[i]),
            holds=hardware.memory_bytes,
            step_s=float(times.step[i]),
            communication=float(waits[i] / times.step[i]),
            bubble=float(times.bubble[i]),
            sequences=spec.layout.dp * spec.workload.microbatches * spec.workload.microbatch_size,
            size=spec.workload.microbatch_size,
            recompute=spec.layout.recompute,
            ep=spec.layout.ep,
        )
        for i, spec in enumerate(specs)
    ]
