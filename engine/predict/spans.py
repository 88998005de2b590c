"""Timelines and the table "spans": a timeline as such a table, and the durations that a run's table has."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from engine.schedule import Kind
from engine.schedule.timeline import Durations, Timeline
from engine.spec import RunSpec
from engine.tables import Source, table

MOST_RANKS = 64  # up to here `spans_table` has rows of every rank


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
