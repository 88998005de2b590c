"""What a measured pipeline waited for: the chain of passes that the last of them goes back to."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from engine.summary import WORK
from engine.topology import Mesh


class _Pass(NamedTuple):
    label: int  # of its row in the table
    rank: int
    kind: str
    chunk: int
    microbatch: int
    start: int
    end: int


def critical_path(spans: pd.DataFrame, mesh: Mesh) -> set[int]:
    """Index labels of the spans on the chain, which runs through one pipeline: the one that ends last.

    A pass goes on from whichever ended later: the pass before it on its rank, or the one that made what it takes in. Waits for
    ranks of other slices and replicas lie inside passes and are not told apart.
    """
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    fields = (work[c] for c in ("rank", "kind", "chunk", "microbatch", "start_ns", "end_ns"))
    every = [_Pass(*row) for row in zip(work.index, *fields, strict=True)]
    if not every:
        return set()
    last, per_stage = max(every, key=lambda p: p.end), mesh.stride("pp")
    mine = sorted((p for p in every if p.rank % per_stage == last.rank % per_stage), key=lambda p: p.start)
    before: dict[int, _Pass] = {}
    latest: dict[int, _Pass] = {}
    for p in mine:
        if p.rank in latest:
            before[p.label] = latest[p.rank]
        latest[p.rank] = p
    made = {(p.kind, p.chunk, p.microbatch): p for p in mine}

    found, at = {last.label}, last
    while True:
        given = [made[kind, chunk, at.microbatch] for kind, chunk in _makers(at) if (kind, chunk, at.microbatch) in made]
        ahead = [p for p in (*given, *([before[at.label]] if at.label in before else [])) if p.label not in found]
        if not ahead:
            return found
        at = max(ahead, key=lambda p: p.end)
        found.add(at.label)


def _makers(of: _Pass) -> list[tuple[str, int]]:
    """(kind, chunk) of the passes that a pass takes something from."""
    if of.kind == "F":
        return [("F", of.chunk - 1)]
    if of.kind == "W":
        return [("I", of.chunk)]
    return [("B", of.chunk + 1), ("I", of.chunk + 1), ("F", of.chunk)]
