"""The table of runs in HTML, with real checkboxes, links and sort buttons, for keyboards and screen readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts import names
from pages.charts.units import in_bytes, percent, scientific, short
from pages.charts.words import Words
from pages.runs.rows import COLUMNS, RunRow
from pages.shared.levers import levers_of

_HERE = Path(__file__).parent
_KEY = "runs/table"
LEFT = ("name", "saved", "model", "layout", "schedule", "levers")


def draw(
    rows: Sequence[RunRow],
    picked: Sequence[str],
    turn: int,
    sort: str,
    link: Callable[[str], str],
    say: Words,
    on_pick: Callable[[], None],
    on_sort: Callable[[], None],
) -> None:
    """Draw `rows`. `turn` increases when something other than the table changed `picked`; the table then takes `picked`.

    `link(name)` is the address that opens a run. Callbacks read the reader's input with `now_picked` and `now_sorted`.
    """
    _component()(
        key=_KEY,
        data={
            "caption": say("Saved runs"),
            "language": say.language,
            "columns": [{"key": key, "label": label, "left": key in LEFT} for key, label in _labels(say).items()],
            "rows": [
                {"name": row.name, "cells": cells(row, say), "saved": row.saved_ns // 1_000_000, "link": link(row.name)}
                for row in rows
            ],
            "picked": list(picked),
            "turn": turn,
            "sort": sort,
            "select": say("Select {name}", name="{name}"),
            "all": say("Select all that are shown"),
        },
        default={"picked": list(picked)},
        on_picked_change=on_pick,
        on_sorted_change=on_sort,
        width="stretch",
        height="content",
    )


def now_picked() -> list[str]:
    """The checked names, in the order in which they were checked."""
    return list(_state().get("picked") or ())


def now_sorted() -> str:
    """The column whose heading was clicked; empty if none."""
    return _state().get("sorted") or ""


def _state() -> dict[str, Any]:
    return st.session_state.get(_KEY) or {}


def _labels(say: Words) -> dict[str, str]:
    labels = {
        "name": say("Name"),
        "saved": say("Saved"),
        "model": say("Model"),
        "layout": say("Layout"),
        "schedule": say("Schedule"),
        "levers": say("Levers"),
        "ranks": say("Ranks"),
        "steps": say("Steps"),
        "loss": say("Loss"),
        "memory": say("Peak memory"),
        "bubble": say("Bubble"),
        "traffic": say("Traffic"),
        "speed": say("Tokens a second"),
        "parity": say("Parity"),
    }
    return {column: labels[column] for column in COLUMNS}


def cells(row: RunRow, say: Words) -> dict[str, str]:
    """The texts of a row's cells. The browser formats the time, because it knows the time zone."""
    numbers = {
        "loss": (row.loss, "{:.3f}".format),
        "memory": (row.peak_bytes, in_bytes),
        "bubble": (row.bubble, percent),
        "traffic": (row.wire_bytes, in_bytes),
        "speed": (row.speed or math.nan, lambda value: short(value, say)),
        "parity": (row.parity, scientific),
    }
    shown = {"name": row.name, "model": row.model, "layout": row.layout, "schedule": names.schedule(row.schedule, say)}
    shown |= {"levers": levers_of(row.spec, say) or "–"}
    shown |= {"ranks": f"{row.ranks:,}", "steps": f"{row.steps:,}"}
    return shown | {key: write(value) if math.isfinite(value) else "–" for key, (value, write) in numbers.items()}


@st.cache_resource(show_spinner=False)
def _component() -> ComponentRenderer:
    return st.components.v2.component(
        "shardscope.runs",
        html='<div class="scroll"><table><caption></caption><thead></thead><tbody></tbody></table></div>',
        css=(_HERE / "table.css").read_text(encoding="utf-8"),
        js=(_HERE / "table.js").read_text(encoding="utf-8"),
    )
