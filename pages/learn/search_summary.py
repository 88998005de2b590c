"""What a lesson asks of a search. Without Streamlit, so that the process which searches starts at once."""

from __future__ import annotations

from typing import NamedTuple

from engine import catalog
from engine.devices import DEVICES
from engine.predict.planner.search import search


class SearchSummary(NamedTuple):
    """Of all layouts: how many there are and fit, and the fastest that does."""

    all: int
    fit: int
    best: str
    schedule: str
    seconds: float


def summarize_search(model: str, count: int, device: str, batch: int) -> SearchSummary:
    """Raises `RequestError` where there is no layout at all."""
    found = search(catalog.model(model), count, DEVICES[device], batch)
    first = found.layouts.iloc[0]
    return SearchSummary(len(found.layouts), found.feasible, str(first["layout"]), str(first["schedule"]), float(first["step_s"]))
