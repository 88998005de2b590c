"""The numbers of a search in a lesson. It does not import Streamlit, so that the worker process starts fast."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from engine import catalog
from engine.devices import DEVICES
from engine.launch.recording.client import with_ledgers
from engine.planner.search import Plan, search
from engine.spec import LayoutSpec


class SearchSummary(NamedTuple):
    """The number of all layouts and of those that fit. `plan` has the fastest, and behind it the layout that was asked about.

    If that is the fastest, or is none of the search's layouts, `plan` has the fastest alone.
    """

    all: int
    fit: int
    plan: Plan


def summarize_search(model: str, count: int, device: str, batch: int, about: LayoutSpec) -> SearchSummary:
    """Search all layouts, as the Plan page does. Raises `RequestError` if there are none.

    `about` has one sequence in a microbatch.
    """
    found = with_ledgers(lambda: search(catalog.model(model), count, DEVICES[device], batch))
    same = found.layouts["microbatch_size"] == 1
    alike = (
        "dp",
        "cp",
        "tp",
        "pp",
        "ep",
        "chunks",
        "schedule",
        "zero",
        "zero_replicas",
        "sequence_parallel",
        "recompute",
        "recompute_layers",
    )
    for name in alike:
        same &= found.layouts[name] == getattr(about, name)
    rows = np.unique([0, *np.flatnonzero(same)])
    kept = replace(found, layouts=found.layouts.iloc[rows], grid=found.grid.take(rows), step_time=found.step_time.take(rows))
    for text in kept.layouts.select_dtypes("category"):
        kept.layouts[text] = kept.layouts[text].cat.remove_unused_categories()  # very many layouts have a text of their own
    return SearchSummary(len(found.layouts), found.feasible, kept)
