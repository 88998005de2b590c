"""What a measured pipeline waited for: the chain of passes that the last of them goes back to."""

from __future__ import annotations

import pandas as pd

from engine.summary import WORK
from engine.topology import Mesh


def critical_path(spans: pd.DataFrame, mesh: Mesh) -> set[int]:
    """Index labels of the spans on the chain, which runs through one pipeline: the one that ends last.

    A pass goes on from whichever ended later: the pass before it on its rank, or the one that made what it takes in. Waits for
    ranks of other slices and replicas lie inside passes and are not told apart.
    """
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    if work.empty:
        return set()
    per_stage = mesh.dp * mesh.tp
    last = int(work["end_ns"].idxmax())
    work = work[work["rank"] % per_stage == work.at[last, "rank"] % per_stage].sort_values("start_ns", kind="stable")
    before = dict(zip(work.index, work.index.to_series().groupby(work["rank"]).shift(fill_value=-1), strict=True))
    passes = {(r.kind, r.chunk, r.microbatch): r.Index for r in work.itertuples()}
    ends, found, at = work["end_ns"].to_dict(), set(), last
    while at != -1:
        found.add(at)
        kind, chunk, microbatch = work.loc[at, ["kind", "chunk", "microbatch"]]
        makers = {"F": [("F", chunk - 1)], "B": _back(chunk), "I": _back(chunk), "W": [("I", chunk)]}[kind]
        given = [passes[k, c, microbatch] for k, c in makers if (k, c, microbatch) in passes]
        at = max((i for i in (before[at], *given) if i != -1 and i not in found), key=ends.__getitem__, default=-1)
    return found


def _back(chunk: int) -> list[tuple[str, int]]:
    """What a backward pass goes on from: the next chunk's, and its own forward."""
    return [("B", chunk + 1), ("I", chunk + 1), ("F", chunk)]
