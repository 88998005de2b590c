"""The numbers of a search in a lesson. It does not import Streamlit, so that the worker process starts fast."""

from __future__ import annotations

from typing import NamedTuple

from engine import catalog
from engine.devices import DEVICES
from engine.launch.recording import with_ledgers
from engine.planner.search import search


class SearchSummary(NamedTuple):
    """The number of all layouts and of those that fit, and the fastest that fits."""

    all: int
    fit: int
    best: str
    schedule: str
    seconds: float


def summarize_search(model: str, count: int, device: str, batch: int) -> SearchSummary:
    """Search all layouts. Raises `RequestError` if there are none."""
    found = with_ledgers(lambda: search(catalog.model(model), count, DEVICES[device], batch))
    first = found.layouts.iloc[0]
    return SearchSummary(len(found.layouts), found.feasible, str(first["layout"]), str(first["schedule"]), float(first["step_s"]))
