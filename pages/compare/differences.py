"""The differences of two columns in words, always the same four, in one order: step time, peak memory, bubble, traffic."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from engine.spec import RunSpec
from engine.tables import RunResult
from pages.charts.words import Words
from pages.shared.predicted import listed, predicted

_NOTICED = 0.005  # smaller relative differences are called none


@dataclass(frozen=True)
class Difference:
    """`share`: the change relative to the first column, 0 if it is not noticed. `text`: the same in words."""

    text: str
    share: float

    @property
    def better(self) -> bool | None:
        """None if neither is better. All four are better if they are smaller."""
        return self.share < 0 if self.share else None


def differences(base: RunResult, other: RunResult, say: Words) -> list[Difference]:
    return [_time(base, other, say), _memory(base, other, say), _bubble(base, other, say), _traffic(base, other, say)]


def signed(share: float) -> str:
    """ "+31%", "−42%"; a large increase is a factor: "×5.2"."""
    if share >= 4:
        return f"×{1 + share:.3g}"
    return f"{'+' if share > 0 else '−'}{100 * abs(share):.{1 if abs(share) < 0.1 else 0}f}%"


def layer_units(spec: RunSpec) -> float:
    """How many units of time a forward pass of a stage takes. A unit: one sequence through one layer on one device.

    The tp ranks share that work, and messages take no time. So columns with other stages and microbatches have one scale.
    """
    return spec.model.layers / spec.layout.pp * spec.workload.microbatch_size / spec.layout.tp


def textbook_step(spec: RunSpec) -> float:
    """The forward and backward passes of a step in `layer_units`, with the bubble. Raises `RequestError` as `predicted` does."""
    busy = 3 * spec.workload.microbatches * layer_units(spec)  # backward takes two forward passes
    return busy / (1 - float(predicted(spec).summary["bubble"]))


def _time(base: RunResult, other: RunResult, say: Words) -> Difference:
    """As measured, if both were measured; otherwise in textbook times."""
    if _measured(base) and _measured(other):
        share = _share(base.summary["step_ns"], other.summary["step_ns"])
        if not share:
            return Difference(say("same step time, on this machine"), share)
        return Difference(say("{change} step time, on this machine", change=signed(share)), share)
    share = _share(textbook_step(base.spec), textbook_step(other.spec))
    if not share:
        return Difference(say("same step time, in textbook units"), share)
    return Difference(say("{change} step time, in textbook units", change=signed(share)), share)


def _memory(base: RunResult, other: RunResult, say: Words) -> Difference:
    share = _share(int(_totals(base).max()), int(_totals(other).max()))
    if not share:
        return Difference(say("same peak memory on the fullest rank"), share)
    return Difference(say("{change} peak memory on the fullest rank", change=signed(share)), share)


def _bubble(base: RunResult, other: RunResult, say: Words) -> Difference:
    """In percentage points, because a bubble is a share already. Measured or in textbook times, as the step time is."""
    own = _measured(base) and _measured(other)
    before, after = (r.summary["bubble"] if own else predicted(r.spec).summary["bubble"] for r in (base, other))
    points = float(after - before)
    if abs(points) < _NOTICED:
        return Difference(say("same bubble"), 0.0)
    text = say("bubble {change} percentage points", change=f"{'+' if points > 0 else '−'}{100 * abs(points):.1f}")
    return Difference(text, points)


def _traffic(base: RunResult, other: RunResult, say: Words) -> Difference:
    ours, theirs = _sent(base), _sent(other)
    if not ours and theirs:
        return Difference(say("traffic, where the baseline has none"), 1.0)
    if ours and not theirs:
        return Difference(say("no traffic"), -1.0)
    share = _share(ours, theirs)
    if not share:
        return Difference(say("same traffic per rank"), share)
    return Difference(say("{change} traffic per rank", change=signed(share)), share)


def _measured(result: RunResult) -> bool:
    """Whether times are in ns. A dry run also has the time of a step, in the textbook's units."""
    return bool((result.tables["memory_peak"]["source"] == "measured").all())


def _totals(result: RunResult) -> pd.Series[int]:
    return result.tables["memory_peak"].groupby("rank")["bytes"].sum()


def _sent(result: RunResult) -> float:
    """Mean wire bytes of a rank in a step."""
    return float(result.tables["traffic"]["wire_bytes"].sum()) / listed(result.spec.layout)


def _share(before: float, after: float) -> float:
    """The relative change; 0 if it is not noticed."""
    share = after / before - 1 if before else 0.0
    return share if abs(share) >= _NOTICED else 0.0
