"""A prediction with every table that a saved run has, so that it is saved, listed and compared like one. Imports no torch.

Times are those of a dry run: `engine.launch.textbook`.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import pandas as pd

from engine.launch.dry_run.tables import MOST_ROWS, ranks_of_stage
from engine.launch.textbook import Textbook, step_row, textbook
from engine.predict.memory import Memory, curve_table, generation_curve_table, memory
from engine.predict.run import predict
from engine.spec import RunSpec
from engine.tables import RunResult, table
from engine.topology import Mesh


def predicted(spec: RunSpec) -> RunResult:
    """`predict(spec)` with all tables. The table of processes is empty: nobody ran.

    Where the rows of memory over time or of spans would be too many, only the first rank of each stage has them. Raises
    `RequestError` where the schedule is too long for a dry run, and `NotRecordedError`.
    """
    clock, found = textbook(spec), memory(spec)
    result = predict(spec, found, spans=False)
    tables = result.tables | {
        "memory_curve": _curves(spec, found, clock),
        "spans": _spans(spec.layout.mesh, clock),
        "process": table("process", [], "formula"),
        "steps": table("steps", [step_row(spec, clock)], "formula"),
    }
    why = "a prediction by formula: nothing was started"
    environment: dict[str, Any] = {
        "backend": "none", "why": why, "python": platform.python_version(), "system": platform.system(),
        "cores": os.cpu_count() or 1,
    }  # fmt: skip
    summary = result.summary | {"steps": 1, "step_ns": clock.makespan_ns, "bubble": clock.bubble}
    return RunResult(spec, environment, summary, tables)


def _curves(spec: RunSpec, found: Memory, clock: Textbook) -> pd.DataFrame:
    """Ranks of a stage with the same peak have the same curve."""
    mesh, parts = spec.layout.mesh, []
    for stage, first in enumerate(mesh.group("pp", 0)):
        one = _curve(spec, first, stage, clock)
        curves = {id(found.of(mesh.coordinate(first))): one}
        for rank in ranks_of_stage(mesh, first) if _all_have_rows(mesh, len(one)) else [first]:
            peak = id(found.of(mesh.coordinate(rank)))
            if peak not in curves:
                curves[peak] = _curve(spec, rank, stage, clock)
            parts.append(curves[peak].assign(rank=rank))
    return pd.concat(parts, ignore_index=True)


def _curve(spec: RunSpec, rank: int, stage: int, clock: Textbook) -> pd.DataFrame:
    """Of several compositions at one instant, which actions without duration have, the largest stands."""
    if spec.generate.skip_training:
        rows = generation_curve_table(spec, rank, clock.schedule, clock.stages[stage])
    else:
        rows = curve_table(spec, rank, clock.stages[stage])
    categories = rows["category"].nunique()
    rows["point"] = rows.index // categories
    totals = rows.groupby("point", sort=False).agg(t_ns=("t_ns", "first"), bytes=("bytes", "sum"))
    kept = totals.sort_values("bytes", kind="stable").drop_duplicates("t_ns", keep="last").index
    return rows[rows["point"].isin(kept)].drop(columns="point").reset_index(drop=True)


def _spans(mesh: Mesh, clock: Textbook) -> pd.DataFrame:
    parts = []
    for stage, first in enumerate(mesh.group("pp", 0)):
        rows = [
            {
                "rank": first, "lane": "compute", "kind": action.kind, "chunk": action.chunk, "microbatch": action.microbatch,
                "step": 1, "start_ns": start, "end_ns": end, "cpu_ns": end - start, "axis": "none", "exposed_ns": -1,
            }
            for action, (start, end) in zip(clock.schedule.stages[stage], clock.stages[stage], strict=True)
            if action.kind not in ("send", "recv")
        ]  # fmt: skip
        one = table("spans", rows, "formula")
        ranks = ranks_of_stage(mesh, first) if _all_have_rows(mesh, len(one)) else [first]
        parts += [one.assign(rank=rank) for rank in ranks]
    return pd.concat(parts, ignore_index=True)


def _all_have_rows(mesh: Mesh, rows: int) -> bool:
    """Whether all ranks have rows, of which one rank has so many."""
    return mesh.all_listed and rows * mesh.size <= MOST_ROWS
