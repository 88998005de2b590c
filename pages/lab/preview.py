"""What a choice means, before anything runs: who holds what, and the pipeline as the textbook draws it."""

from __future__ import annotations

from functools import partial

from engine.predict.timeline import Timeline, simulate
from engine.predict.timeline import textbook as unit_times
from engine.schedule import plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from engine.topology import Mesh
from pages.charts.look import View, look
from pages.charts.roles import roles_of
from pages.charts.words import Words
from pages.lab import prediction, timelines, walk
from pages.lab.events import Event, Way
from pages.lab.events import walk as events_of
from pages.lab.ranks import rank_grid
from pages.shared import chosen, drawing
from pages.shared.clickable import clickable
from pages.shared.frame import say, view
from pages.shared.kept import kept
from pages.shared.predicted import predicted


def draw(spec: RunSpec, measured: RunSpec | None, above: str = "") -> None:
    """`measured` is what the result beneath was a run of, if there is one: what stands there is not told here as well.

    `above` is HTML that comes first.
    """
    mesh = Mesh(spec.layout.dp, spec.layout.tp, spec.layout.pp)
    title = drawing.heading_html(say()("Who holds what"), _counted(spec.layout, say()))
    clickable(above + title + grid(spec.model, spec.layout, chosen.rank(mesh), view()), "grid", chosen.choose)
    walkable = measured is None and not spec.generate.skip_training
    step = walk.current(spec, partial(events, spec)) if walkable else None
    event = step.event if step else None
    if not same_but_for_length(spec, measured):
        prediction.draw(spec, event)
    if not spec.generate.skip_training:  # a schedule is how a step of training is put in order
        timelines.draw_textbook(spec, event)
    if walkable:
        walk.draw(spec, partial(events, spec), in_units=True)


def same_but_for_length(spec: RunSpec, measured: RunSpec | None) -> bool:
    """Whether a step of both is the same: how many steps are run, and what is checked besides, does not matter to one."""
    if measured is None:
        return False
    usual = {"steps": 1, "seed": 0, "learning_rate": 1.0, "time_limit": 1.0, "text": None}
    one, other = (
        s.model_copy(update={"parity": False, "fault": None, "workload": s.workload.model_copy(update=usual)})
        for s in (spec, measured)
    )
    return one == other


def _counted(layout: LayoutSpec, say: Words) -> str:
    """ "8 ranks: 2 stages × 2 replicas × 2 slices", leaving out what there is one of."""
    if layout.ranks == 1:
        return say("1 rank holds the whole model")
    parts = [say.plural("{count} stage", "{count} stages", layout.pp)] * (layout.pp > 1)
    parts += [say.plural("{count} replica", "{count} replicas", layout.dp)] * (layout.dp > 1)
    parts += [say.plural("{count} slice", "{count} slices", layout.tp)] * (layout.tp > 1)
    return say.plural("{count} rank: {parts}", "{count} ranks: {parts}", layout.ranks, parts=" × ".join(parts))


@kept(64)
def grid(model: ModelSpec, layout: LayoutSpec, rank: int | None, view: View) -> str:
    roles = None if rank is None else roles_of(Mesh(layout.dp, layout.tp, layout.pp), rank)
    return rank_grid(model, layout, look(view), roles)


@kept(64)
def events(spec: RunSpec, way: Way) -> list[Event]:
    """One microbatch's way through a step, with the traffic that is predicted and the times of the textbook."""
    passed = predicted(spec).tables["traffic"]
    return events_of(spec, passed, way, replayed=replayed(spec.layout, spec.workload.microbatches, spec.model.parts.tied))


@kept(8)
def replayed(layout: LayoutSpec, microbatches: int, tied: bool) -> Timeline:
    """The whole step in unit times."""
    return simulate(plan(layout, microbatches, tied), unit_times(layout))
