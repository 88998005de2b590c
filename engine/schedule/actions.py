"""The records of a schedule: its actions, and their lists."""

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
    I, W      the two halves of B, if a schedule splits it: gradients of the input, gradients of the weights
    send      send a chunk's output (flow "activation") or its input's gradient (flow "gradient") to stage `peer`
    recv      receive such a message from stage `peer`; `chunk` is the one that needs it
    reduce    complete the reduction of the chunk's gradients over dp
    tie       all-reduce the gradient of the tied embedding between the first and the last chunk
    step      the optimizer's step
    gather    all-gather the updated values over dp (ZeRO 1 and 2)

    `chunk` and `microbatch` are −1 for an action that has none.
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
    """The actions of all stages.

    `stages[s]`: the actions of the ranks with pp coordinate s. `placement[c]`: the stage that holds chunk c. `held`: how many
    messages of one flow from one stage to another may be sent and not yet received when the next is sent.
    """

    name: ScheduleName
    microbatches: int
    placement: tuple[int, ...]
    stages: tuple[tuple[Action, ...], ...]
    held: int = 1


class ScheduleError(Exception):
    """A schedule breaks a rule that every schedule must keep. That is a bug in the schedule, not a wrong request."""
