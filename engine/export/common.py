"""What every settings file says, in the numbers that `engine.optimizer` trains with (which cannot be imported without torch)."""

from __future__ import annotations

from engine.spec import RunSpec

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01  # of AdamW; a test holds them against the optimizer's own


def global_batch(spec: RunSpec) -> int:
    """Sequences in a step, over all replicas."""
    return spec.workload.microbatch_size * spec.workload.microbatches * spec.layout.dp
