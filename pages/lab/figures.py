"""The few numbers of a run, large, each with what it is of."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from engine.tables import RunResult
from pages.charts.units import in_bytes, percent, plural, scientific, short

PARITY_LIMIT = 1e-5  # of the largest entry of a parameter's gradient, in fp32


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    of: str


def figures(result: RunResult) -> list[Figure]:
    s, environment = result.summary, result.environment
    loss = Figure("Loss", "–", "nothing was trained")
    if "loss_last" in s:
        loss = Figure("Loss", f"{s['loss_last']:.3f}", f"from {s['loss_first']:.3f}, in {plural(s['steps'], 'step')}")
    return [
        loss,
        Figure("Peak memory", in_bytes(s["peak_bytes"]), f"on rank {s['peak_rank']}, the fullest"),
        Figure("Bubble", percent(s["bubble"]), "of the pipeline's total time"),
        Figure("Traffic", in_bytes(s["wire_bytes_per_rank"]), "sent by a rank in a step"),
        Figure("Speed", short(s["tokens_per_second"]), "tokens a second"),
        Figure("Backend", environment["backend"], environment["why"]),
    ]


def as_html(shown: list[Figure]) -> str:
    boxes = (f"<div><dt>{escape(f.name)}</dt><dd>{escape(f.value)}</dd><small>{escape(f.of)}</small></div>" for f in shown)
    return f'<dl class="ss-figures">{"".join(boxes)}</dl>'


@dataclass(frozen=True)
class Parity:
    """Whether a run computed what the unsharded model computes."""

    good: bool
    sentence: str


def parity(result: RunResult) -> Parity | None:
    """None if it was not checked."""
    if "parity" not in result.tables:
        return None
    worst = float(result.tables["parity"]["max_rel"].max())
    good = worst <= PARITY_LIMIT
    verdict = "Gradients equal to the unsharded model" if good else "Gradients differ from the unsharded model"
    comparison = f"{'≤' if good else '>'} {scientific(PARITY_LIMIT)}"
    return Parity(good, f"{verdict}: largest difference {scientific(worst)} of the largest entry, {comparison}")
