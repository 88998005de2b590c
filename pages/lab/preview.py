"""What a choice means before it runs: what each rank holds, and the textbook timeline of the pipeline."""

from __future__ import annotations

from functools import partial

import streamlit as st

from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.schedule.timeline import MOST, Timeline, simulate, too_long
from engine.schedule.timeline import textbook as unit_times
from engine.spec import LayoutSpec, ModelSpec, RequestError, RunSpec, sentence
from engine.topology import AXES_AS_WRITTEN, MOST_MEMBERS
from pages.charts.look import View, look
from pages.charts.roles import roles_of
from pages.charts.words import Words
from pages.lab import prediction, timelines, walk
from pages.lab.events import Event, MicrobatchPath
from pages.lab.events import walk as events_of
from pages.lab.ranks import rank_grid
from pages.shared import chosen, drawing
from pages.shared.cache import cached, cached_by_size
from pages.shared.clickable import clickable
from pages.shared.frame import inert, say, view
from pages.shared.predicted import predicted, with_ledgers_shown


def draw(spec: RunSpec, measured: RunSpec | None) -> None:
    """`measured` is the spec of the run whose result the page shows too, or None. What the result shows is left out here."""
    mesh = spec.layout.mesh
    title = drawing.heading_html(say()("Model placement"), _counted(spec.layout, say()))
    clickable(title + grid(spec.model, spec.layout, chosen.rank(mesh), view()), "grid", chosen.choose)
    refused, trains = _refused(spec), not spec.generate.skip_training
    offered = measured is None and trains and refused is None
    walkable = offered and not_walked(spec) is None
    step = walk.current(spec, partial(events, spec)) if walkable else None
    event = step.event if step else None
    if refused is not None:
        st.info(say()("{sentence}.", sentence=inert(_begun(say().sentence(refused)))), icon=":material/straighten:")
    if same_but_for_length(spec, measured):
        return
    if refused is None:
        prediction.draw(spec, event)
    if trains:  # without training there is no schedule
        timelines.draw_textbook(spec, event)
    if walkable:
        walk.draw(spec, partial(events, spec), in_units=True)
    elif offered and (reason := _groups_too_large(spec.layout)):
        st.caption(say()("The events of one microbatch are not listed: {reason}.", reason=say().sentence(reason)))


def _refused(spec: RunSpec) -> str | None:
    """Why there is no prediction: the choice is too large for the formulas. None if there is one."""
    try:
        predicted(spec)
    except RequestError as error:
        return error.sentence
    return None


def _begun(sentence: str) -> str:
    """The sentence with a capital letter, unless it begins with the name of a field."""
    return sentence if "=" in sentence.split(" ")[0] else sentence[:1].upper() + sentence[1:]


def not_walked(spec: RunSpec) -> str | None:
    """Why the page cannot step through this layout; None where it can. One rank a stage lists all members of its groups."""
    return too_long(spec.layout, spec.workload.microbatches) or _groups_too_large(spec.layout)


def _groups_too_large(layout: LayoutSpec) -> str | None:
    degrees = [layout.mesh.degree(axis) for axis in AXES_AS_WRITTEN]
    named = layout.pp * sum(degrees)
    if named <= MOST_MEMBERS:
        return None
    return sentence(
        "the events of a microbatch through pp={pp} stages name {pp} × ({degrees}) = {named} members of groups, and "
        "at most {most} are listed",
        pp=layout.pp,
        degrees=" + ".join(map(str, degrees)),
        named=f"{named:,}",
        most=f"{MOST_MEMBERS:,}",
    )


def same_but_for_length(spec: RunSpec, measured: RunSpec | None) -> bool:
    """Whether one step of both is the same. The number of steps, and what else a run checks, do not matter."""
    if measured is None:
        return False
    usual = {"steps": 1, "seed": 0, "learning_rate": 1.0, "time_limit": 1.0, "text": None}
    one, other = (
        s.model_copy(update={"parity": False, "fault": None, "workload": s.workload.model_copy(update=usual)})
        for s in (spec, measured)
    )
    return one == other


def _counted(layout: LayoutSpec, say: Words) -> str:
    """ "8 ranks: 2 stages × 2 replicas × 2 slices", without axes of degree 1."""
    if layout.ranks == 1:
        return say("1 rank holds the whole model")
    parts = [say.plural("{count} stage", "{count} stages", layout.pp)] * (layout.pp > 1)
    parts += [say.plural("{count} replica", "{count} replicas", layout.dp)] * (layout.dp > 1)
    parts += [say.plural("{count} part of the sequence", "{count} parts of the sequence", layout.cp)] * (layout.cp > 1)
    parts += [say.plural("{count} slice", "{count} slices", layout.tp)] * (layout.tp > 1)
    return say.plural("{count} rank: {parts}", "{count} ranks: {parts}", layout.ranks, parts=" × ".join(parts))


@cached(64)
def grid(model: ModelSpec, layout: LayoutSpec, rank: int | None, view: View) -> str:
    roles = None if rank is None else roles_of(layout.mesh, rank)
    return rank_grid(model, layout, look(view), roles)


def _size_of(events: list[Event]) -> int:
    return sum(1 + (len(event.communication.group) if event.communication else 0) for event in events)


@cached_by_size(200_000, _size_of)
def events(spec: RunSpec, path: MicrobatchPath) -> list[Event]:
    """The events of one microbatch in a step, with predicted traffic and the textbook's times."""
    mesh = spec.layout.mesh
    if mesh.all_listed:
        sent = predicted(spec).tables["traffic"]
    else:
        ranks = [mesh.rank({"pp": stage, "dp": path.dp, "tp": path.tp}) for stage in range(mesh.pp)]
        sent = with_ledgers_shown(lambda: traffic(spec, ranks))
    return events_of(spec, sent, path, replayed=replayed(spec.layout, spec.workload.microbatches, spec.model.parts.tied))


def _length(timeline: Timeline) -> int:
    return len(timeline.timed)


@cached_by_size(MOST, _length)
def replayed(layout: LayoutSpec, microbatches: int, tied: bool) -> Timeline:
    """The whole step in the textbook's units of time."""
    return simulate(plan(layout, microbatches, tied), unit_times(layout))
