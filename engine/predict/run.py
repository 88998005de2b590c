"""The whole prediction of a run: the tables that a measurement has, from the spec alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engine.predict.memory import Memory, memory, peak_table
from engine.predict.spans import spans_table
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.schedule.timeline import UNIT_NS, Timeline, simulate, textbook, textbook_bubble, too_long
from engine.spec import RunSpec
from engine.tables import RunResult


def predict(spec: RunSpec, found: Memory | None = None, spans: bool = True) -> RunResult:
    """Memory and traffic of every rank, and the textbook timeline. It is fast enough to run at each move of a control.

    In the table of spans, a stage's forward of one microbatch takes one millisecond. There is no such table if the schedule is
    `too_long`. A very large layout has rows of the ranks in `Mesh.listed` only.

    `found`: the result of `memory(spec)`, if it is known. `spans`: whether to make the table of spans. Raises `RequestError` if
    `memory` does, or if a number is too large for a table.
    """
    found = found or memory(spec)
    tables = {"memory_peak": peak_table(spec, found), "traffic": traffic(spec)}
    if too_long(spec.layout, spec.workload.microbatches):
        bubble = textbook_bubble(spec.layout, spec.workload.microbatches)
    else:
        timeline = textbook_timeline(spec)
        bubble = timeline.bubble
        if spans:
            tables["spans"] = spans_table(spec, timeline, unit_ns=UNIT_NS)
    return RunResult(spec, {"source": "formula"}, _summary(spec, found, tables["traffic"], bubble), tables)


def textbook_timeline(spec: RunSpec) -> Timeline:
    """The spec's schedule in textbook unit times: each stage has its own device, and messages take no time."""
    return simulate(plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied), textbook(spec.layout))


def _summary(spec: RunSpec, found: Memory, sent: pd.DataFrame, bubble: float) -> dict[str, Any]:
    """The numbers of a run's summary that can be predicted, with the same names; and the action of the peak."""
    fullest, mesh = found.fullest, spec.layout.mesh
    return {
        "peak_bytes": fullest.total,
        "peak_rank": mesh.rank({"pp": fullest.stage}),
        "peak_action": fullest.action,
        "wire_bytes_per_rank": sum(sent["wire_bytes"].tolist()) / len(mesh.listed),  # Python's sum: it may need more than 64 bits
        "bubble": bubble,
    }
