"""Makes optimizers from their records in `engine.optimizer`. The modules here are optimizers that `torch.optim` does not have."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import torch
from torch import Tensor

from engine.optimizer import optimizer_of
from engine.spec import WorkloadSpec


def make_optimizer(workload: WorkloadSpec, tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of `workload` for `tensors`, of its `update_precision`. The caller sets their `grad` before each step.

    A step may overwrite `grad`. Its states are in `state`: as many tensors as the record says.
    """
    record = optimizer_of(workload)
    make: type[torch.optim.Optimizer] = getattr(import_module(record.module), record.class_name)
    return make(tensors, lr=workload.learning_rate, **record.settings(workload))  # type: ignore[call-arg]  # a subclass's
