"""What `engine.parallel.comm` sends by, as an interface; and a transport for one rank without peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from engine.parallel.clocks import Messages
from engine.topology import CallAxis

Reduction = Literal["sum", "max"]


class Work(Protocol):
    """A part of a call in progress."""

    def wait(self) -> object: ...


Parts = Sequence[torch.Tensor]  # a part for each rank of a group
Works = list[Work | None]  # what a call must wait for


@dataclass(frozen=True)
class Group:
    """Ranks that take part in a collective, along one axis of the mesh."""

    axis: CallAxis
    ranks: tuple[int, ...]
    handle: Any = None  # torch's process group; None for one rank alone


class Transport(Messages, Protocol):
    """What `Comm` sends by. Tensors are contiguous, and must not be used until the call is complete."""

    def all_reduce(self, tensor: torch.Tensor, reduction: Reduction, to: Group) -> Works: ...

    def all_gather(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """`out` (n, …) takes the tensors of all ranks of the group. `tag`: of its transfers, where it is made of such."""
        ...

    def send_recv(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """`tensor` goes to the next rank of the group. `out` takes what the one before sends."""
        ...

    def reduce_scatter(self, out: torch.Tensor, tensor: torch.Tensor, to: Group) -> Works:
        """`out` takes this rank's part of the sum of `tensor` (n, …), and may be this part. On a GPU only."""
        ...

    def send(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works: ...

    def receive(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works: ...

    def exchange(self, out: Parts, parts: Parts, to: Group, tag: int) -> Works:
        """Part i of `parts` goes to rank i of the group, and part i of `out` takes what that rank sends here."""
        ...

    def latest(self, instant: int, device: torch.device) -> int:
        """The largest of all ranks' `instant`."""
        ...


class NoPeers:
    """Transport for one rank without peers, as in a dry run: reductions add nothing, and received tensors are zeros."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def all_reduce(self, tensor: torch.Tensor, reduction: Reduction, to: Group) -> Works:
        return []

    def all_gather(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        parts = out.view(len(to.ranks), -1)
        for rank, part in zip(to.ranks, parts, strict=True):
            if rank == self._rank:
                part.copy_(tensor.view(-1))
            else:
                part.zero_()
        return []

    def send_recv(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        out.zero_()
        return []

    def reduce_scatter(self, out: torch.Tensor, tensor: torch.Tensor, to: Group) -> Works:
        out.view(-1).copy_(tensor.view(len(to.ranks), -1)[to.ranks.index(self._rank)])
        return []

    def send(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works:
        return []

    def receive(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works:
        tensor.zero_()
        return []

    def exchange(self, out: Parts, parts: Parts, to: Group, tag: int) -> Works:
        for rank, into, part in zip(to.ranks, out, parts, strict=True):
            if rank == self._rank and into.shape == part.shape:
                into.copy_(part)
            else:
                into.zero_()
        return []

    def latest(self, instant: int, device: torch.device) -> int:
        return instant

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        raise AssertionError("what differs between ranks is not asked of one rank alone")

    def tell(self, number: int, peer: int) -> None:
        raise AssertionError("one rank alone asks nobody for the time")

    def told_by(self, peer: int) -> int:
        raise AssertionError("one rank alone asks nobody for the time")
