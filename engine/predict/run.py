"""The whole prediction of a run: the tables that a measurement gives, from the spec alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engine.predict.memory import memory
from engine.predict.timeline import Timeline, simulate, spans_table, textbook
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.spec import RunSpec
from engine.tables import RunResult

_UNIT_NS = 1e6  # what a unit of the textbook's time is drawn as


def predict(spec: RunSpec) -> RunResult:
    """Memory and traffic of every rank, and the textbook timeline. Fast enough to be asked at each move of a control.

    The timeline is in units of time: one millisecond stands for a stage's forward pass of one microbatch.
    """
    timeline = textbook_timeline(spec)
    tables = {"memory_peak": peak_table(spec), "traffic": traffic(spec), "spans": spans_table(spec, timeline, unit_ns=_UNIT_NS)}
    return RunResult(spec, {"source": "formula"}, _summary(spec, tables, timeline), tables)


def peak_table(spec: RunSpec) -> pd.DataFrame:
    """TEMPORARY: until the memory branch brings its own."""
    import numpy as np

    peaks = memory(spec).peaks
    layout = spec.layout
    categories = list(peaks[0].bytes)
    ranks = np.arange(layout.ranks)
    per = layout.dp * layout.tp
    stage = ranks // per
    values = np.array([[p.bytes[c] for c in categories] for p in peaks], dtype=np.int64)
    n = len(categories)
    return pd.DataFrame(
        {
            "source": "formula",
            "rank": np.repeat(ranks, n),
            "pp": np.repeat(stage, n),
            "dp": np.repeat(ranks % per // layout.tp, n),
            "tp": np.repeat(ranks % layout.tp, n),
            "category": np.tile(categories, layout.ranks),
            "bytes": values[stage].reshape(-1),
        }
    )


def textbook_timeline(spec: RunSpec) -> Timeline:
    """The spec's schedule in unit times, as if each stage had a device of its own and messages took no time."""
    return simulate(plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied), textbook(spec.layout))


def _summary(spec: RunSpec, tables: dict[str, pd.DataFrame], timeline: Timeline) -> dict[str, Any]:
    """The numbers of a run's summary that a formula can give, under the same names."""
    memory = tables["memory_peak"].groupby("rank")["bytes"].sum()
    sent = tables["traffic"]["wire_bytes"].sum() if len(tables["traffic"]) else 0
    return {
        "peak_bytes": int(memory.max()),
        "peak_rank": int(memory.index[int(memory.argmax())]),
        "wire_bytes_per_rank": float(sent / spec.layout.ranks),
        "bubble": timeline.bubble,
    }
