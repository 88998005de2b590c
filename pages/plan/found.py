"""The part of a search's result that the page keeps. It imports neither Streamlit nor Altair, so that the worker starts fast.

A search has a hundred thousand layouts in 30 MB. The page draws and lists a hundredth of them. The worker process caches the
whole result for a while, for later calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd

from engine.devices import DeviceSpec
from engine.launch.recording.client import with_ledgers
from engine.planner.search import Plan
from engine.planner.serving import serving
from engine.predict.speed.step_time import PARTS
from engine.spec import RunSpec
from engine.topology import AXES
from pages.plan.request import Request
from pages.shared.cache import cached

TOP = 20  # best layouts, which the page lists
MOST_POINTS = 1_200  # drawn: a browser is fast enough for them. The Pareto front and the fastest are always drawn
_SLOWEST, _LARGEST = 10, 4  # times the fastest, times the device's memory: layouts beyond are not drawn


@dataclass(frozen=True)
class Found:
    """The layouts that are drawn, listed or requested, of `count` layouts. The first `feasible` of all fit.

    `plan` has only these. The index of `plan.layouts` is the number of a layout among all, from 0, ascending. Its column `drawn`
    says whether the layout is in the chart.
    """

    count: int
    feasible: int
    plan: Plan
    baseline: int | None  # the number of the best layout that is ZeRO 3 over all devices with recompute; None if there is none

    def __contains__(self, row: int) -> bool:
        return row in self.plan.layouts.index

    @property
    def layouts(self) -> pd.DataFrame:
        return self.plan.layouts

    @property
    def device(self) -> DeviceSpec:
        return self.plan.device

    def at(self, row: int) -> int:
        """The position in `plan` of the layout with this number."""
        place = int(self.layouts.index.searchsorted(row))
        assert self.layouts.index[place] == row
        return place

    def layout(self, row: int) -> pd.Series[Any]:
        """The columns of a layout, by its number."""
        return self.layouts.iloc[self.at(row)]

    def spec(self, row: int) -> RunSpec:
        return self.plan.spec(self.at(row))

    def parts(self, row: int) -> dict[str, float]:
        """The seconds of a step, by part."""
        return {name: float(getattr(self.plan.step_time, name)[self.at(row)]) for name in PARTS}


def found(request: Request, row: int = 0) -> Found:
    """Search. `row`: the number of a layout to include. Raises `RequestError` if no layout fits the numbers."""
    plan = _whole(request)
    layouts, numbers = plan.layouts, np.arange(len(plan.layouts))
    drawn = _drawn(layouts, plan.device.memory_bytes)
    baseline = _baseline(layouts)
    rows = np.flatnonzero(drawn | (numbers < TOP) | layouts["pareto"].to_numpy() | (numbers == row) | (numbers == baseline))
    few = layouts.iloc[rows].set_axis(rows).assign(drawn=drawn[rows])
    for name in few.select_dtypes("category"):
        few[name] = few[name].cat.remove_unused_categories()  # nearly every layout that does not fit has its own text
    return Found(
        len(layouts),
        plan.feasible,
        replace(plan, layouts=few, grid=plan.grid.take(rows), step_time=plan.step_time.take(rows)),
        baseline,
    )


def _baseline(layouts: pd.DataFrame) -> int | None:
    """What most people try first: every device is a replica, ZeRO 3 shards everything, and activations are computed again."""
    alone = np.logical_and.reduce([layouts[axis] == 1 for axis in AXES if axis != "dp"])
    alone &= (layouts["zero_replicas"] == 1).to_numpy() & (layouts["recompute_layers"] == 0).to_numpy()
    plain = np.flatnonzero(alone & (layouts["zero"] == 3) & (layouts["recompute"] != "none"))
    return int(plain[0]) if len(plain) else None


def as_zip(request: Request) -> bytes:
    """All layouts as a CSV file in a zip. The text has tens of MB, and the server keeps the file until the browser has it."""
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr("shardscope-plan.csv", _whole(request).layouts.to_csv(index=False))
    return file.getvalue()


@cached(2)
def _whole(request: Request) -> Plan:
    """The whole search. Raises `RequestError`."""
    return request.plan()


def _drawn(layouts: pd.DataFrame, capacity: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which layouts are drawn: at most about `MOST_POINTS` of `_near`.

    They are the Pareto front, the fastest, and an even sample of the rest.
    """
    near, front = _near(layouts, capacity), layouts["pareto"].to_numpy()
    if near.sum() <= MOST_POINTS:
        return near
    drawn = near & (front | (np.arange(len(layouts)) < MOST_POINTS // 3))
    rest = np.flatnonzero(near & ~drawn)
    drawn[rest[:: max(1, len(rest) // (MOST_POINTS * 2 // 3))]] = True
    return drawn


def _near(layouts: pd.DataFrame, capacity: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The layouts in the chart's range.

    They take at most ten times as long as the fastest and at most four times the device's memory. Others would make the range so
    large that these could not be distinguished. Of the Pareto front, forty times as long is allowed.
    """
    step, memory, front = (layouts[name].to_numpy() for name in ("step_s", "memory_bytes", "pareto"))
    near = (step <= _SLOWEST * step.min()) & (memory <= _LARGEST * capacity)
    if not near.any():  # all are too large: those that need least memory
        near = memory <= 2 * memory.min()
    return near | (front & (step <= 4 * _SLOWEST * step.min()))


def served_by(request: Request, length: int, sequences: int | None) -> pd.DataFrame:
    """The table of `engine.planner.serving` for the request's model. Raises `RequestError`."""
    asked = request.spec, request.ranks, request.hardware, length, sequences, request.workload.precision, request.assumed
    return with_ledgers(lambda: serving(*asked, kept_free=request.kept_free))
