"""The differences of two columns in words: "+31% traffic, −42% peak memory on rank 0"."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from engine.tables import RunResult
from pages.charts.words import Words
from pages.shared.predicted import listed

_NOTICED = 0.005  # smaller relative differences are left out


@dataclass(frozen=True)
class Difference:
    """`share`: the change relative to the first column. `text`: the same in words. `better` is None if neither is better."""

    text: str
    share: float
    better: bool | None


def differences(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """The differences, the largest first. Small ones are left out."""
    found = [
        *_memory(base, other, say),
        *_traffic(base, other, say),
        *_bubble(base, other, say),
        *_time(base, other, say),
    ]
    return sorted((d for d in found if abs(d.share) >= _NOTICED), key=lambda d: -abs(d.share))


def signed(share: float) -> str:
    """ "+31%", "−42%"; a large increase is a factor: "×5.2"."""
    if share >= 4:
        return f"×{1 + share:.3g}"
    return f"{'+' if share > 0 else '−'}{100 * abs(share):.{1 if abs(share) < 0.1 else 0}f}%"


def _memory(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    ours, theirs = _totals(base), _totals(other)
    found = []
    share = _share(int(ours.max()), int(theirs.max()))
    found.append(Difference(say("{change} peak memory on the fullest rank", change=signed(share)), share, share < 0))
    if ours.index.equals(theirs.index):  # with the same ranks: the rank that changes most
        shares = theirs / ours - 1
        most = int(shares.index[int(shares.abs().argmax())])
        if abs(shares[most] - share) >= _NOTICED:
            change = float(shares[most])
            text = say("{change} peak memory on rank {rank}", change=signed(change), rank=most)
            found.append(Difference(text, change, change < 0))
    return found


def _traffic(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    ours, theirs = _sent(base), _sent(other)
    found = []
    for axis in sorted(set(ours.index) | set(theirs.index)):
        before, after = float(ours.get(axis, 0)), float(theirs.get(axis, 0))
        if before and after:
            share = _share(before, after)
            text = say("{change} {axis} traffic per rank", change=signed(share), axis=axis)
            found.append(Difference(text, share, share < 0))
        elif before or after:
            text = say("no {axis} traffic", axis=axis) if before else say("new {axis} traffic", axis=axis)
            found.append(Difference(text, -1.0 if before else 1.0, bool(before)))
    if ours.sum() and theirs.sum() and len(set(ours.index) | set(theirs.index)) > 1:
        share = _share(float(ours.sum()), float(theirs.sum()))
        found.append(Difference(say("{change} traffic per rank, over all axes", change=signed(share)), share, share < 0))
    return found


def _bubble(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """In percentage points, because a bubble is a share already."""
    points = other.summary["bubble"] - base.summary["bubble"]
    text = say("bubble {change} percentage points", change=f"{'+' if points > 0 else '−'}{100 * abs(points):.1f}")
    return [Difference(text, points, points < 0)]


def _time(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """The difference in time, if both were measured."""
    if not (_measured(base) and _measured(other)):
        return []
    share = _share(base.summary["step_ns"], other.summary["step_ns"])
    return [Difference(say("{change} step time, on this machine", change=signed(share)), share, share < 0)]


def _measured(result: RunResult) -> bool:
    """Whether times are in ns. A dry run also has the time of a step, in the textbook's units."""
    return bool((result.tables["memory_peak"]["source"] == "measured").all())


def _totals(result: RunResult) -> pd.Series[int]:
    return result.tables["memory_peak"].groupby("rank")["bytes"].sum()


def _sent(result: RunResult) -> pd.Series[float]:
    """Mean wire bytes of a rank in a step, by axis."""
    return result.tables["traffic"].groupby("axis")["wire_bytes"].sum() / listed(result.spec.layout)


def _share(before: float, after: float) -> float:
    return after / before - 1 if before else 0.0
