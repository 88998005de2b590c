"""Made-up tables of the longest run that a machine accepts: 16 ranks, 256 microbatches, 10,000 steps."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from engine.predict.memory import curve_table
from engine.predict.run import predict
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from engine.tables import RunResult, table
from engine.topology import Mesh

SPEC = RunSpec(layout=LayoutSpec(dp=2, tp=2, pp=4), workload=WorkloadSpec(microbatches=256, steps=10_000))
MESH = Mesh({"dp": 2, "tp": 2, "pp": 4})
PEAK_RANK = 0


@cache
def long_run() -> RunResult:
    """Predicted tables with the source measured. Every pass has a transfer of half its time."""
    predicted = predict(SPEC)
    spans = predicted.tables["spans"]
    comm = spans.assign(lane="comm", kind="send", end_ns=(spans["start_ns"] + spans["end_ns"]) // 2)
    ones = [_with_distinct_times(curve_table(SPEC, stage * 4)) for stage in range(MESH.pp)]  # all ranks of a stage hold the same
    curves = [ones[rank // 4].assign(rank=rank) for rank in range(MESH.size)]
    steps = np.arange(1, SPEC.workload.steps + 1)
    losses = pd.DataFrame({"step": steps, "loss": 5.0 - steps / 10_000, "grad_norm": 1.0, "step_ns": 10**9, "tokens": 10**4})
    process = [{"rank": rank, "rss_bytes": 1, "uss_bytes": 1, "baseline_bytes": 1, "peak_rss_bytes": 1} for rank in range(16)]
    tables = {
        "memory_peak": predicted.tables["memory_peak"],
        "memory_curve": pd.concat(curves, ignore_index=True),
        "traffic": predicted.tables["traffic"],
        "spans": pd.concat([spans, comm], ignore_index=True),
        "steps": losses.assign(source="measured"),
        "process": table("process", process, "measured"),
    }
    summary = predicted.summary | {
        "steps": len(steps),
        "step_ns": 10**9,
        "tokens_per_second": 1e4,
        "loss_first": 5.0,
        "loss_last": 4.0,
    }
    environment = {"backend": "gloo", "why": "0 GPUs for 16 ranks, so gloo on the CPU", "cores": 2}
    return RunResult(SPEC, environment, summary, {name: t.assign(source="measured") for name, t in tables.items()})


def _with_distinct_times(curve: pd.DataFrame) -> pd.DataFrame:
    """The curve with one composition at each instant. In a prediction actions can take no time, in a run they cannot."""
    return curve.assign(t_ns=curve["t_ns"] + curve.groupby(["t_ns", "category"]).cumcount())
