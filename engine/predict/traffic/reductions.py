"""How often a step reduces a layer's gradients over dp, where ZeRO does so as soon as they are whole (stages 2 and 3).

After every backward pass, unless the schedule splits it: then a layer is whole when no I of its chunk waits for its W. Passes
that overlap are added up and reduced together. Numbers of each chunk, from the schedule's record; arguments may be arrays.
"""

from __future__ import annotations

from typing import Any

from engine.spec import SCHEDULE_FACTS, ScheduleName


def reductions(name: ScheduleName, pp: Any, microbatches: Any, stage: Any, run: Any) -> Any:
    """Of a layer whose weights wait for W. `run`: 0 for the chunk on the way down a V, 1 for the one on the way up."""
    of = SCHEDULE_FACTS[name].reductions
    return of(pp, microbatches, stage, run) if of else microbatches
