"""Which models fit on how many devices, and how well: the best layout of every combination."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event
from typing import Any

import pandas as pd
import streamlit as st

from engine.spec import RequestError
from pages.charts import heatmap as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.words import Words
from pages.plan.cells import cell, unknown
from pages.plan.form import ROW
from pages.plan.request import Request
from pages.shared import drawing
from pages.shared.cache import cached
from pages.shared.frame import say, view
from pages.shared.subprocesses import max_processes, run_in_worker

MODELS = ("gpt2-1.5b", "gpt3-6.7b", "llama3-8b", "gpt3-13b", "llama3-70b", "gpt3-175b", "llama3-405b")
COUNTS = (1, 8, 64, 256, 1024, 4096)
MAP = "map"  # the link's parameter: whether it is shown
_EVERY_S = 0.25  # the bar moves
_PICKED = "plan/map-picked"


@st.fragment
def draw(request: Request) -> None:
    """The map, computed when it is opened: each cell is a search. Finished cells are cached, so an interrupted map continues."""
    words = say()
    if st.session_state.pop(_PICKED, False):
        st.rerun()
    shown = MAP in st.query_params
    label = words("Fit by model and number of devices")
    with st.expander(label, expanded=shown, key="plan-map-open", on_change="rerun") as opened:
        if not opened.open:
            st.query_params.pop(MAP, None)
            return
        if not shown:
            st.query_params[MAP] = "1"
        rows = _searched(_asked(request), words)
        drawing.show(_drawn(pd.DataFrame(rows), view()), "plan-heatmap", on_rank=lambda row: _plan(row, rows))


def _plan(row: int | None, rows: list[dict[str, Any]]) -> None:
    """Show the plan of the clicked cell. A callback."""
    if row is None or row >= len(rows):
        return
    model, ranks = rows[row]["model"], rows[row]["ranks"]
    held = {name: value for name, value in st.query_params.to_dict().items() if name not in (ROW, "seq")}
    # One assignment for all, so that it is one step in the browser's history.
    st.query_params.from_dict(held | {"model": model, "ranks": str(ranks), "batch": str(batch(ranks))})
    st.session_state[_PICKED] = True


def batch(ranks: int) -> int:
    """The global batch: two sequences a device, at least 8. It has many divisors."""
    return max(8, 2 * ranks)


def _asked(request: Request) -> Request:
    """The request without the fields that cells set, so that changing those does not start new searches."""
    return replace(request, model=MODELS[0], ranks=1, batch=1, seq=0)


@st.cache_data(max_entries=16, show_spinner=False)
def _drawn(rows: pd.DataFrame, view: View) -> Drawing:
    return drawing.packed(charts.heatmap(rows, look(view)))


def _searched(asked: Request, words: Words) -> list[dict[str, Any]]:
    """All cells, model by model, with a progress bar. A cell whose search takes too long says so.

    One model for each worker process at a time, and its cells one after the other: the next search of a model can use what the
    same process has cached.
    """
    count, done, leaves, bar = len(MODELS) * len(COUNTS), list[Request](), Event(), st.empty()

    def of_model(model: str) -> list[dict[str, Any]]:
        found = []
        for ranks in COUNTS:
            if leaves.is_set():
                break
            one = replace(asked, model=model, ranks=ranks, batch=batch(ranks))
            try:
                found.append(searched(one))
            except RequestError as error:
                found.append(unknown(one, error.sentence))
            done.append(one)
        return found

    threads = ThreadPoolExecutor(max_processes())
    try:
        models = [threads.submit(of_model, model) for model in MODELS]
        while wait(models, _EVERY_S).not_done:
            progress = words("{done} of {count} combinations searched", done=len(done), count=count)
            if done:
                progress += f" · {done[-1].model}, {done[-1].ranks:,}"
            bar.progress(len(done) / count, text=progress)
        bar.empty()
        return [row for model in models for row in model.result()]
    finally:  # also if the reader leaves: then Streamlit raises at the progress bar
        leaves.set()
        threads.shutdown(wait=False, cancel_futures=True)


@cached(512)
def searched(asked: Request) -> dict[str, Any]:
    """One cell: see `cells.cell`."""
    return run_in_worker(cell, asked)
