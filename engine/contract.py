"""The rules that every saved run must keep, wherever it comes from: its tables fit its spec, each other, and its summary.

`engine.tables` has the rules for each table, and `engine.head` those for run.json. Pages rely on all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, get_args

import numpy as np
import pandas as pd

from engine.schedule import Kind
from engine.schedule.orders import KINDS, passes
from engine.spec import RequestError, RunSpec, Sentence, sentence
from engine.tables import COLLECTIVES, CUT, TABLES, RunResult, group_name, misfits_of
from engine.topology import EP, Axis, Mesh, Subgroups

_OPTIONAL = ("parity", "expert_load")
_OF_EACH_RANK = ("memory_peak", "memory_curve", "process", "spans")
_TRANSFERS = ("send", "recv")
_PAIR = re.compile(r"(\d{1,9}),(\d{1,9})", re.ASCII)
_ACTION = re.compile(
    rf"(?:{'|'.join(get_args(Kind))})(?: (?:activation|gradient))?(?: chunk (\d{{1,9}}))?(?: microbatch (\d{{1,9}}))?", re.ASCII
)


def refuse_misfits(result: RunResult) -> None:
    """Raise `RequestError` with the first error in the tables: something that no run of this spec has."""
    _refuse(chain(_missing(result), _each_table(result), _across_tables(result)))


def refuse_wrong_sum(result: RunResult) -> None:
    """Raise `RequestError` if the summary does not fit the tables. They must have passed `refuse_misfits`."""
    _refuse(_summary_errors(result))


def source(result: RunResult) -> str:
    """Where the numbers are from: "measured", "dry_run" or "formula"."""
    return str(result.tables["memory_peak"]["source"].iloc[0])


def _refuse(found: Iterator[Sentence]) -> None:
    if wrong := next(found, None):
        raise RequestError(wrong)


def _missing(result: RunResult) -> Iterator[Sentence]:
    for name in TABLES:
        if name not in result.tables and name not in _OPTIONAL:
            yield sentence("{name} is not in it", name=f"{name}.parquet")


def _each_table(result: RunResult) -> Iterator[Sentence]:
    """Errors in each table alone."""
    for name, rows in result.tables.items():
        yield from misfits_of(name, rows)
    for name in ("memory_peak", "memory_curve", "spans", "steps", "parity"):
        if name in result.tables and result.tables[name].empty:
            yield sentence("{name} has no rows", name=name)


def _across_tables(result: RunResult) -> Iterator[Sentence]:
    """Errors of the tables against the spec and each other."""
    layout = result.spec.layout
    mesh = layout.mesh
    yield from _sources(result)
    yield from _ranks(result, mesh)
    if (named := result.environment.get("nodes")) and len(named) != mesh.size:
        yield sentence("run.json has the nodes of {count} ranks, and its layout has {ranks}", count=len(named), ranks=mesh.size)
    yield from _groups(result.tables["traffic"], mesh, result.spec.subgroups)
    yield from _numbers(result)
    yield from _passes(result.spec, result.tables["spans"], mesh)
    yield from _instants(result.tables["spans"])
    yield from _steps(result.spec, result.tables["steps"])


def _sources(result: RunResult) -> Iterator[Sentence]:
    found = sorted({word for rows in result.tables.values() for word in rows["source"].unique()})
    if found not in (["measured"], ["dry_run"], ["formula"]):
        yield sentence(
            "its tables are by {sources}; a run's are all measured, all of a dry run, or all predicted", sources=", ".join(found)
        )


def _ranks(result: RunResult, mesh: Mesh) -> Iterator[Sentence]:
    """A run has all ranks. A dry run has those that it ran, and the others of their stages."""
    for name, rows in result.tables.items():
        if "rank" in rows and not rows["rank"].between(0, mesh.size - 1).all():
            yield sentence("{name} has ranks beyond the {ranks} of its layout", name=name, ranks=mesh.size)
    if source(result) == "measured":
        for name in _OF_EACH_RANK:
            if result.tables[name]["rank"].nunique() != mesh.size:
                yield sentence("{name} must have all {ranks} ranks", name=name, ranks=mesh.size)
    peak = result.tables["memory_peak"]
    ranks = peak["rank"].to_numpy()
    for axis in mesh:
        if len(wrong := ranks[peak[axis].to_numpy() != mesh.index(axis, ranks)]):
            yield sentence(
                "{name} has rank {rank} at a coordinate that differs from its layout", name="memory_peak", rank=int(wrong[0])
            )


def _groups(traffic: pd.DataFrame, mesh: Mesh, subgroups: Subgroups) -> Iterator[Sentence]:
    """A group contains its rank. Along other axes than pp it is the whole group of the axis, or one of its subgroups. Along ep it
    is the ranks that share experts. A message is between two stages.
    """
    transfer = traffic["collective"].isin(_TRANSFERS)
    rows = traffic[["rank", "axis", "group"]].assign(transfer=transfer).drop_duplicates()
    for rank, axis, group, message in rows.itertuples(index=False):
        pair = axis == "pp" and group.count(",") == 1  # messages, and the all-reduce of tied weights
        parts = (group_name(ranks, cut=False) for ranks in _parts_of(axis, rank, mesh, subgroups))
        whole = (axis != EP and _is_whole(group, rank, axis, mesh)) or group in parts
        good = _is_pair(group, rank, mesh) if pair else not message and whole
        if not good:
            named = {"group": group[:40], "rank": rank, "axis": axis}
            yield sentence("traffic has the group {group!r}, which is not a group of rank {rank} along {axis}", **named)


def _parts_of(axis: str, rank: int, mesh: Mesh, subgroups: Subgroups) -> Iterator[tuple[int, ...]]:
    """The groups of a rank that are a part of its axis's."""
    copies, ep, replicas = subgroups
    if axis == "tp" and copies > 1:
        yield mesh.neighbours("tp", rank, copies)
    if axis == EP and ep > 1:
        yield mesh.neighbours("dp", rank, ep)
    if axis == "dp" and ep > 1:
        yield mesh.group("dp", rank)[mesh.index("dp", rank) % ep :: ep]
    if axis == "dp" and replicas > 1:
        yield mesh.shard_group(rank, replicas)
        yield mesh.shard_replicas(rank, replicas)


