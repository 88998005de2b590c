"""A run in progress: the loss of its steps so far, where its result will be."""

from __future__ import annotations

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts import loss
from pages.charts.look import look
from pages.shared import drawing
from pages.shared.frame import say, view
from pages.shared.service import Service

_EVERY_S = 0.5


@st.fragment(run_every=_EVERY_S)
def draw(service: Service, run: str) -> None:
    """The curve of the loss, which grows. When the run has ended, the run bar redraws the page."""
    state = service.queue.watch(run)
    if state is None or state.finished:
        return
    drawn = drawing.packed(loss.growing(state.losses, state.spec.workload.steps, look(view())))
    with st.container(key="drawing-live", gap="xsmall"):
        drawing.heading(drawn.subject, drawn.title)
        st.vega_lite_chart(drawn.spec, width="stretch", key="chart-live")
        st.caption(say()("The charts of this run appear here when it has ended."))


def scroll_up(run: str) -> None:
    """Show the top of the page when another run is in the link: its result is there."""
    _scroll()(key="scroll", data={"run": run})


@st.cache_resource(show_spinner=False)
def _scroll() -> ComponentRenderer:
    return st.components.v2.component(
        "shardscope.scroll",
        js="""
            export default function ({ parentElement, data }) {
                const before = parentElement.shardscopeRun;
                parentElement.shardscopeRun = data.run;
                if (before !== undefined && before !== data.run)
                    document.querySelector('[data-testid="stMain"]')?.scrollTo({ top: 0 });
            }
        """,
    )
