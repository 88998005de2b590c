"""The optimizer's step on this rank, and what ranks reduce before it: tied gradients, the norm of all gradients, the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.optim import make_optimizer
from engine.parallel.comm import ZERO_SHARDS, Comm
from engine.parallel.data import Bucket, DataParallel
from engine.spec import WorkloadSpec
from engine.topology import EP


class DistributedOptimizer:
    """The optimizer over the values of this rank's buckets, or over their fp32 copies.

    `grad_norm` is that of the whole model, over all ranks. If gradients have the type of what is updated, the optimizer may
    overwrite them, but for steps with `keeps_gradients`.
    """

    keeps_gradients = False

    def __init__(
        self,
        workload: WorkloadSpec,
        data: DataParallel,
        tied: Sequence[nn.Module],
        counted_elsewhere: Sequence[nn.Module],
        update_biases: Callable[[], None] = lambda: None,
    ) -> None:
        """`tied`: this rank's copies of the token table, where the model's first and last chunk share it.

        `counted_elsewhere`: layers of this rank whose gradients another rank counts in the norm.

        `update_biases`: the function of that name, for this rank's routers.
        """
        self.update_biases = update_biases
        self.data, self.comm, self.tied, self.counted_elsewhere = data, data.comm, tied, counted_elsewhere
        self.grad_norm = torch.zeros((), device=self.comm.device)
        self._optimizer = make_optimizer(workload, [bucket.master for bucket in data.buckets.values()])

    def state_tensors(self) -> list[Tensor]:
        """The tensors of the optimizer's state. Empty before the first step."""
        return [t for state in self._optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]

    def set_learning_rate(self, rate: float) -> None:
        """Of the steps from now on, in place of the workload's."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def reduce_tied_gradients(self) -> None:
        """Sum the gradients of the two copies of the token table, which the first and the last chunk hold."""
        copies = [self.data.buckets[layer].reduced for layer in self.tied]
        if len(copies) == 1:
            self.comm.all_reduce(copies[0], "tie")
        else:  # both are on this rank
            copies[0].add_(copies[1])
            copies[1].copy_(copies[0])

    def step(self, loss: Tensor | None) -> None:
        """Compute `grad_norm`, average `loss` over the replicas in place, and update the parameters.

        `loss` is this replica's share of the mean loss, on the last stage; None on the others.
        """
        squared = self._squared_norm()
        if self.data.zero:
            self.comm.all_reduce(squared, ZERO_SHARDS)
        self.comm.all_reduce(squared, "tp")
        self.grad_norm.copy_(self.comm.all_reduce(squared, "pp").sqrt())
        if loss is not None:
            self.comm.all_reduce(loss, "dp")
        self.update_biases()
        for bucket in self.data.buckets.values():
            bucket.master.grad = bucket.reduced.to(bucket.master.dtype, copy=self.keeps_gradients)
        self._optimizer.step()
        for bucket in self.data.buckets.values():
            bucket.master.grad = None
            bucket.round_values()

    def _squared_norm(self) -> Tensor:
        """Of this rank's gradients without those that another rank counts.

        These are the copy of the token table at the pipeline's end, and what `Bucket.norm` leaves out. Without ZeRO each replica
        has all gradients but those of experts, which are added up over the ranks that share them.
        """
        buckets = [bucket for layer, bucket in self.data.buckets.items() if layer not in self.counted_elsewhere]
        if self.data.zero or len(self.comm.groups[EP].ranks) == 1:
            return self._sum_of_squares(buckets)
        of_experts = self._sum_of_squares([bucket for bucket in buckets if bucket.experts])
        others = self._sum_of_squares([bucket for bucket in buckets if not bucket.experts])
        return others.add_(self.comm.all_reduce(of_experts, EP))

    def _sum_of_squares(self, buckets: Sequence[Bucket]) -> Tensor:
        if not buckets:  # the last chunk may have no layers, a head without parameters and a copy of the table
            return torch.zeros((), device=self.comm.device)
        return torch.linalg.vector_norm(torch.stack([bucket.norm() for bucket in buckets])).square()


class BiasedRouter(Protocol):
    """A layer whose router has a bias, as its update sees it. See `engine.model.experts.ExpertLayer`."""

    router: Any
    loads: list[int]


@torch.no_grad()
def update_biases(layers: Sequence[BiasedRouter], rate: float, comm: Comm) -> None:
    """The step that keeps loads alike without a loss: the bias of an expert with less than the mean load grows by `rate`, that of
    one with more shrinks (DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2). Loads are those of the step, over all replicas.
    """
    if not layers:
        return
    loads = comm.all_reduce(torch.tensor([layer.loads for layer in layers], device=comm.device), "dp").double()  # (layers, E)
    steps = (loads.mean(1, keepdim=True) - loads).sign()
    for layer, step in zip(layers, steps, strict=True):
        layer.router.bias.add_(step, alpha=rate)
