"""What a choice means, before anything runs: who holds what, and the pipeline as the textbook draws it."""

from __future__ import annotations

import streamlit as st

from engine.schedule import in_flight, plan, replay
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from engine.topology import Mesh
from pages.charts import timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.roles import roles_of
from pages.charts.words import Words
from pages.lab.ranks import rank_grid
from pages.shared import chosen, drawing
from pages.shared.clickable import clickable
from pages.shared.frame import say, view

# Of a stage, all of its chunks together; all else takes no time.
_UNIT_TIMES = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


def draw(spec: RunSpec) -> None:
    with st.container(key="who"):
        drawing.heading(say()("Who holds what"), _counted(spec.layout, say()))
        mesh = Mesh(spec.layout.dp, spec.layout.tp, spec.layout.pp)
        clickable(grid(spec.model, spec.layout, chosen.rank(mesh), view()), "grid", chosen.choose)
    with st.container(key="textbook"):
        drawing.show(textbook(spec.layout, spec.workload.microbatches, view()), "textbook")


def _counted(layout: LayoutSpec, say: Words) -> str:
    """ "8 ranks: 2 stages × 2 replicas × 2 slices", leaving out what there is one of."""
    if layout.ranks == 1:
        return say("1 rank holds the whole model")
    parts = [say.plural("{count} stage", "{count} stages", layout.pp)] * (layout.pp > 1)
    parts += [say.plural("{count} replica", "{count} replicas", layout.dp)] * (layout.dp > 1)
    parts += [say.plural("{count} slice", "{count} slices", layout.tp)] * (layout.tp > 1)
    return say.plural("{count} rank: {parts}", "{count} ranks: {parts}", layout.ranks, parts=" × ".join(parts))


@st.cache_data(max_entries=64, show_spinner=False)
def grid(model: ModelSpec, layout: LayoutSpec, rank: int | None, view: View) -> str:
    roles = None if rank is None else roles_of(Mesh(layout.dp, layout.tp, layout.pp), rank)
    return rank_grid(model, layout, look(view), roles)


@st.cache_data(max_entries=64, show_spinner=False)
def textbook(layout: LayoutSpec, microbatches: int, view: View) -> Drawing:
    """The choice's schedule in unit times; each row names its stage and how many microbatches it keeps at most."""
    # dp and tp do not change a pipeline's shape.
    schedule = plan(LayoutSpec(pp=layout.pp, schedule=layout.schedule, chunks=layout.chunks), microbatches)
    timed = replay(schedule, lambda stage, action: _UNIT_TIMES.get(action.kind, 0.0) / layout.chunks)
    style = look(view)
    keeps = [in_flight(schedule, stage) for stage in range(layout.pp)]
    names = [style.say("stage {stage} · keeps {count} in flight", stage=stage, count=count) for stage, count in enumerate(keeps)]
    return drawing.packed(timeline.textbook(timed, names, style))
