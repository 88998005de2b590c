"""In what two columns differ, named: "+31% traffic, −42% peak memory on rank 0"."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from engine.tables import RunResult
from pages.charts.words import Words
from pages.shared.predicted import listed

_NOTICED = 0.005  # a smaller share is no difference that anybody should act on


@dataclass(frozen=True)
class Difference:
    """`share` is the change relative to the first column; `text` says it; `better` is None where neither is."""

    text: str
    share: float
    better: bool | None


def differences(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """The largest first. What hardly differs is left out."""
    found = [
        *_memory(base, other, say),
        *_traffic(base, other, say),
        *_bubble(base, other, say),
        *_time(base, other, say),
    ]
    return sorted((d for d in found if abs(d.share) >= _NOTICED), key=lambda d: -abs(d.share))


def signed(share: float) -> str:
    """ "+31%", "−42%"; what grows many times over is a factor: "×5.2"."""
    if share >= 4:
        return f"×{1 + share:.3g}"
    return f"{'+' if share > 0 else '−'}{100 * abs(share):.{1 if abs(share) < 0.1 else 0}f}%"


def _memory(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    ours, theirs = _totals(base), _totals(other)
    found = []
    share = _share(int(ours.max()), int(theirs.max()))
    found.append(Difference(say("{change} peak memory on the fullest rank", change=signed(share)), share, share < 0))
    if ours.index.equals(theirs.index):  # rank by rank, where the ranks are as many: the one that changes most
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
            text = say("{change} {axis} traffic a rank", change=signed(share), axis=axis)
            found.append(Difference(text, share, share < 0))
        elif before or after:
            text = say("no {axis} traffic", axis=axis) if before else say("{axis} traffic, where there was none", axis=axis)
            found.append(Difference(text, -1.0 if before else 1.0, bool(before)))
    if ours.sum() and theirs.sum() and len(set(ours.index) | set(theirs.index)) > 1:
        share = _share(float(ours.sum()), float(theirs.sum()))
        found.append(Difference(say("{change} traffic a rank, over all axes", change=signed(share)), share, share < 0))
    return found


def _bubble(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """In points, since a bubble is a share already."""
    points = other.summary["bubble"] - base.summary["bubble"]
    text = say("{change} points of bubble", change=f"{'+' if points > 0 else '−'}{100 * abs(points):.1f}")
    return [Difference(text, points, points < 0)]


def _time(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    """Where both were measured."""
    if not (_measured(base) and _measured(other)):
        return []
    share = _share(base.summary["step_ns"], other.summary["step_ns"])
    return [Difference(say("{change} time a step, on this machine", change=signed(share)), share, share < 0)]


def _measured(result: RunResult) -> bool:
    """By the clock: a dry run has a step's time as well, in the textbook's units."""
    return bool((result.tables["memory_peak"]["source"] == "measured").all())


def _totals(result: RunResult) -> pd.Series[int]:
    return result.tables["memory_peak"].groupby("rank")["bytes"].sum()


def _sent(result: RunResult) -> pd.Series[float]:
    """Wire bytes of a rank in a step, by axis: the mean over all ranks."""
    return result.tables["traffic"].groupby("axis")["wire_bytes"].sum() / listed(result.spec.layout)


def _share(before: float, after: float) -> float:
    return after / before - 1 if before else 0.0
