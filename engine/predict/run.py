"""The whole prediction of a run: the tables that a measurement gives, from the spec alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engine.predict.bubbles import textbook_bubble
from engine.predict.durations import UNIT_NS
from engine.predict.memory import Memory, memory, peak_table
from engine.predict.timeline import Timeline, simulate, spans_table, textbook, too_long
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.spec import RunSpec
from engine.tables import RunResult


def predict(spec: RunSpec, found: Memory | None = None, spans: bool = True) -> RunResult:
    """Memory and traffic of every rank, and the textbook timeline. Fast enough to be asked at each move of a control.

    The timeline is in units of time: one millisecond stands for a stage's forward pass of one microbatch. There is no table of it
    where `too_long` says why; of very many ranks, tables have those that `Mesh.listed` has. Raises `RequestError` where `memory`
    does, and where the numbers are too large for a table. `found`: `memory(spec)`, if known.
    `spans`: whether the table of them is wanted.
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
    """The spec's schedule in unit times, as if each stage had a device of its own and messages took no time."""
    return simulate(plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied), textbook(spec.layout))


def _summary(spec: RunSpec, found: Memory, passed: pd.DataFrame, bubble: float) -> dict[str, Any]:
    """The numbers of a run's summary that a formula can give, under the same names; and at which action the peak is."""
    at, fullest = found.fullest
    mesh = spec.layout.mesh
    return {
        "peak_bytes": fullest.total,
        "peak_rank": mesh.rank({"pp": at.stage, "dp": at.replica, "tp": int(at.later)}),
        "peak_action": fullest.action,
        "wire_bytes_per_rank": sum(passed["wire_bytes"].tolist()) / len(mesh.listed),  # a sum that may need more than 64 bits
        "bubble": bubble,
    }
