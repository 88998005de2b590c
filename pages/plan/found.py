"""What the page keeps of a search. Without Streamlit and Altair, so that the process which searches starts at once.

A search weighs a hundred thousand layouts, which take 30 MB; what is drawn and listed of them is a hundredth. They all stay for a
while with the process that searched, which is asked again for whatever else is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd

from engine.devices import DeviceSpec
from engine.launch.recording import with_ledgers
from engine.predict.planner.search import Plan
from engine.predict.planner.serving import serving
from engine.predict.speed.step_time import PARTS
from engine.spec import RunSpec
from pages.plan.request import Request
from pages.shared.cache import cached

TOP = 20  # of the best layouts, which the page lists
MOST_POINTS = 1_200  # a browser draws so many quickly; the front and the fastest are always among them
_SLOWEST, _LARGEST = 10, 4  # times the fastest, and times the device, beyond which a layout is not drawn


@dataclass(frozen=True)
class Found:
    """Of `count` layouts, the first `feasible` of which fit: those that are drawn, listed or asked for.

    `plan` has these alone. The index of `plan.layouts` is each one's number among all, from 0 and ascending; its column `drawn`
    tells which belong to the chart.
    """

    count: int
    feasible: int
    plan: Plan

    def __contains__(self, row: int) -> bool:
        return row in self.plan.layouts.index

    @property
    def layouts(self) -> pd.DataFrame:
        return self.plan.layouts

    @property
    def device(self) -> DeviceSpec:
        return self.plan.device

    def at(self, row: int) -> int:
        """Where in `plan` a layout is, by its number."""
        place = int(self.layouts.index.searchsorted(row))
        assert self.layouts.index[place] == row
        return place

    def layout(self, row: int) -> pd.Series[Any]:
        """The columns of a layout, by its number."""
        return self.layouts.iloc[self.at(row)]

    def spec(self, row: int) -> RunSpec:
        return self.plan.spec(self.at(row))

    def parts(self, row: int) -> dict[str, float]:
        """Seconds of a step by what they are spent on."""
        return {name: float(getattr(self.plan.step_time, name)[self.at(row)]) for name in PARTS}


def found(request: Request, row: int = 0) -> Found:
    """Search. `row`: the number of a layout that is asked for. Raises `RequestError` where numbers go with no layout."""
    plan = _whole(request)
    layouts, numbers = plan.layouts, np.arange(len(plan.layouts))
    drawn = _drawn(layouts, plan.device.memory_bytes)
    rows = np.flatnonzero(drawn | (numbers < TOP) | layouts["pareto"].to_numpy() | (numbers == row))
    few = layouts.iloc[rows].set_axis(rows).assign(drawn=drawn[rows])
    for name in few.select_dtypes("category"):
        few[name] = few[name].cat.remove_unused_categories()  # there is a text for nearly every layout that does not fit
    return Found(
        len(layouts), plan.feasible, replace(plan, layouts=few, grid=plan.grid.take(rows), step_time=plan.step_time.take(rows))
    )


def as_zip(request: Request) -> bytes:
    """All layouts as a CSV file in a zip: tens of MB of text, which the server keeps while it is fetched."""
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr("shardscope-plan.csv", _whole(request).layouts.to_csv(index=False))
    return file.getvalue()


@cached(2)
def _whole(request: Request) -> Plan:
    """Raises `RequestError`."""
    return request.plan()


def _drawn(layouts: pd.DataFrame, capacity: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which layouts are drawn: at most about `MOST_POINTS` of those near.

    Those of the front, the fastest, and an even sample of the rest.
    """
    near, front = _near(layouts, capacity), layouts["pareto"].to_numpy()
    if near.sum() <= MOST_POINTS:
        return near
    drawn = near & (front | (np.arange(len(layouts)) < MOST_POINTS // 3))
    rest = np.flatnonzero(near & ~drawn)
    drawn[rest[:: max(1, len(rest) // (MOST_POINTS * 2 // 3))]] = True
    return drawn


def _near(layouts: pd.DataFrame, capacity: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The layouts worth drawing.

    No slower than ten times the fastest, or than what of the front is, and no larger than four times the device: what lies
    beyond would take most of the room.
    """
    step, memory, front = (layouts[name].to_numpy() for name in ("step_s", "memory_bytes", "pareto"))
    near = (step <= _SLOWEST * step.min()) & (memory <= _LARGEST * capacity)
    if not near.any():  # nothing comes near the device: those that come nearest
        near = memory <= 2 * memory.min()
    return near | (front & (step <= 4 * _SLOWEST * step.min()))


def served_by(request: Request, length: int, sequences: int | None) -> pd.DataFrame:
    """Every layout that serves the request's model, as `engine.predict.planner.serving` has it. Raises `RequestError`."""
    workload = request.workload
    asked = request.spec, request.ranks, request.hardware, length, sequences, workload.precision, request.assumed
    return with_ledgers(lambda: serving(*asked))