def _is_pair(group: str, rank: int, mesh: Mesh) -> bool:
    found = _PAIR.fullmatch(group)
    one, other = (int(found[1]), int(found[2])) if found else (0, 0)
    alike = one % mesh.stride("pp") == other % mesh.stride("pp")
    return one < other < mesh.size and rank in (one, other) and alike and group == f"{one},{other}"


def _is_whole(group: str, rank: int, axis: Axis, mesh: Mesh) -> bool:
    """Whether it is the whole group of the axis. A dry run of very many ranks shortens long names."""
    degree, cut = mesh.degree(axis), CUT in group
    return (cut or group.count(",") + 1 == degree) and degree > 1 and group == group_name(mesh.members(axis, rank), cut)


def _numbers(result: RunResult) -> Iterator[Sentence]:
    """Chunks and microbatches are those of the spec. Without training, the column of microbatches has the new tokens."""
    chunks, most = len(result.spec.layout.placement), _microbatches(result.spec)
    spans = result.tables["spans"]
    for column, count in (("chunk", chunks), ("microbatch", most)):
        if (largest := int(spans[column].max())) >= count:
            yield sentence("spans has the {column} {number}, and there are {count}", column=column, number=largest, count=count)
    if (spans["kind"].isin(COLLECTIVES) != (spans["lane"] == "comm")).any():
        yield sentence("spans lists a computation as communication, or a communication as computation")
    for action in result.tables["memory_curve"]["action"].unique():
        found = _ACTION.fullmatch(action)
        if not found or int(found[1] or 0) >= chunks or int(found[2] or 0) >= most:
            yield sentence("memory_curve has the action {action!r}, which this run does not have", action=action[:40])


def _microbatches(spec: RunSpec) -> int:
    return spec.generate.new_tokens if spec.generate.skip_training else spec.workload.microbatches


