"""Predicted memory as tables: the peak of every rank, and the curve of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from engine.predict.durations import UNIT_NS, textbook
from engine.predict.memory.blocks import Counts, size_of
from engine.predict.memory.peaks import Memory, memory, opened_stages
from engine.predict.memory.shortened import stage_actions
from engine.schedule import Action, plan, replay
from engine.spec import RunSpec
from engine.tables import CATEGORIES, SCHEMAS, table


def peak_table(spec: RunSpec, found: Memory | None = None) -> pd.DataFrame:
    """A row for each rank and category, as `memory_peak` has it. `found`: `memory(spec)`, if known.

    Of very many ranks, as `Mesh.listed` has it, and the fullest: the others of a stage hold the like.
    """
    mesh = spec.layout.mesh
    found = found or memory(spec)
    categories = list(found.peaks[0].bytes)
    ranks = np.array(mesh.listed)
    if len(ranks) < mesh.size:
        ranks = np.union1d(ranks, mesh.rank({"pp": found.fullest.stage}))
    by_stage = np.array([[peak.bytes[c] for c in categories] for peak in found.peaks], np.int64)
    bytes_ = by_stage[mesh.index("pp", ranks)]
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


def curve_table(spec: RunSpec, rank: int) -> pd.DataFrame:
    """The composition over one step, as `memory_curve` has it: at the start and at the highest point of each action.

    Instants are those of the textbook: F takes 1 ms on a stage, B 2 ms, I and W 1 ms each, shared by its chunks.
    """
    at = spec.layout.mesh.coordinate(rank)
    stages = opened_stages(spec, stage_actions(spec))
    schedule = plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    standing, walk = stages.walk(at.pp, schedule)
    timed = [t for t in replay(schedule, textbook(spec.layout)) if t.stage == at.pp]
    now = _by_category(standing)
    rows: list[dict[str, Any]] = []

    def put(time: float, action: Action, composition: dict[str, int]) -> None:
        rows.extend(
            {"rank": rank, "t_ns": round(time * UNIT_NS), "action": str(action), "category": c, "bytes": n}
            for c, n in composition.items()
        )

    for one, span in zip(walk.actions(), timed, strict=True):
        put(span.start, one.action, now)
        for change in one.before:
            now = _plus(now, _by_category(change.counts))
        if one.trace is not None:
            top = _by_category(one.trace.counts_at(one.trace.highest[1]))
            put((span.start + span.end) / 2, one.action, _plus(now, top))
            now = _plus(now, _by_category(one.trace.net.counts))
        for change in one.after:
            now = _plus(now, _by_category(change.counts))
    put(max(t.end for t in timed), timed[-1].action, now)
    return table("memory_curve", rows, "formula")


def _by_category(counts: Counts) -> dict[str, int]:
    found = dict.fromkeys(CATEGORIES, 0)
    for kind, count in counts.items():
        found[kind.category] += count * size_of(kind.factors)
    return found


def _plus(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {category: size + other[category] for category, size in one.items()}
