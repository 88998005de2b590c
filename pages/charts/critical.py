"""The critical path of a measured pipeline: the chain of passes that its last pass waited for."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from engine.summary import WORK
from engine.topology import Mesh


class _Pass(NamedTuple):
    label: int  # index label of its row in the table
    rank: int
    kind: str
    chunk: int
    microbatch: int
    start: int
    end: int


def critical_path(spans: pd.DataFrame, mesh: Mesh) -> set[int]:
    """Index labels of the spans on the critical path of the pipeline that ends last.

    A pass waits for the pass before it on its rank and for the passes that produce its inputs. The one that ended last is on the
    path. Waiting for other tp slices and dp replicas is part of a pass and is not shown.
    """
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    fields = (work[c] for c in ("rank", "kind", "chunk", "microbatch", "start_ns", "end_ns"))
    every = [_Pass(*row) for row in zip(work.index, *fields, strict=True)]
    if not every:
        return set()
    last, per_stage = max(every, key=lambda p: p.end), mesh.stride("pp")
    pipeline = sorted((p for p in every if p.rank % per_stage == last.rank % per_stage), key=lambda p: p.start)
    before: dict[int, _Pass] = {}
    latest: dict[int, _Pass] = {}
    for p in pipeline:
        if p.rank in latest:
            before[p.label] = latest[p.rank]
        latest[p.rank] = p
    made = {(p.kind, p.chunk, p.microbatch): p for p in pipeline}

    found, current = {last.label}, last
    while True:
        keys = [(kind, chunk, current.microbatch) for kind, chunk in _producers(current)]
        produced = [made[key] for key in keys if key in made]
        earlier = [p for p in (*produced, *([before[current.label]] if current.label in before else [])) if p.label not in found]
        if not earlier:
            return found
        current = max(earlier, key=lambda p: p.end)
        found.add(current.label)


def _producers(consumer: _Pass) -> list[tuple[str, int]]:
    """(kind, chunk) of the passes that produce a pass's inputs."""
    if consumer.kind == "F":
        return [("F", consumer.chunk - 1)]
    if consumer.kind == "W":
        return [("I", consumer.chunk)]
    return [("B", consumer.chunk + 1), ("I", consumer.chunk + 1), ("F", consumer.chunk)]