def _passes(spec: RunSpec, spans: pd.DataFrame, mesh: Mesh) -> Iterator[Sentence]:
    """Each rank ran each pass of its schedule once, and no others."""
    work = spans.loc[spans["kind"].isin(KINDS), ["rank", "kind", "chunk", "microbatch"]]
    layout, count = spec.layout, _microbatches(spec)
    ranks = work["rank"].nunique()
    if int((work["kind"] == "F").sum()) != ranks * layout.chunks * count:  # checked first: a schedule of a false size may be huge
        yield sentence("spans must have each forward pass of each rank exactly once")
        return
    code = (work["kind"].map(KINDS.index).to_numpy() * len(layout.placement) + work["chunk"].to_numpy()) * count
    code += work["microbatch"].to_numpy()
    order = np.lexsort((code, work["rank"].to_numpy()))
    named, starts = np.unique(work["rank"].to_numpy()[order], return_index=True)
    expected: dict[int, Any] = {}
    for rank, own in zip(named.tolist(), np.split(code[order], starts[1:]), strict=True):
        stage = rank // mesh.stride("pp")
        if stage not in expected:
            expected[stage] = _codes(spec, stage, count)
        if not np.array_equal(own, expected[stage]):
            yield sentence("spans has passes of rank {rank} that are not in its schedule", rank=rank)


def _codes(spec: RunSpec, stage: int, count: int) -> Any:
    """The passes of a stage, each as one number, sorted. (n,)"""
    layout = spec.layout
    if spec.generate.skip_training:
        own = np.array([chunk for chunk, at in enumerate(layout.placement) if at == stage])
        return np.sort((own[:, None] * count + np.arange(count)).ravel())
    found = passes(layout.schedule, layout.pp, np.array([stage]), np.array([count]), layout.chunks)
    return np.sort((found.kinds.astype("int64") * len(layout.placement) + found.chunks) * count + found.microbatches)


def _instants(spans: pd.DataFrame) -> Iterator[Sentence]:
    """No span ends before it begins. A rank computes one action at a time, and its compute takes time."""
    if (spans["end_ns"] < spans["start_ns"]).any():
        yield sentence("spans has one that ends before it begins")
    done = spans.loc[spans["lane"] == "compute", ["rank", "start_ns", "end_ns"]].sort_values(["rank", "start_ns", "end_ns"])
    rank, start, end = (done[column].to_numpy() for column in done)
    over = (rank[1:] == rank[:-1]) & (start[1:] < end[:-1])
    if over.any():
        yield sentence("spans has computations of rank {rank} that overlap", rank=int(rank[1:][over][0]))
    took = (done["end_ns"] - done["start_ns"]).groupby(done["rank"]).sum()
    if not took.all():
        yield sentence("spans has a computation of rank {rank} that takes no time", rank=int(took.index[took == 0][0]))


def _steps(spec: RunSpec, steps: pd.DataFrame) -> Iterator[Sentence]:
    asked = spec.generate.new_tokens if spec.generate.skip_training else spec.workload.steps
    if list(steps["step"]) != list(range(1, len(steps) + 1)) or len(steps) > asked:
        yield sentence("steps must list the steps from 1 on, at most the {count} of the run", count=asked)


def _summary_errors(result: RunResult) -> Iterator[Sentence]:
    summary, spec = result.summary, result.spec
    ranks = set(result.tables["memory_peak"]["rank"].unique().tolist())
    named = [summary["peak_rank"], *summary.get("rehearsed", [])]
    if not ranks.issuperset(named):
        yield sentence("its summary names a rank that is not in memory_peak")
    if any(entry["rank"] >= spec.layout.ranks for entry in summary.get("allocator", [])):
        yield sentence("its summary has ranks beyond the {ranks} of its layout", ranks=spec.layout.ranks)
    if source(result) != "measured":
        return
    needed = ["tokens_per_second"]
    needed += [] if spec.generate.skip_training else ["loss_first", "loss_last"]
    needed += ["parity_max_rel"] if "parity" in result.tables else []
    if missing := [name for name in needed if name not in summary]:
        yield sentence("its summary lacks {missing}", missing=", ".join(missing))
    if spec.generate.skip_training and "loss_last" in summary:
        yield sentence("its summary has a loss, but the run did not train")
