"""The four steps of a parallel algorithm, as the run does them: its words, and beneath them the engine's own actions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape

from engine.schedule import plan
from engine.spec import LayoutSpec
from pages.charts.words import Words


@dataclass(frozen=True)
class Step:
    """One of the four. `does` is a sentence; `actions` are entries of the schedule, `passes` what goes between ranks."""

    name: str
    does: str
    actions: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()


def as_html(steps: list[Step], say: Words) -> str:
    return f'<ol class="ss-steps">{"".join(_card(at, step, say) for at, step in enumerate(steps, start=1))}</ol>'


def _card(at: int, step: Step, say: Words) -> str:
    lines = ""
    for label, names in ((say("actions"), step.actions), (say("between ranks"), step.passes)):
        if names:
            lines += f"<div><small>{escape(label)}</small>{''.join(f'<code>{escape(name)}</code>' for name in names)}</div>"
    return f"<li><b>{at} {escape(step.name)}</b><p>{escape(step.does)}</p>{lines}</li>"


def actions_of(layout: LayoutSpec, microbatches: int, stage: int = 0) -> dict[str, tuple[str, ...]]:
    """What a rank of `stage` does in one step, counted from the engine's own plan, by the step of the algorithm it belongs to."""
    counted: Counter[tuple[str, str]] = Counter()
    for action in plan(layout, microbatches).stages[stage]:
        flow = {"activation": "forward", "gradient": "backward"}.get(action.flow)
        of = {"F": "forward", "B": "backward", "I": "backward", "W": "backward", "reduce": "backward", "tie": "backward"}
        counted[flow or of.get(action.kind, "update"), f"{action.kind} {action.flow}".strip()] += 1
    phases = ("forward", "backward", "update")
    return {phase: tuple(f"{name} ×{count}" for (where, name), count in counted.items() if where == phase) for phase in phases}
