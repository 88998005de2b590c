"""Predicted memory as tables: the peak of every rank, and the curve of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine.predict.memory.blocks import Counts, size_of
from engine.predict.memory.generation import Generation
from engine.predict.memory.passes import ActionTrace
from engine.predict.memory.peaks import Memory, memory
from engine.predict.memory.shortened import Shortened
from engine.predict.memory.stages import Stages
from engine.schedule import Action, Schedule, plan, replay
from engine.schedule.orders import KINDS
from engine.schedule.timeline import UNIT_NS, textbook
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
    at, m = spec.layout.mesh.coordinate(rank), spec.workload.microbatches
    stages, schedule = Stages(spec, Shortened(m)), plan(spec.layout, m, spec.model.parts.tied)
    actions = schedule.stages[at.pp]
    walk, step = stages.walk(at.pp, actions), stages.step(at.pp)
    if times is None:
        timed = [t for t in replay(schedule, textbook(spec.layout)) if t.stage == at.pp]
        times = [(round(t.start * UNIT_NS), round(t.end * UNIT_NS)) for t in timed]
    standing, rows = _by_category(stages.standing(at.pp)), list[dict[str, Any]]()
    before = {category: walk.bytes_before(category).tolist() for category in CATEGORIES}
    passes, stepped = iter(range(len(walk.of))), False

    def put(time: int, action: Action, composition: dict[str, int]) -> None:
        rows.extend(
            {"rank": rank, "t_ns": time, "action": str(action), "category": c, "bytes": n} for c, n in composition.items()
        )

    for row, (action, (start, end)) in enumerate(zip(actions, times, strict=True)):
        now = standing if stepped else _plus(standing, {category: int(of[row]) for category, of in before.items()})
        put(start, action, now)
        stepped = stepped or action.kind == "step"
        if action.kind in (*KINDS, "step", "reduce"):
            # Before the optimizer's step all messages are gone. The end of a reduction allocates nothing.
            trace = {"step": step, "reduce": ActionTrace()}.get(action.kind) or walk.trace(next(passes))
            top = _by_category(trace.counts_at(trace.highest[1]))
            put((start + end) // 2, action, _plus(standing if stepped else now, top))
    put(max(end for _, end in times), actions[-1], standing)
    return table("memory_curve", rows, "formula")


def generation_curve_table(spec: RunSpec, rank: int, schedule: Schedule, times: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The same for generating without training: the passes of the prompt and of the last token. Memory grows between them.

    `schedule`: that of the generation. `times`: as for `curve_table`. Raises `NotRecordedError`.
    """
    stage = spec.layout.mesh.coordinate(rank).pp
    at = {(a.chunk, a.microbatch): span for a, span in zip(schedule.stages[stage], times, strict=True) if a.kind == "F"}
    generation = Generation(spec)
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
