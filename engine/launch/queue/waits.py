"""How long a run will wait, estimated from the runs of this queue that are over. Imports no torch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from engine.spec import RunSpec

_NEWEST = 0.3  # weight of the newest run in the averages
# What a pass of one microbatch through a layer costs beside its arithmetic, in floating-point operations: about a millisecond of
# a core. The smallest models spend their time there.
_PASS = 2e7


@dataclass
class Going:
    """An active run."""

    spec: RunSpec
    since: float  # when it was started
    ready: float | None = None  # when its ranks were ready to train
    step: int = 0  # finished steps
    stepped: float = 0.0  # when the last of them ended


class Pace:
    """How fast runs of this queue were: seconds besides training steps, and for a unit of a step's work."""

    def __init__(self) -> None:
        self._besides_s: float | None = None
        self._unit_s: float | None = None

    def note(self, run: Going, now: float) -> None:
        """Take a run into account that is done."""
        if run.ready is None or not run.step:
            return
        trained = run.stepped - run.ready
        self._besides_s = _averaged(self._besides_s, now - run.since - trained)
        self._unit_s = _averaged(self._unit_s, trained / (run.step * _work(run.spec)))

    def seconds(self, spec: RunSpec) -> float | None:
        """Estimated time of a run. None before any run is done."""
        if self._besides_s is None or self._unit_s is None:
            return None
        return min(self._besides_s + self._unit_s * _work(spec) * spec.workload.steps, spec.workload.time_limit)

    def left(self, run: Going, now: float) -> float | None:
        """Estimated time until an active run is over: from its own steps, if it has made any. None before any run is done."""
        whole = self.seconds(run.spec)
        if whole is None or self._besides_s is None:
            return None
        if run.ready is not None and run.step:
            of_step = (run.stepped - run.ready) / run.step
            left = of_step * (run.spec.workload.steps - run.step) + self._besides_s - (run.ready - run.since)
            return max(0.0, left - (now - run.stepped))
        return max(0.0, whole - (now - run.since))


def _averaged(before: float | None, new: float) -> float:
    return new if before is None else _NEWEST * new + (1 - _NEWEST) * before


def _work(spec: RunSpec) -> float:
    """About proportional to the core-seconds of a step, which ranks share between them if cores are fewer."""
    workload, layout = spec.workload, spec.layout
    microbatches = layout.dp * workload.microbatches
    tokens = microbatches * workload.microbatch_size * spec.model.seq
    return 6.0 * spec.model.parameters() * tokens + _PASS * microbatches * spec.model.layers * layout.tp


def expected_wait(
    spec: RunSpec, before: Iterable[RunSpec], active: Iterable[Going], pace: Pace, cores: int, now: float
) -> float | None:
    """Seconds until `spec` is started, behind the runs `before` that wait too. None before any run is done.

    Runs start in their order, as many at once as there are cores for their ranks.
    """
    ends: list[tuple[float, int]] = []  # (when a run is over, its ranks), from now
    for run in active:
        if (left := pace.left(run, now)) is None:
            return None
        heapq.heappush(ends, (left, run.spec.layout.ranks))
    starts = 0.0
    for waiting in (*before, spec):
        if (takes := pace.seconds(waiting)) is None:
            return None
        while ends and sum(ranks for _, ranks in ends) + waiting.layout.ranks > cores:
            starts = max(starts, heapq.heappop(ends)[0])
        heapq.heappush(ends, (starts + takes, waiting.layout.ranks))
    return starts
