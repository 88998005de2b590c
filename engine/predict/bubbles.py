"""Closed forms of a pipeline's bubble, for stages that are all alike and messages that take no time.

p stages, m microbatches, v chunks a stage. `simulate` runs the schedule itself and is right for any durations; the tests hold
the one against the other.
"""

from __future__ import annotations

from typing import Any

from engine.spec import V_SHAPED, LayoutSpec, RequestError, ScheduleName, sentence

# Idle time as a share of total time, at the textbook's unit times: forward 1, backward 2, each half of it 1.
BUBBLE: dict[ScheduleName, str] = {
    "naive": "(p − 1) / p",
    "gpipe": "(p − 1) / (m + p − 1)",
    "1f1b": "(p − 1) / (m + p − 1)",
    "interleaved": "(p − 1) / (v · m + p − 1)",
    "zb-h1": "(p − 1) / (3 · m + p − 1)",
    "zb-v": "(p − 1) / (6 · m + p − 1)",
    "dualpipe-v": "(p − 1) / (6 · m + p − 1)",
}


def bubble_share(name: ScheduleName, pp: Any, microbatches: Any, chunks: Any = 1) -> Any:
    """`BUBBLE` in numbers; any argument may be an array.

    GPipe: Huang et al. 2019, section 2.3; 1F1B and interleaved: Narayanan et al. 2021, section 2.2, who quote it of ideal time;
    ZB-H1: Qi et al. 2024, table 2, with all of a pass's three parts 1. The two over a V: the plan's own, of which the first
    forward reaches stage p − 1 after p − 1 half stages, and all else is filled.
    Holds where the microbatches fill the pipeline: m ≥ p, over a V m ≥ 2 p; for naive, GPipe and 1F1B any m.
    """
    if name == "naive":
        return (pp - 1) / pp
    parts = {"gpipe": 1, "1f1b": 1, "interleaved": chunks, "zb-h1": 3, "zb-v": 6, "dualpipe-v": 6}[name]
    return (pp - 1) / (parts * microbatches + pp - 1)


def textbook_bubble(layout: LayoutSpec, microbatches: int) -> float:
    """`bubble_share` of a layout. Raises `RequestError` where it does not hold, as microbatches do not fill the pipeline."""
    needed = {"naive": 1, "gpipe": 1, "1f1b": 1}.get(layout.schedule, layout.pp * (2 if layout.schedule in V_SHAPED else 1))
    if microbatches < needed:
        raise RequestError(
            sentence(
                "{schedule} with pp={pp} and {microbatches} microbatches is too long to be put in time, and with fewer than "
                "{needed} its bubble has no closed form",
                schedule=layout.schedule,
                pp=layout.pp,
                microbatches=f"{microbatches:,}",
                needed=f"{needed:,}",
            )
        )
    return float(bubble_share(layout.schedule, layout.pp, microbatches, layout.chunks))
