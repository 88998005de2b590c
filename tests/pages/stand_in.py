"""A stand-in for the run queue, and made-up saved runs. No process is started."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import streamlit as st

from engine import store
from engine.launch.queue.run_queue import RunQueue, RunState
from engine.spec import LayoutSpec, RequestError, RunSpec
from engine.summary import summarize
from engine.tables import RunResult, table
from engine.topology import AXES, Mesh
from pages.shared import navigation
from pages.shared.classroom import Classroom
from pages.shared.service import Service
from tests.charts import made_up

PAIR = RunSpec(layout=LayoutSpec(pp=2), parity=True)


@dataclass
class Queue:
    """A queue whose runs have the state that the test sets."""

    states: dict[str, RunState] = field(default_factory=dict)
    refuse: str = ""
    waits: dict[str, float] = field(default_factory=dict)

    def submit(self, spec: RunSpec, by: str = "") -> str:
        if self.refuse:
            raise RequestError(self.refuse)
        id = f"run-{len(self.states)}"
        self.states[id] = RunState(id, spec, by)
        return id

    def expected_wait(self, id: str) -> float | None:
        return self.waits.get(id)

    def watch(self, id: str) -> RunState | None:
        return self.states.get(id)

    state = watch

    def unfinished(self) -> tuple[RunState, ...]:
        return tuple(state for state in self.states.values() if not state.finished)

    def cancel(self, id: str) -> None:
        self.becomes(id, phase="cancelled", message="cancelled")

    def becomes(self, id: str, **changes: Any) -> None:
        self.states[id] = replace(self.states[id], **changes)


def service(home: Path, classroom: Classroom | None = None) -> tuple[Service, Queue]:
    queue = Queue()
    return Service(home, cast(RunQueue, queue), classroom), queue


def know_pages() -> None:
    """Register the pages, so that links between pages work without app.py."""
    shown = {path: (lambda: None) for path in ("start", "compare", "plan", "learn", "runs", "lab")}
    navigation.register([st.Page(show, title=path, url_path=path, default=path == "start") for path, show in shown.items()])


def _traffic(mesh: Mesh) -> pd.DataFrame:
    """Traffic of ranks 0 and 1 along the axis on which they are neighbours; transfers if the axis is pp."""
    rows = made_up.traffic()
    transfer = rows["collective"].isin(["send", "recv"])
    along = next((axis for axis in AXES if mesh.group(axis, 0) == (0, 1)), None)
    reduced = rows[~transfer].assign(axis=along) if along else rows.head(0)
    return pd.concat([reduced, rows[transfer] if along == "pp" else rows.head(0)], ignore_index=True)


def saved(home: Path, spec: RunSpec, name: str = "20261124-101500-run") -> Path:
    """A saved run of `spec`: see `result_of`."""
    folder = home / name
    store.save(result_of(spec), folder)
    return folder


def result_of(spec: RunSpec) -> RunResult:
    """A made-up result of `spec`, whose mesh must have at most two ranks along pp."""
    layout = spec.layout
    mesh = layout.mesh
    process = {"rss_bytes": 3 << 20, "uss_bytes": 1 << 20, "baseline_bytes": 2 << 20, "peak_rss_bytes": 4 << 20}
    tables = {
        "memory_peak": made_up.memory_peak(mesh),
        "memory_curve": pd.concat([made_up.memory_curve().assign(rank=rank) for rank in range(mesh.size)], ignore_index=True),
        "process": table("process", [{"rank": rank} | process for rank in range(mesh.size)], "measured"),
        "traffic": _traffic(mesh),
        "spans": made_up.spans(layout, spec.workload.microbatches),
        "steps": made_up.steps([5.5, 4.25]),
    }
    if spec.parity:
        rows = [
            {"parameter": "embedding", "max_abs": 1e-8, "max_rel": 3.1e-7},
            {"parameter": "head", "max_abs": 0.0, "max_rel": 0.0},
        ]
        tables["parity"] = table("parity", rows, "measured")
    environment = {"backend": "gloo", "why": f"0 GPUs for {mesh.size} ranks, so gloo on the CPU", "cores": 2}
    return RunResult(spec, environment, summarize(tables, mesh, environment), tables)


def dry_run_of(spec: RunSpec, rank: int) -> RunResult:
    """A dry run of one rank of `spec`, without steps and processes."""
    run = result_of(spec.model_copy(update={"parity": False}))
    tables = {
        name: (rows[rows["rank"] == rank] if "rank" in rows else rows.head(1).assign(loss=math.nan)).assign(source="dry_run")
        for name, rows in run.tables.items()
    }
    tables["process"] = tables["process"].head(0)
    told = ("tokens_per_second", "loss_first", "loss_last")
    summary = {name: value for name, value in run.summary.items() if name not in told}
    summary |= {"peak_rank": rank, "rehearsed": [rank], "steps": 1, "seconds": 2.5, "grown_bytes": -4096}
    return RunResult(run.spec, run.environment | {"backend": "none", "why": "a dry run"}, summary, tables)
