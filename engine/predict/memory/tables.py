"""Predicted memory as tables: the peak of every rank, and the curve of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine.predict.durations import UNIT_NS, textbook
from engine.predict.memory.blocks import Counts, size_of
from engine.predict.memory.peaks import Memory, memory, opened_generation, opened_stages
from engine.predict.memory.shortened import stage_actions
from engine.schedule import Action, Schedule, plan, replay
from engine.spec import RunSpec
from engine.tables import CATEGORIES, KV_CACHE, SCHEMAS, table


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


def curve_table(spec: RunSpec, rank: int, times: Sequence[tuple[int, int]] | None = None) -> pd.DataFrame:
    """The composition over one step, as `memory_curve` has it: at the start and at the highest point of each action.

    `times`: start and end of each action of the rank's stage, in nanoseconds. None: those of the textbook, where F takes 1 ms
    on a stage, B 2 ms, I and W 1 ms each, shared by its chunks, and the optimizer's step none.
    """
    at = spec.layout.mesh.coordinate(rank)
    stages = opened_stages(spec, stage_actions(spec))
    schedule = plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    standing, walk = stages.walk(at.pp, schedule)
    if times is None:
        timed = [t for t in replay(schedule, textbook(spec.layout)) if t.stage == at.pp]
        times = [(round(t.start * UNIT_NS), round(t.end * UNIT_NS)) for t in timed]
    now = _by_category(standing)
    rows: list[dict[str, Any]] = []

    def put(time: int, action: Action, composition: dict[str, int]) -> None:
        rows.extend(
            {"rank": rank, "t_ns": time, "action": str(action), "category": c, "bytes": n} for c, n in composition.items()
        )

    for one, (start, end) in zip(walk.actions(), times, strict=True):
        put(start, one.action, now)
        for change in one.before:
            now = _plus(now, _by_category(change.counts))
        if one.trace is not None:
            top = _by_category(one.trace.counts_at(one.trace.highest[1]))
            put((start + end) // 2, one.action, _plus(now, top))
            now = _plus(now, _by_category(one.trace.net.counts))
        for change in one.after:
            now = _plus(now, _by_category(change.counts))
    put(max(end for _, end in times), one.action, now)
    return table("memory_curve", rows, "formula")


def generation_curve_table(spec: RunSpec, rank: int, schedule: Schedule, times: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The same for generating without training: the passes of the prompt and of the last token. Memory grows between them.

    `schedule`: that of the generation. `times`: as for `curve_table`. Raises `NotRecordedError`.
    """
    stage = spec.layout.mesh.coordinate(rank).pp
    at = {(a.chunk, a.microbatch): span for a, span in zip(schedule.stages[stage], times, strict=True) if a.kind == "F"}
    generation = opened_generation(spec)
    standing = _by_category(generation.standing(stage), (*CATEGORIES, KV_CACHE))
    rows: list[dict[str, Any]] = []
    for chunk, token, there in generation.passes(stage):
        start, end = at[chunk, token]
        highest = _plus(standing, _by_category(there, (*CATEGORIES, KV_CACHE)))
        for time, composition in ((start, standing), ((start + end) // 2, highest), (end, standing)):
            where = {"rank": rank, "t_ns": time, "action": f"F chunk {chunk} microbatch {token}"}
            rows.extend(where | {"category": c, "bytes": n} for c, n in composition.items())
    return table("memory_curve", rows, "formula")


def _by_category(counts: Counts, categories: Sequence[str] = CATEGORIES) -> dict[str, int]:
    found = dict.fromkeys(categories, 0)
    for kind, count in counts.items():
        found[kind.category] += count * size_of(kind.factors)
    return found


def _plus(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {category: size + other[category] for category, size in one.items()}
