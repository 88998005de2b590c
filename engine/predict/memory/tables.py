"""Predicted memory as tables: the peak of every rank, and the curve of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from engine.predict.durations import UNIT_NS, textbook
from engine.predict.memory.blocks import Counts, size_of
from engine.predict.memory.passes import ActionTrace
from engine.predict.memory.peaks import Memory, memory, opened_stages
from engine.predict.memory.shortened import Shortened
from engine.predict.memory.stages import Place
from engine.schedule import Action, plan, replay
from engine.schedule.orders import KINDS
from engine.spec import RunSpec
from engine.tables import CATEGORIES, SCHEMAS, table
from engine.topology import Mesh


def peak_table(spec: RunSpec, found: Memory | None = None) -> pd.DataFrame:
    """A row for each rank and category, as `memory_peak` has it. `found`: `memory(spec)`, if known.

    Of very many ranks, as `Mesh.listed` has it, and the fullest: the others of a stage hold the like.
    """
    mesh = spec.layout.mesh
    found = found or memory(spec)
    categories = list(found.peaks[0].bytes)
    ranks = np.array(mesh.listed)
    if len(ranks) < mesh.size:
        at, _ = found.fullest
        ranks = np.union1d(ranks, mesh.rank({"pp": at.stage, "dp": at.replica, "tp": int(at.later)}))
        bytes_ = np.array([[found.of(mesh.coordinate(int(rank))).bytes[c] for c in categories] for rank in ranks], np.int64)
    else:
        bytes_ = _bytes_of_all(mesh, found, categories)
    columns: dict[str, Any] = {
        "source": "formula",
        "rank": np.repeat(ranks, len(categories)),
        **{axis: np.repeat(mesh.index(axis, ranks), len(categories)) for axis in mesh},
        "category": categories * len(ranks),
        "bytes": bytes_.ravel(),
    }
    return pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype=dtype, index=range(len(ranks) * len(categories)))
            for name, dtype in SCHEMAS["memory_peak"].items()
        }
    )


def _bytes_of_all(mesh: Mesh, found: Memory, categories: list[str]) -> Any:
    """Of every rank, (ranks, categories)."""
    by_stage = np.array([[peak.bytes[c] for c in categories] for peak in found.peaks], np.int64)
    bytes_ = by_stage.repeat(mesh.stride("pp"), axis=0).reshape(mesh.pp, mesh.dp, mesh.tp, len(categories))
    for at, peak in sorted(found.others.items()):  # each goes on until the next of its stage and kind
        slices = slice(1, None) if at.later else slice(0, 1)
        bytes_[at.stage, at.replica :, slices] = [peak.bytes[c] for c in categories]
    return bytes_.reshape(mesh.size, len(categories))


def curve_table(spec: RunSpec, rank: int) -> pd.DataFrame:
    """The composition over one step, as `memory_curve` has it: at the start and at the highest point of each action.

    Instants are those of the textbook: F takes 1 ms on a stage, B 2 ms, I and W 1 ms each, shared by its chunks.
    """
    at, m = spec.layout.mesh.coordinate(rank), spec.workload.microbatches
    stages, schedule = opened_stages(spec, Shortened(m)), plan(spec.layout, m, spec.model.parts.tied)
    walk, step = stages.walk(at.pp, schedule.stages[at.pp]), stages.step(Place(at.pp, at.dp, at.tp > 0))
    timed = [t for t in replay(schedule, textbook(spec.layout)) if t.stage == at.pp]
    standing, rows = _by_category(stages.standing(at.pp)), list[dict[str, Any]]()
    before = {category: walk.bytes_before(category).tolist() for category in CATEGORIES}
    passes, stepped = iter(range(len(walk.of))), False

    def put(time: float, action: Action, composition: dict[str, int]) -> None:
        rows.extend(
            {"rank": rank, "t_ns": round(time * UNIT_NS), "action": str(action), "category": c, "bytes": n}
            for c, n in composition.items()
        )

    for row, (action, span) in enumerate(zip(schedule.stages[at.pp], timed, strict=True)):
        start = standing if stepped else _plus(standing, {category: int(of[row]) for category, of in before.items()})
        put(span.start, action, start)
        stepped = stepped or action.kind == "step"
        if action.kind in (*KINDS, "step", "reduce"):
            # Before the optimizer's step all messages are gone. The end of a reduction allocates nothing.
            trace = {"step": step, "reduce": ActionTrace()}.get(action.kind) or walk.trace(next(passes))
            top = _by_category(trace.counts_at(trace.highest[1]))
            put((span.start + span.end) / 2, action, _plus(standing if stepped else start, top))
    put(max(t.end for t in timed), timed[-1].action, standing)
    return table("memory_curve", rows, "formula")


def _by_category(counts: Counts) -> dict[str, int]:
    found = dict.fromkeys(CATEGORIES, 0)
    for kind, count in counts.items():
        found[kind.category] += count * size_of(kind.factors)
    return found


def _plus(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {category: size + other[category] for category, size in one.items()}
