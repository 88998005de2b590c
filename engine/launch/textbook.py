"""Unit times for the actions of a dry run or a prediction, which compute nothing and so have no times. Imports no torch.

The schedule's lists are replayed in the units of textbooks: a forward takes 1 ms and a backward 2 ms, each half of a
split backward 1 ms, all divided by the chunks on a stage; the optimizer's step takes 1 ms, everything else no time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from engine.schedule import Action, Schedule, bubble, entries, plan, replay
from engine.spec import RequestError, RunSpec, sentence

UNIT_NS = 1_000_000
_MOST = 1_000_000  # passes and messages
_UNITS = {"F": 1, "B": 2, "I": 1, "W": 1}


@dataclass(frozen=True)
class Textbook:
    """`stages[s]`: start and end of each action of stage s, in the order of its list, in nanoseconds."""

    schedule: Schedule
    stages: tuple[tuple[tuple[int, int], ...], ...]
    bubble: float

    @property
    def makespan_ns(self) -> int:
        return max(end for stage in self.stages for _, end in stage)


def textbook(spec: RunSpec) -> Textbook:
    """Raises `RequestError` if there are too many actions."""
    layout = spec.layout
    count, passes = entries(layout, spec.workload.microbatches), sentence("{n} microbatches", n=spec.workload.microbatches)
    if spec.generate.skip_training:
        count = 3 * len(layout.placement) * spec.generate.new_tokens
        passes = sentence("{n} new tokens", n=spec.generate.new_tokens)
    if count > _MOST:
        raise RequestError(
            sentence(
                "pp={pp} × chunks={chunks} with {passes} are {count} passes and messages, and at most {most} are simulated",
                pp=layout.pp,
                chunks=layout.chunks,
                passes=passes,
                count=f"{count:,}",
                most=f"{_MOST:,}",
            )
        )
    if spec.generate.skip_training:
        schedule = _generation(layout.placement, spec.generate.new_tokens)
    else:
        schedule = plan(layout, spec.workload.microbatches, spec.model.parts.tied)

    def duration(stage: int, action: Action) -> float:
        if action.kind == "step":
            return UNIT_NS
        return _UNITS.get(action.kind, 0) * UNIT_NS / layout.chunks

    timed = replay(schedule, duration)
    stages: list[list[tuple[int, int]]] = [[] for _ in schedule.stages]
    for one in timed:
        stages[one.stage].append((round(one.start), round(one.end)))
    return Textbook(schedule, tuple(map(tuple, stages)), bubble(timed, layout.pp))


def step_row(spec: RunSpec, clock: Textbook) -> dict[str, Any]:
    """The one step, as the table `steps` has it. There is no loss."""
    workload = spec.workload
    tokens = spec.layout.dp * workload.microbatches * workload.microbatch_size * spec.model.seq
    if spec.generate.skip_training:
        tokens = spec.layout.dp * (len(spec.generate.prompt.encode()) + spec.generate.new_tokens - 1)
    return {"step": 1, "loss": math.nan, "grad_norm": math.nan, "step_ns": clock.makespan_ns, "tokens": tokens}


def _generation(placement: tuple[int, ...], tokens: int) -> Schedule:
    """What `engine.generate` does, as a schedule: each token goes through all chunks, and back to the first stage."""
    stages: list[list[Action]] = [[] for _ in set(placement)]
    last = len(placement) - 1
    for token in range(tokens):
        for c, stage in enumerate(placement):
            if c and placement[c - 1] != stage:
                stages[stage].append(Action("recv", c, token, "activation", placement[c - 1]))
            stages[stage].append(Action("F", c, token))
            if c < last and placement[c + 1] != stage:
                stages[stage].append(Action("send", c, token, "activation", placement[c + 1]))
        if placement[last] != placement[0]:
            # Named as a gradient is: by the chunk that needs it, one below the one that sends it.
            stages[placement[last]].append(Action("send", 1, token, "gradient", placement[0]))
            stages[placement[0]].append(Action("recv", 0, token, "gradient", placement[last]))
    return Schedule("naive", tokens, placement, tuple(map(tuple, stages)), held=1)
