"""Which models fit on how many devices, and how well: the best layout of every combination."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from engine.predict.search import search
from engine.spec import RequestError, sentence
from pages.charts import plan as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes
from pages.plan.request import Request
from pages.shared import drawing, frame

MODELS = ("gpt2-1.5b", "gpt3-6.7b", "llama3-8b", "gpt3-13b", "llama3-70b", "gpt3-175b", "llama3-405b")
COUNTS = (1, 8, 64, 256, 1024, 4096)


def draw(request: Request) -> None:
    """On a button, since it is as many searches as it has cells."""
    say = frame.say()
    with st.expander(say("Other models, other numbers of devices"), key="plan-heatmap-open", on_change="rerun") as opened:
        if opened.open:
            with st.spinner(say("Searching {count} combinations", count=len(MODELS) * len(COUNTS))):
                made = heatmap(_asked(request), frame.view())
            drawing.show(made, "plan-heatmap")


def _asked(request: Request) -> Request:
    """Without what a cell has of its own, so that moving those does not search anew."""
    return replace(request, model=MODELS[0], ranks=1, batch=1, seq=0)


@st.cache_data(max_entries=16, show_spinner=False)
def heatmap(request: Request, view: View) -> Drawing:
    return drawing.packed(charts.heatmap(cells(request), look(view)))


@st.cache_data(max_entries=16, show_spinner=False)
def cells(request: Request) -> pd.DataFrame:
    """model, ranks, layout, mfu, reason: a row a combination; mfu is missing where nothing fits, and the reason says why."""
    return pd.DataFrame([_cell(request, model, ranks) for model in MODELS for ranks in COUNTS])


def _cell(request: Request, model: str, ranks: int) -> dict[str, object]:
    """Two sequences a device and step, and at least 8: what can be divided in many ways."""
    asked = replace(request, model=model, ranks=ranks, batch=max(8, 2 * ranks))
    row: dict[str, object] = {"model": model, "ranks": ranks, "layout": "", "mfu": float("nan"), "reason": ""}
    try:
        plan = search(asked.spec, ranks, asked.hardware, asked.batch, asked.workload, asked.assumed, asked.accounting, replayed=0)
    except RequestError as error:
        return row | {"reason": error.sentence}
    best = plan.layouts.iloc[0]
    if not plan.feasible:
        need, have = int(best["memory_bytes"]), plan.device.memory_bytes
        reason = sentence("needs {need}, and the device has {size}", need=in_bytes(need), size=in_bytes(have))
        return row | {"layout": best["layout"], "reason": reason}
    return row | {"layout": best["layout"], "mfu": float(best["mfu"])}
