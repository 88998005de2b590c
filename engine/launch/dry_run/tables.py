"""From the rows of the ranks that were run to a result like that of a run. Imports no torch.

All ranks of a stage hold and do the same. So one rank stands for them: its rows are repeated for each, with that rank's own
coordinates and groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from engine.launch.textbook import Textbook, step_row
from engine.spec import RunSpec
from engine.tables import Rows, RunResult, group_name, members, table
from engine.topology import EP, Axis, Mesh

MOST_ROWS = 1_000_000  # of memory_curve and spans: larger ones have only the ranks that were run


def first_of_each_stage(spec: RunSpec) -> list[int]:
    """A rank of each stage: the first of its replicas and slices."""
    return list(spec.layout.mesh.group("pp", 0))


def result(
    spec: RunSpec, by_rank: Mapping[int, Rows], whole: bool, clock: Textbook, environment: dict[str, Any], seconds: float
) -> RunResult:
    """`by_rank`: the rows of each rank that was run. `whole`: they are the first rank of each stage, and the tables get every
    rank that `Mesh.listed` has.
    """
    mesh = spec.layout.mesh
    stands_for = {rank: ranks_of_stage(mesh, rank) if whole and mesh.all_listed else [rank] for rank in sorted(by_rank)}
    tables = {name: _repeated(name, by_rank, stands_for, mesh) for name in ("memory_peak", "memory_curve", "traffic", "spans")}
    tables["process"] = table("process", [], "dry_run")  # nobody ran, so no process was measured
    tables["steps"] = table("steps", [step_row(spec, clock)], "dry_run")
    memory = tables["memory_peak"].groupby("rank")["bytes"].sum()
    sent = tables["traffic"].groupby("rank")["wire_bytes"].sum()
    summary = {
        "steps": 1,
        "step_ns": clock.makespan_ns,
        "peak_bytes": int(memory.max()),
        "peak_rank": int(memory.index[int(memory.to_numpy().argmax())]),
        "wire_bytes_per_rank": float(sent.sum() / len(memory)),
        "bubble": clock.bubble,
        "allocator": [entry for rank in sorted(by_rank) for entry in by_rank[rank]["allocator"]],
        "rehearsed": sorted(by_rank),
        "seconds": seconds,
    }
    return RunResult(spec, environment, summary, tables)


def ranks_of_stage(mesh: Mesh, rank: int) -> list[int]:
    """The ranks of the same stage."""
    each = mesh.stride("pp")
    first = rank // each * each
    return list(range(first, first + each))


def _repeated(name: str, by_rank: Mapping[int, Rows], stands_for: Mapping[int, list[int]], mesh: Mesh) -> pd.DataFrame:
    count = sum(len(by_rank[rank][name]) * len(ranks) for rank, ranks in stands_for.items())
    large = count > MOST_ROWS and name in ("memory_curve", "spans")
    parts = []
    for rank, ranks in stands_for.items():
        rows = table(name, by_rank[rank][name], "dry_run")
        parts += [_as_rank(name, rows, rank, other, mesh) for other in ([rank] if large else ranks)]
    return pd.concat(parts, ignore_index=True)


def _as_rank(name: str, rows: pd.DataFrame, of: int, rank: int, mesh: Mesh) -> pd.DataFrame:
    """The rows of a rank of the same stage, `of`, as those of `rank`."""
    if name == "memory_peak":
        return rows.assign(rank=rank, **mesh.coordinate(rank).columns)
    if name == "traffic":
        groups = [
            _group(mesh, of, rank, "dp" if axis == EP else axis, group)
            for axis, group in zip(rows["axis"], rows["group"], strict=True)
        ]
        return rows.assign(rank=rank, group=pd.Series(groups, dtype="str"))
    return rows.assign(rank=rank)


def _group(mesh: Mesh, of: int, rank: int, axis: Axis, group: str) -> str:
    """The group that goes through `rank` as `group` goes through the rank `of`. It may be one of several parts of an axis."""
    every = mesh.members(axis, of)
    places = [every.index(member) for member in members(group)]
    spread = places[1] - places[0] if len(places) > 1 else 1

    def first(one: int) -> int:
        """The first place of the group of a rank, if groups have as many members, as far apart."""
        place = mesh.members(axis, one).index(one)
        return place - place // spread % len(places) * spread

    ranks = [mesh.members(axis, rank)[place + first(rank) - first(of)] for place in places]
    return group_name(ranks, cut=not mesh.all_listed and ranks[0] == rank)
