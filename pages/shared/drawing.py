"""Show a chart with its title, how to read it, and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any

import streamlit as st
from streamlit.dataframe_util import convert_anything_to_arrow_bytes

from pages.charts.drawing import Drawing


def packed(drawing: Drawing) -> Drawing:
    """The same, with the chart's data in the form in which it is sent, so that a cached chart costs nothing to show."""
    spec: dict[str, Any] = {**drawing.spec}
    spec["datasets"] = {name: convert_anything_to_arrow_bytes(rows) for name, rows in spec["datasets"].items()}
    return replace(drawing, spec=spec)


def heading(subject: str, title: str) -> None:
    """The heading of a chart, or of something that stands among charts."""
    st.html(f'<div class="ss-title"><span>{escape(subject)}</span><h4>{escape(title)}</h4></div>')


def show(drawing: Drawing, key: str, *controls: Callable[[], object], note: str = "") -> None:
    """Show a chart.

    `key` names it among all on the page; `controls` draw what stands at the right of its title; `note` is added to how
    it is read.
    """
    with st.container(key=f"drawing-{key}", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            heading(drawing.subject, drawing.title)
            for control in controls:
                control()
        st.vega_lite_chart(drawing.spec, width="stretch", key=f"chart-{key}")
        st.caption(f"{drawing.reading} {note}")
        with st.expander("The numbers", key=f"table-{key}", on_change="rerun", type="compact") as table:
            if table.open:  # otherwise nobody sees it, and it need not be sent
                st.dataframe(drawing.table, hide_index=True, width="stretch", alt=drawing.title)
