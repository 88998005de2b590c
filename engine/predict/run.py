"""The whole prediction of a run: the tables that a measurement gives, from the spec alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engine.predict.memory import Memory, memory, peak_table
from engine.predict.timeline import Timeline, simulate, spans_table, textbook
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.spec import RunSpec
from engine.tables import RunResult
from engine.topology import Coordinate, Mesh

_UNIT_NS = 1e6  # what a unit of the textbook's time is drawn as


def predict(spec: RunSpec) -> RunResult:
    """Memory and traffic of every rank, and the textbook timeline. Fast enough to be asked at each move of a control.

    The timeline is in units of time: one millisecond stands for a stage's forward pass of one microbatch.
    """
    timeline = textbook_timeline(spec)
    found = memory(spec)
    tables = {
        "memory_peak": peak_table(spec, found),
        "traffic": traffic(spec),
        "spans": spans_table(spec, timeline, unit_ns=_UNIT_NS),
    }
    return RunResult(spec, {"source": "formula"}, _summary(spec, found, tables["traffic"], timeline), tables)


def textbook_timeline(spec: RunSpec) -> Timeline:
    """The spec's schedule in unit times, as if each stage had a device of its own and messages took no time."""
    return simulate(plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied), textbook(spec.layout))


def _summary(spec: RunSpec, found: Memory, passed: pd.DataFrame, timeline: Timeline) -> dict[str, Any]:
    """The numbers of a run's summary that a formula can give, under the same names; and at which action the peak is."""
    at, fullest = found.fullest
    mesh = Mesh(spec.layout.dp, spec.layout.tp, spec.layout.pp)
    return {
        "peak_bytes": fullest.total,
        "peak_rank": mesh.rank(Coordinate(at.stage, at.replica, int(at.later))),
        "peak_action": fullest.action,
        "wire_bytes_per_rank": float(passed["wire_bytes"].sum() / spec.layout.ranks),
        "bubble": timeline.bubble,
    }
