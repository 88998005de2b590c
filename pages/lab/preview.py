"""What a choice means, before anything runs: who holds what, and the pipeline as the textbook draws it."""

from __future__ import annotations

import streamlit as st

from engine.schedule import in_flight, plan, replay
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from pages.charts import timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import plural
from pages.lab.ranks import rank_grid
from pages.shared import drawing
from pages.shared.frame import view

# Of a stage, all of its chunks together; all else takes no time.
_UNIT_TIMES = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


def draw(spec: RunSpec) -> None:
    with st.container(key="who"):
        drawing.heading("Who holds what", _counted(spec.layout))
        st.html(grid(spec.model, spec.layout, view()))
    with st.container(key="textbook"):
        drawing.show(textbook(spec.layout, spec.workload.microbatches, view()), "textbook")


def _counted(layout: LayoutSpec) -> str:
    """ "8 ranks: 2 stages of 2 replicas of 2 slices", leaving out what there is one of."""
    parts = [plural(n, word) for n, word in ((layout.pp, "stage"), (layout.dp, "replica"), (layout.tp, "slice")) if n > 1]
    return f"{layout.ranks} ranks: {' × '.join(parts)}" if parts else "1 rank holds the whole model"


@st.cache_data(max_entries=64, show_spinner=False)
def grid(model: ModelSpec, layout: LayoutSpec, view: View) -> str:
    return rank_grid(model, layout, look(view))


@st.cache_data(max_entries=64, show_spinner=False)
def textbook(layout: LayoutSpec, microbatches: int, view: View) -> Drawing:
    """The choice's schedule in unit times; each row names its stage and how many microbatches it keeps at most."""
    # dp and tp do not change a pipeline's shape.
    schedule = plan(LayoutSpec(pp=layout.pp, schedule=layout.schedule, chunks=layout.chunks), microbatches)
    timed = replay(schedule, lambda stage, action: _UNIT_TIMES.get(action.kind, 0.0) / layout.chunks)
    names = [f"stage {stage} · keeps {in_flight(schedule, stage)} in flight" for stage in range(layout.pp)]
    return drawing.packed(timeline.textbook(timed, names, look(view)))
