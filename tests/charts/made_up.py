"""Small made-up tables of a run. Every number in a chart can be computed from them by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engine.schedule import Timed, plan, replay
from engine.spec import LayoutSpec
from engine.tables import CATEGORIES, table
from engine.topology import Mesh

MS = 1_000_000


def memory_peak(mesh: Mesh) -> pd.DataFrame:
    """Category i of each rank has (i + 1) × 1 KiB; on stage 0 twice as much."""
    rows = []
    for rank in range(mesh.size):
        at = mesh.coordinate(rank)
        for i, category in enumerate(CATEGORIES):
            size = (i + 1) * 1024 * (2 if at.pp == 0 else 1)
            rows.append({"rank": rank, **at, "category": category, "bytes": size})
    return table("memory_peak", rows, "measured")


def predicted_memory(mesh: Mesh, off: int = 0) -> pd.DataFrame:
    """The same as a prediction, with `off` more bytes of activations on every rank."""
    found = memory_peak(mesh).assign(source="formula")
    found.loc[found["category"] == "activations", "bytes"] += off
    return found


def memory_curve() -> pd.DataFrame:
    """Rank 0 at five instants, 2 ms apart: all categories flat at 1 KiB, but activations at 0, 4, 8, 4 and 0 KiB."""
    doing = ["F chunk 0 microbatch 0", "F chunk 0 microbatch 0", "B chunk 0 microbatch 0", "B chunk 0 microbatch 0", "step"]
    rows = [
        {
            "rank": 0,
            "t_ns": 2 * MS * i,
            "action": action,
            "category": c,
            "bytes": 1024 * activations if c == "activations" else 1024,
        }
        for i, (action, activations) in enumerate(zip(doing, (0, 4, 8, 4, 0), strict=True))
        for c in CATEGORIES
    ]
    return table("memory_curve", rows, "measured")


def traffic() -> pd.DataFrame:
    """Two ranks of a pipeline and of a tp group: rank 0 sends 3 KiB to rank 1, and both reduce 4 KiB twice."""
    rows: list[dict[str, Any]] = [
        {
            "rank": rank,
            "axis": "tp",
            "collective": "all_reduce",
            "phase": "forward",
            "calls": 2,
            "payload_bytes": 4096,
            "wire_bytes": 4096,
        }
        for rank in (0, 1)
    ]
    send = {"axis": "pp", "phase": "forward", "calls": 1, "payload_bytes": 3072}
    rows.append({"rank": 0, "collective": "send", "wire_bytes": 3072, **send})
    rows.append({"rank": 1, "collective": "recv", "wire_bytes": 0, **send})
    return table("traffic", [row | {"group": "0,1"} for row in rows], "measured")


def textbook(layout: LayoutSpec, microbatches: int) -> list[Timed]:
    return replay(
        plan(layout, microbatches), lambda stage, action: {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}.get(action.kind, 0.0)
    )


def spans(layout: LayoutSpec, microbatches: int) -> pd.DataFrame:
    """The textbook's times as measured times of every rank, with 1 unit = 1 ms. A transfer of 0.5 ms follows each pass."""
    mesh = layout.mesh
    rows: list[dict[str, Any]] = []
    for timed in textbook(layout, microbatches):
        action = timed.action
        if action.kind not in ("F", "B"):
            continue
        for rank in (r for r in range(mesh.size) if mesh.coordinate(r).pp == timed.stage):
            same: dict[str, Any] = {"rank": rank, "chunk": action.chunk, "microbatch": action.microbatch, "step": 3, "cpu_ns": MS}
            same |= {"axis": "none", "exposed_ns": 0}
            start, end = int(timed.start * MS), int(timed.end * MS)
            rows.append(same | {"lane": "compute", "kind": action.kind, "start_ns": start, "end_ns": end})
            rows.append(same | {"lane": "comm", "kind": "send", "start_ns": end, "end_ns": end + MS // 2, "axis": "pp"})
    return table("spans", rows, "measured")


def steps(losses: list[float]) -> pd.DataFrame:
    rows = [{"step": n + 1, "loss": loss, "grad_norm": 1.0, "step_ns": 5 * MS, "tokens": 64} for n, loss in enumerate(losses)]
    return table("steps", rows, "measured")


def expert_load() -> pd.DataFrame:
    """Four experts on two ranks, two layers. In step 1 all get 10 tokens. In step 2, of layer 1, expert 3 gets all 40."""
    rows = [
        {"rank": expert // 2, "layer": layer, "expert": expert, "step": step, "sender": 0, "tokens": 10}
        for step in (1, 2)
        for layer in (0, 1)
        for expert in range(4)
    ]
    for row in rows:
        if row["step"] == 2 and row["layer"] == 1:
            row["tokens"] = 40 if row["expert"] == 3 else 0
    return table("expert_load", rows, "measured")
