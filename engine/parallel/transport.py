"""What `engine.parallel.comm` sends by, as an interface; a transport for one rank without peers; and memory as it is sent."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from engine.parallel.clocks import Line
from engine.topology import Axis

Reduction = Literal["sum", "max"]

# A view of raw memory. ctypes would create a new array type for each size, which is garbage later.
_memoryview = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview.argtypes, _memoryview.restype = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object
_WRITABLE = 0x200  # PyBUF_WRITE


class Work(Protocol):
    """A part of a call in progress."""

    def wait(self) -> object: ...


Works = list[Work | None]  # what a call must wait for


@dataclass(frozen=True)
class Group:
    """Ranks that take part in a collective, along one axis of the mesh."""

    axis: Axis
    ranks: tuple[int, ...]
    handle: Any = None  # torch's process group; None for one rank alone


class Transport(Line, Protocol):
    """What `Comm` sends by. Tensors are contiguous, and must not be used until the call is complete."""

    def all_reduce(self, tensor: torch.Tensor, reduction: Reduction, to: Group) -> Works: ...

    def all_gather(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """`out` (n, …) takes the tensors of all ranks of the group. `tag`: of its transfers, where it is made of such."""
        ...

    def all_to_all(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """Part i of `tensor` (n, …) goes to rank i of the group. `out` (n, …) takes what they send. `tag`: of transfers."""
        ...

    def send_recv(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        """`tensor` goes to the next rank of the group. `out` takes what the one before sends."""
        ...

    def reduce_scatter(self, out: torch.Tensor, tensor: torch.Tensor, to: Group) -> Works:
        """`out` takes this rank's part of the sum of `tensor` (n, …), and may be this part. On a GPU only."""
        ...

    def send(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works: ...

    def receive(self, tensor: torch.Tensor, peer: int, to: Group, tag: int) -> Works: ...

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

    def all_to_all(self, out: torch.Tensor, tensor: torch.Tensor, to: Group, tag: int) -> Works:
        own = to.ranks.index(self._rank)
        out.zero_()[own].copy_(tensor[own])
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

    def latest(self, instant: int, device: torch.device) -> int:
        return instant

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        raise AssertionError("what differs between ranks is not asked of one rank alone")

    def tell(self, number: int, peer: int) -> None:
        raise AssertionError("one rank alone asks nobody for the time")

    def told_by(self, peer: int) -> int:
        raise AssertionError("one rank alone asks nobody for the time")


def unowned_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a flat tensor that does not own it. The caller keeps the owner until the call is complete.

    gloo's threads free their reference to a tensor some time after the wait. If it were the last one, memory would be freed at a
    random instant by a thread that the profiler does not see. NCCL follows the order of the stream.
    """
    assert tensor.is_contiguous()
    if tensor.device.type != "cpu":
        return tensor.view(-1)
    return torch.frombuffer(_memoryview(tensor.data_ptr(), tensor.nbytes, _WRITABLE), dtype=tensor.dtype)
