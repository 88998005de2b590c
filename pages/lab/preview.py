"""What a choice means, before anything runs: who holds what, and the pipeline as the textbook draws it."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from engine.predict.timeline import Timeline, simulate
from engine.predict.timeline import textbook as unit_times
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from engine.topology import Mesh
from pages.charts.look import View, look
from pages.charts.roles import roles_of
from pages.charts.words import Words
from pages.lab import timelines, walk
from pages.lab.events import Event, Way
from pages.lab.events import walk as events_of
from pages.lab.ranks import rank_grid
from pages.shared import chosen, drawing
from pages.shared.clickable import clickable
from pages.shared.frame import say, view


def draw(spec: RunSpec, measured: bool) -> None:
    """`measured`: a result stands beneath, so the way through a step is told there."""
    with st.container(key="who"):
        drawing.heading(say()("Who holds what"), _counted(spec.layout, say()))
        mesh = Mesh(spec.layout.dp, spec.layout.tp, spec.layout.pp)
        clickable(grid(spec.model, spec.layout, chosen.rank(mesh), view()), "grid", chosen.choose)
    walkable = not (measured or spec.generate.skip_training)
    step = walk.current(spec, partial(events, spec)) if walkable else None
    with st.container(key="textbook"):
        timelines.draw_textbook(spec, step.event if step else None)
    if walkable:
        walk.draw(spec, partial(events, spec), in_units=True)


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


@st.cache_resource(max_entries=64, show_spinner=False)
def events(spec: RunSpec, way: Way) -> list[Event]:
    """One microbatch's way through a step, with the traffic that is predicted and the times of the textbook."""
    return events_of(
        spec, predicted(spec), way, replayed=replayed(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def replayed(layout: LayoutSpec, microbatches: int, tied: bool) -> Timeline:
    """The whole step in unit times."""
    return simulate(plan(layout, microbatches, tied), unit_times(layout))


@st.cache_resource(max_entries=16, show_spinner=False)
def predicted(spec: RunSpec) -> pd.DataFrame:
    """Table "traffic" from the formulas."""
    return traffic(spec)
