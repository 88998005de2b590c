"""What is asked of routing tokens to experts, beside the model's own settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Routing:
    """`balanced`: tokens go to experts in turn. `microbatches`: of all replicas in a step, which share the auxiliary loss.

    `received`: rows that this rank's experts get in a pass, where no other rank is there to send them; None: as many as are sent.
    """

    balanced: bool = False
    microbatches: int = 1
    received: int | None = None
