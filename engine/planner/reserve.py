"""Device memory that tensors do not take: what a framework's allocator does not see, and what it holds without a use.

    context         the CUDA context: the driver's own memory, and the kernels that are loaded
    communicators   NCCL's buffers, one set for each communicator that a rank is in, by axis
    workspace       cuBLAS's workspace for matrix products
    fragmentation   what the caching allocator has reserved and no tensor uses, a share of the tensors' peak

`engine.devices` has the figures of each device, with their sources. A plan keeps this free, or as much as the user says.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from engine.devices import DeviceSpec
from engine.grid import Grid, Whole
from engine.spec import ModelSpec, Sentence, sentence

_AXES = {"tp": "tp", "key copies": "tp", "cp": "cp", "dp": "dp", "shards": "dp", "shard replicas": "dp"}  # of communicators


@dataclass(frozen=True)
class ReserveTerm:
    """One term for a rank. `axis`: of a communicator; empty for the others."""

    name: Sentence
    bytes: int
    axis: str = ""


def reserve(device: DeviceSpec, grid: Grid, model: ModelSpec, memory: Whole, stated: int | None = None) -> Whole:
    """Bytes to keep free beside `memory`, the peak of tensors on the fullest rank, for each layout. (n,)

    `stated`: the user's own number, for every layout.
    """
    copies = np.maximum(1, grid.tp // model.key_heads)
    free = reserve_of(
        device, grid.replicas, grid.tp, grid.pp, model.parts.tied, memory, stated, copies, grid.cp, grid.zero_replicas
    )
    return np.broadcast_to(np.asarray(free, np.int64), len(grid))


def reserve_of(
    device: DeviceSpec,
    replicas: Any,
    tp: Any,
    pp: Any,
    tied: bool,
    memory: Any,
    stated: int | None = None,
    key_copies: Any = 1,
    cp: Any = 1,
    zero_replicas: Any = 1,
) -> Any:
    """The same for layouts given by their degrees: numbers, or arrays (n,). `replicas`: ranks with the same parameters, dp × cp.

    `tied`: first and last stage share a weight, and so have a communicator. `key_copies`: the tp ranks that hold the same key
    head, see `ModelSpec.key_copies`; they have one for its gradients, so only in training.
    `zero_replicas`: see `LayoutSpec`; with several, the ranks that shard have one, and those that hold the same shard.
    """
    if stated is not None:
        return stated
    free = fixed(device, replicas, tp, pp, tied, key_copies, cp, zero_replicas) + np.ceil(memory * device.fragmentation)
    return free.astype(np.int64) if isinstance(memory, np.ndarray) else int(free)


def fixed(
    device: DeviceSpec, replicas: Any, tp: Any, pp: Any, tied: bool, key_copies: Any = 1, cp: Any = 1, zero_replicas: Any = 1
) -> Any:
    """All terms but fragmentation, which depend on the layout alone. Numbers, or arrays (n,)."""
    found = device.context_bytes + device.workspace_bytes
    for members, times in _communicators(replicas, tp, pp, tied, key_copies, cp, zero_replicas).values():
        found = found + times * _communicator(device, members)
    return found


def tensors_that_fit(device: DeviceSpec, replicas: int, tp: int, pp: int, tied: bool, stated: int | None = None) -> int:
    """The largest peak of tensors that fits with its reserve, in bytes; 0 if the reserve alone does not fit."""
    if stated is not None:
        return max(0, device.memory_bytes - stated)
    return max(0, int((device.memory_bytes - int(fixed(device, replicas, tp, pp, tied))) / (1 + device.fragmentation)))


def reserve_terms(
    device: DeviceSpec,
    replicas: int,
    tp: int,
    pp: int,
    tied: bool,
    memory: int,
    key_copies: int = 1,
    cp: int = 1,
    zero_replicas: int = 1,
) -> list[ReserveTerm]:
    """The terms of one layout that are not 0; they add up to `reserve`."""
    found = [ReserveTerm(sentence("CUDA context: the driver, and the kernels that are loaded"), device.context_bytes)]
    texts = {
        "tp": sentence("NCCL: buffers of the tp group"),
        "key copies": sentence("NCCL: buffers of the tp ranks that hold the same key head"),
        "cp": sentence("NCCL: buffers of the cp group"),
        "dp": sentence("NCCL: buffers of the dp group"),
        "shards": sentence("NCCL: buffers of the ranks over which ZeRO shards"),
        "shard replicas": sentence("NCCL: buffers of the ranks that hold the same shard"),
        "pp": sentence("NCCL: buffers of the pp group"),
        "messages": sentence("NCCL: buffers for messages, a communicator for each neighbouring stage"),
        "tie": sentence("NCCL: buffers of the first and the last stage, for the tied weight"),
    }
    for name, (members, times) in _communicators(replicas, tp, pp, tied, key_copies, cp, zero_replicas).items():
        bytes_ = int(times * _communicator(device, members))
        found.append(ReserveTerm(texts[name], bytes_, _AXES.get(name, "pp")))
    found.append(ReserveTerm(sentence("cuBLAS: workspace of matrix products"), device.workspace_bytes))
    percent = f"{100 * device.fragmentation:g}%"
    text = sentence("fragmentation of the allocator: {percent} of the tensors", percent=percent)
    found.append(ReserveTerm(text, ceil(memory * device.fragmentation)))
    return [term for term in found if term.bytes]


def _communicators(
    replicas: Any, tp: Any, pp: Any, tied: bool, key_copies: Any, cp: Any, zero_replicas: Any
) -> dict[str, tuple[Any, Any]]:
    """(members, how many) of the communicators of a rank in the middle of the pipeline; of one that ties weights if `tied`."""
    return {
        "tp": (tp, np.where(tp > 1, 1, 0)),
        "key copies": (key_copies, np.where(key_copies > 1, 1, 0)),
        "cp": (cp, np.where(cp > 1, 1, 0)),
        "dp": (replicas, np.where(replicas > 1, 1, 0)),
        "shards": (replicas // zero_replicas, np.where(zero_replicas > 1, 1, 0)),
        "shard replicas": (zero_replicas, np.where(zero_replicas > 1, 1, 0)),
        "pp": (pp, np.where(pp > 1, 1, 0)),
        "messages": (2, np.minimum(pp - 1, 2)),
        "tie": (2, np.where(pp > 1, int(tied), 0)),
    }


def _communicator(device: DeviceSpec, members: Any) -> Any:
    return np.where(np.asarray(members) > 2, device.communicator_bytes, device.pair_communicator_bytes)
