"""How fast a device really is: its peak figures, and what part of them is reached. One setting for everything, stated here.

Nothing is fitted to any single measurement; whoever knows better for a machine changes a number, and sees what that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.devices import DeviceSpec
from engine.predict.grid import Grid
from engine.spec import Spec
from engine.topology import Axis, strides

Real = NDArray[np.float64]


class Assumptions(Spec):
    """What part of its peak a device reaches, and how its programs are written."""

    matmul_efficiency: float = Field(
        0.87,
        gt=0,
        le=1,
        description="of the FLOP/s of the device's best product that the products of a Transformer reach",
    )
    attention_efficiency: float = Field(
        0.5,
        gt=0,
        le=1,
        description="of peak FLOP/s that the products inside attention reach, whose inner dimension is one head's width; fused "
        "ones 0.35 to 0.7 (Dao 2023; Shah et al. 2024)",
    )
    memory_efficiency: float = Field(
        0.8,
        gt=0,
        le=1,
        description="of memory bandwidth that norms, softmax and the like reach; a plain copy reaches 0.85 to 0.92",
    )
    intra_efficiency: float = Field(
        0.8, gt=0, le=1, description="of a link inside a node that a collective reaches; nccl-tests show 0.75 to 0.82 of NVLink"
    )
    inter_efficiency: float = Field(
        0.85, gt=0, le=1, description="of the network that a collective or a message reaches; nccl-tests show 0.8 to 0.95"
    )
    dp_overlap: float = Field(
        0.8, ge=0, le=1, description="of the backward pass of the last microbatch that gradients can be reduced beside"
    )
    tp_overlap: float = Field(
        0.0, ge=0, le=1, description="of a layer's collectives over tp that is hidden; this engine waits for each"
    )
    fused_attention: bool = Field(
        False, description="scores never written to memory, and those hidden by the causal mask never computed (Dao 2023)"
    )
    fused_accumulation: bool = Field(
        False, description="a product adds its gradient to the one before in the same kernel, and none is written in between"
    )
    split_messages: bool = Field(
        False, description="each tp rank sends 1/tp of a message to the next stage, where they are gathered (SC21, section 4.1)"
    )


@dataclass(frozen=True)
class Link:
    """What a message costs along one axis: α + bytes/β. Arrays (n,), one entry a layout."""

    latency: Real
    bandwidth: Real
    degree: Real

    def all_gather(self, size: Any, calls: Any = 1) -> Real:
        """Seconds of a ring's all-gathers, or reduce-scatters, of `size` bytes in all when whole, in that many calls.

        Each takes d − 1 steps of a d-th of its size (Thakur et al. 2005, section 4); none where there is one rank. NCCL has trees
        for its all-reduce alone (src/graph/tuning.cc): however small these are, they go round the ring.
        """
        return (self.degree - 1) * (calls * self.latency + size / self.degree / self.bandwidth)

    def all_reduce(self, size: Any, calls: Any = 1) -> Real:
        """A reduce-scatter and an all-gather (Patarasuk and Yuan 2009), or up and down a tree, whichever is faster.

        A tree takes 2·⌈log₂ d⌉ steps instead of 2·(d − 1), and sends all of it twice (Sanders et al. 2009).
        """
        ring = 2 * self.all_gather(size, calls)
        tree = 2 * (np.ceil(np.log2(self.degree)) * calls * self.latency + size / self.bandwidth)
        return np.minimum(ring, tree)

    def message(self, size: Any) -> Real:
        """From one neighbour to the next; none where there is no other."""
        return np.where(self.degree > 1, self.latency + size / self.bandwidth, 0.0)


def link(grid: Grid, axis: Axis, device: DeviceSpec, assumed: Assumptions) -> Link:
    """The link that an axis's groups go over. A node holds neighbouring ranks.

    A group whose ranks are `stride` apart stays inside a node if stride × degree ranks fit in one. Otherwise its ring is as slow
    as its hops between nodes; but node_size ÷ stride of its ranks stand in a node, which has so many ports for that one ring, and
    of so many hops one is between nodes, which makes up the latency.
    """
    node = device.node_size
    degree, stride = grid.degrees[axis], strides(grid.degrees)[axis]
    inside = stride * degree <= node
    here = np.maximum(1, node // stride)  # the group's ranks in a node
    between = 1.0 if axis == "pp" else 1 / here  # of its hops; a message has one, and the slowest counts
    inter = device.inter_bandwidth * assumed.inter_efficiency
    intra = device.intra_bandwidth * assumed.intra_efficiency
    mixed = device.inter_latency * between + device.intra_latency * (1 - between)
    return Link(
        latency=np.where(inside, device.intra_latency, mixed),
        bandwidth=np.where(inside, intra, np.minimum(intra, inter * here)),
        degree=degree.astype(np.float64),
    )
