"""The optimizer's step on this rank: torch's own, as the record of `engine.optimizer` asks for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.optimizer import optimizer_of
from engine.spec import WorkloadSpec


def make_optimizer(workload: WorkloadSpec, tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Over fp32 tensors, whose `grad` is set before each step."""
    record = optimizer_of(workload)
    make: type[torch.optim.Optimizer] = getattr(torch.optim, record.torch_class)
    return make(tensors, lr=workload.learning_rate, **record.settings(workload))  # type: ignore[call-arg]  # a subclass's
