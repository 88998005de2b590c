"""What ranks communicate by, and on which device they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Backend:
    name: str
    device: torch.device
    why: str


def choose_backend(ranks_here: int, local_rank: int) -> Backend:
    """NCCL if this machine has a GPU for each of its ranks, otherwise gloo on the CPU."""
    gpus = torch.cuda.device_count()
    counted = f"{gpus} GPU{'' if gpus == 1 else 's'} for {ranks_here} rank{'' if ranks_here == 1 else 's'}"
    if gpus >= ranks_here:
        # Tensors on the CPU (none in a step) still need gloo.
        return Backend("cpu:gloo,cuda:nccl", torch.device("cuda", local_rank), f"{counted}, so NCCL")
    return Backend("gloo", torch.device("cpu"), f"{counted}, so gloo on the CPU")
