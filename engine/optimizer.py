"""The optimizer that a spec names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.spec import WorkloadSpec

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01


def make_optimizer(workload: WorkloadSpec, tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Over fp32 tensors, whose `grad` is set before each step."""
    if workload.optimizer == "sgd":
        return torch.optim.SGD(tensors, lr=workload.learning_rate, momentum=workload.momentum, fused=True)
    return torch.optim.AdamW(tensors, lr=workload.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
