"""What a schedule is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from engine.spec import ScheduleName

Kind = Literal["F", "B", "I", "W", "send", "recv", "reduce", "tie", "step", "gather"]
Flow = Literal["", "activation", "gradient"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a schedule.

    F, B      forward and backward of one microbatch through one chunk
    I, W      the two halves of B, where a schedule splits it: gradient of the input, gradient of the weights
    send      hand a chunk's output (flow "activation") or its input's gradient (flow "gradient") to stage `peer`
    recv      the other end of a send, seen from the chunk that needs it
    reduce    finish adding up the chunk's gradients over dp
    tie       sum the gradient of the embedding that the first and the last chunk share
    step      the optimizer's step
    gather    give every replica the values that the others updated (ZeRO 1 and 2)
    """

    kind: Kind
    chunk: int = -1
    microbatch: int = -1
    flow: Flow = ""
    peer: int = -1

    def __str__(self) -> str:
        where = f" chunk {self.chunk}" if self.chunk >= 0 else ""
        what = f" microbatch {self.microbatch}" if self.microbatch >= 0 else ""
        return self.kind + (f" {self.flow}" if self.flow else "") + where + what


@dataclass(frozen=True)
class Schedule:
    """`stages[s]` is what the ranks at pp coordinate s do; `placement[c]` is the stage that holds chunk c.

    `held` is how many messages of one flow to one stage may be under way when the next is sent.
    """

    name: ScheduleName
    microbatches: int
    placement: tuple[int, ...]
    stages: tuple[tuple[Action, ...], ...]
    held: int = 1


class ScheduleError(Exception):
    """A schedule breaks a rule that every schedule must keep. Always a defect of the schedule, never of a request."""
