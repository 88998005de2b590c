"""The four steps of a parallel algorithm: a description, and the engine's actions and calls in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from engine.catalog import name_of
from engine.predict.traffic import calls
from engine.schedule import plan
from engine.spec import RunSpec
from pages.charts import names
from pages.charts.words import Words
from pages.shared.predicted import with_ledgers_shown

Often = tuple[str, int]  # (an action or a call, its number)


@dataclass(frozen=True)
class LessonStep:
    """One of the four steps. `does`: a sentence. `actions`: entries of the schedule. `passes`: calls between ranks."""

    name: str
    does: str
    actions: tuple[Often, ...] = ()
    passes: tuple[Often, ...] = ()


def as_html(steps: list[LessonStep], say: Words) -> str:
    return f'<ol class="ss-steps">{"".join(_card(at, step, say) for at, step in enumerate(steps, start=1))}</ol>'


def _card(at: int, step: LessonStep, say: Words) -> str:
    lines = ""
    for label, done in ((say("actions"), step.actions), (say("between ranks"), step.passes)):
        if done:
            counts = [f"{names.action(what, say)} ×{count}" for what, count in done]
            lines += f"<div><small>{escape(label)}</small>{''.join(f'<code>{escape(text)}</code>' for text in counts)}</div>"
    return f"<li><b>{at} {escape(step.name)}</b><p>{escape(step.does)}</p>{lines}</li>"


class Done(NamedTuple):
    """A rank's actions and its calls to other ranks in one of the steps, with their numbers."""

    actions: tuple[Often, ...]
    passes: tuple[Often, ...]


# Kinds of actions and phases of traffic of the steps forward and backward. All others belong to the update.
_FORWARD, _BACKWARD = ("F", "forward"), ("B", "I", "W", "reduce", "tie", "backward")


def done_by(spec: RunSpec, stage: int = 0) -> dict[str, Done]:
    """One training step of a rank of `stage`: actions from the schedule, calls from the predicted traffic.

    The prediction equals what a run counts.
    """
    actions: Counter[tuple[str, str]] = Counter()
    for action in plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied).stages[stage]:
        flow = {"activation": "forward", "gradient": "backward"}.get(action.flow, action.kind)
        actions[_step(flow), f"{action.kind} {action.flow}".strip()] += 1
    passes: Counter[tuple[str, str]] = Counter()
    for call in with_ledgers_shown(lambda: calls(spec, stage)):
        passes[_step(call.phase), f"{call.axis} {call.collective}"] += call.calls
    return {step: Done(_counted(actions, step), _counted(passes, step)) for step in ("forward", "backward", "update")}


def _step(of: str) -> str:
    return "forward" if of in _FORWARD else "backward" if of in _BACKWARD else "update"


def _counted(counted: Counter[tuple[str, str]], step: str) -> tuple[Often, ...]:
    return tuple((name, count) for (where, name), count in counted.items() if where == step)


def model_of(spec: RunSpec, say: Words) -> str:
    """A line that names the model and the layout of the steps under a lesson's cards."""
    return say(
        "Counted for one rank of {model} on {layout} with {count} microbatches: actions in the engine’s own schedule, "
        "calls in its prediction of traffic, which equals what a run counts.",
        model=name_of(spec.model),
        layout=spec.layout.code,
        count=spec.workload.microbatches,
    )
