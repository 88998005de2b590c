"""The summary of a run, from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from engine.tables import KV_CACHE, members
from engine.topology import AXES_AS_WRITTEN, Axis, Mesh

WORK = ("F", "B", "I", "W")


def bubble(spans: pd.DataFrame, mesh: Mesh) -> float:
    """The bubble, 1 − busy ÷ (pp × makespan), counting F, B, I and W; the mean over all pipelines."""
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    # Ranks with the same dp and tp are one pipeline.
    pipeline = work["rank"] % mesh.stride("pp")
    busy = (work["end_ns"] - work["start_ns"]).groupby(pipeline).sum()
    makespan = work["end_ns"].groupby(pipeline).max() - work["start_ns"].groupby(pipeline).min()
    return float((1 - busy / (mesh.pp * makespan)).mean())


def exposed(spans: pd.DataFrame, mesh: Mesh) -> dict[Axis, float]:
    """Exposed communication by axis: the share of a step in which ranks were busy with calls alone. The mean over all ranks.

    Empty where it was not measured (an older run, a GPU), and for one rank.
    """
    calls = spans[(spans["lane"] == "comm") & (spans["exposed_ns"] >= 0)]
    waited, step = calls.groupby("axis")["exposed_ns"].sum(), spans["end_ns"].max() - spans["start_ns"].min()
    return {axis: float(waited[axis] / (mesh.size * step)) for axis in AXES_AS_WRITTEN if axis in waited.index}


def wire_bytes_between_nodes(traffic: pd.DataFrame, nodes: Sequence[int], backend: str = "gloo") -> int:
    """Bytes of a step that go from one node to another. `nodes`: the node of each rank.

    In a ring a rank sends all to the next one of its group, and the wire bytes of a send go to its peer. An all-to-all sends to
    each peer, of which each is taken to get as much. So do the all-gather and the reduce-scatter on the CPU
    (`engine.parallel.comm`).
    """
    direct = {"all_to_all", "all_gather", "reduce_scatter"} if backend == "gloo" else {"all_to_all"}
    between = 0
    columns = (traffic[name] for name in ("rank", "collective", "group", "wire_bytes"))
    for rank, collective, group, sent in zip(*columns, strict=True):
        ranks = members(group)
        following = ranks[(ranks.index(rank) + 1) % len(ranks)]
        peers = [peer for peer in ranks if peer != rank] if collective in direct else [following]
        between += int(sent) * sum(nodes[peer] != nodes[rank] for peer in peers) // max(1, len(peers))
    return between


def workspace(allocator: list[dict[str, Any]]) -> int:
    """The most bytes that kernels' workspaces added to a rank's peak. 0 for an old run, which did not record them."""
    return max((entry.get("workspace_bytes", 0) for entry in allocator), default=0)


def summarize(tables: dict[str, pd.DataFrame], mesh: Mesh, ran_on: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for run.json: first and last loss if the run trained, fullest rank, bubble, traffic, speed, parity.

    `ran_on`: the environment that `run.json` has. It has the node of each rank if there are several.
    """
    steps = tables["steps"].sort_values("step")
    generated = KV_CACHE in set(tables["memory_peak"]["category"])  # then there was no training, and there is no loss
    memory = tables["memory_peak"].groupby("rank")["bytes"].sum()
    sent = tables["traffic"]["wire_bytes"].sum() if len(tables["traffic"]) else 0
    steady = steps["step_ns"].iloc[len(steps) // 2 :].median()
    summary: dict[str, Any] = {
        "steps": len(steps),
        "step_ns": int(steady),
        "tokens_per_second": float(steps["tokens"].iloc[-1] / steady * 1e9),
        "peak_bytes": int(memory.max()),
        "peak_rank": int(memory[memory == memory.max()].index[0]),
        "wire_bytes_per_rank": float(sent / mesh.size),
        "bubble": bubble(tables["spans"], mesh),
    }
    if nodes := ran_on.get("nodes"):
        summary["wire_bytes_between_nodes"] = wire_bytes_between_nodes(tables["traffic"], nodes, ran_on["backend"])
    if not generated:
        summary |= {"loss_first": float(steps["loss"].iloc[0]), "loss_last": float(steps["loss"].iloc[-1])}
    if "parity" in tables:
        summary["parity_max_rel"] = float(tables["parity"]["max_rel"].max(skipna=False))
    return summary
