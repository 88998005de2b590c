"""How often a step reduces a layer's gradients over dp under ZeRO 2 and 3, which reduce them as soon as they are complete.

If backward is not split, that is after every backward pass. If it is split, gradients are complete when no I of the chunk still
waits for its W. The gradients of passes that overlap are accumulated and reduced together. The numbers are in the schedule's
record.
"""

from __future__ import annotations

from typing import Any

from engine.spec import SCHEDULE_FACTS, ScheduleName


def reductions(name: ScheduleName, pp: Any, microbatches: Any, stage: Any, run: Any) -> Any:
    """Reductions in a step, for a layer whose weight gradients are computed in W. Arguments may be arrays.

    `run`: which chunk of the stage in a V-shaped schedule; 0 is on the way down, 1 on the way up.
    """
    rule = SCHEDULE_FACTS[name].reductions
    return rule(pp, microbatches, stage, run) if rule else microbatches
