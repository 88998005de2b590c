"""The speed of a device: its peak figures, and the part of them that is reached. One set of assumptions for everything.

The assumptions are not fitted to any single measurement. A user who has better numbers for a machine can change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.devices import DeviceSpec
from engine.grid import Grid, Whole
from engine.spec import Precision, Spec
from engine.topology import CallAxis, strides

Real = NDArray[np.float64]


class Assumptions(Spec):
    """What part of its peak a device reaches, and how its programs are written."""

    matmul_efficiency: float = Field(
        0.87,
        gt=0,
        le=1,
        description="share of the FLOP/s of the device's best matrix product that the products of a Transformer reach",
    )
    attention_efficiency: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of peak FLOP/s that the matrix products inside attention reach, whose inner dimension is one head's "
        "width; fused ones 0.35 to 0.7 (Dao 2023; Shah et al. 2024)",
    )
    memory_efficiency: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of memory bandwidth that norms, softmax and other elementwise kernels reach; a plain copy reaches "
        "0.85 to 0.92",
    )
    intra_efficiency: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of a link's bandwidth inside a node that a collective reaches; nccl-tests show 0.75 to 0.82 of NVLink",
    )
    inter_efficiency: float = Field(
        0.85,
        gt=0,
        le=1,
        description="share of network bandwidth that a collective or a message reaches; nccl-tests show 0.8 to 0.95",
    )
    dp_overlap: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the last microbatch's backward pass that can overlap with the reduction of gradients",
    )
    backward_overlap: bool = Field(
        True,
        description="backward runs tp collectives beside the products of the input's and the weight's gradient, as this engine "
        "does where a schedule does not split backward",
    )
    tp_overlap: float = Field(
        0.0, ge=0, le=1, description="share of a layer's tp collectives that is hidden, if that is more than is hidden so"
    )
    launch_us: float = Field(
        60.0,
        ge=0,
        le=1000,
        description="launch overhead of each kernel and collective on the host, in microseconds; a pass takes at least the sum "
        "of these; the value of Megatron-DeepSpeed for layers of width 1,024 on an A100 (vTrain, Bang et al. 2024)",
    )
    fused_accumulation: bool = Field(
        False, description="the weight-gradient GEMM adds to the accumulated gradient in the same kernel, without a separate add"
    )
    split_messages: bool = Field(
        False, description="each tp rank sends 1/tp of a message to the next stage, where they are gathered (SC21, section 4.1)"
    )


@dataclass(frozen=True)
class Rates:
    """What a device reaches of its figures: FLOP/s, and bytes a second of its memory."""

    products: float  # of products with weights
    attention: float  # of products inside attention; measured in 16 bits and used for fp32 too
    memory: float


def on_device(device: DeviceSpec, assumed: Assumptions) -> Assumptions:
    """The assumptions, with what was measured on the device in place of defaults. One that the user has changed stays."""
    changed = {
        name: getattr(device, name)
        for name, field in Assumptions.model_fields.items()
        if getattr(device, name, None) is not None and getattr(assumed, name) == field.default
    }
    return assumed.model_copy(update=changed) if changed else assumed


def rates(device: DeviceSpec, precision: Precision, assumed: Assumptions) -> Rates:
    assumed = on_device(device, assumed)
    return Rates(
        products=device.reached(precision) * assumed.matmul_efficiency,
        attention=device.peak(precision) * assumed.attention_efficiency,
        memory=device.memory_bandwidth * assumed.memory_efficiency,
    )


@dataclass(frozen=True)
class Link:
    """The link of an axis's groups. A message takes latency + bytes / bandwidth. (n,) each"""

    latency: Real  # seconds
    bandwidth: Real  # bytes a second
    degree: Real  # ranks of a group
    exchange: Real | None = None  # seconds of an all-to-all for each byte that a rank hands over; None: as round the ring

    def all_gather(self, size: Any, calls: Any = 1) -> Real:
        """Seconds of all-gathers, or of reduce-scatters, over a ring. `size`: bytes of the whole tensors, in `calls` calls.

        A call takes d − 1 steps, each with 1/d of its bytes (Thakur et al. 2005, section 4), so a group of one rank takes no
        time. NCCL uses trees only for all-reduce (src/graph/tuning.cc). So small calls go over the ring too.
        """
        return (self.degree - 1) * (calls * self.latency + size / self.degree / self.bandwidth)

    def all_reduce(self, size: Any, calls: Any = 1) -> Real:
        """Seconds of all-reduces, over a ring or a tree, whichever is faster. Arguments as for `all_gather`.

        A ring runs a reduce-scatter and an all-gather (Patarasuk and Yuan 2009). A tree takes 2·⌈log₂ d⌉ steps instead of 2·(d −
        1), and sends all bytes twice (Sanders et al. 2009).
        """
        ring = 2 * self.all_gather(size, calls)
        tree = 2 * (np.ceil(np.log2(self.degree)) * calls * self.latency + size / self.bandwidth)
        return np.minimum(ring, tree)

    def call(self, collective: str, payload: Any) -> Real:
        """Seconds of a call that hands over `payload` bytes on each rank."""
        if collective == "all_reduce":
            return self.all_reduce(payload)
        if collective == "send_recv":
            return self.message(payload)
        if collective == "all_to_all" and self.exchange is not None:
            return self.all_to_all(payload)
        return self.all_gather(payload * self.degree if collective == "all_gather" else payload)

    def all_to_all(self, payload: Any) -> Real:
        """Seconds of an all-to-all of `payload` bytes on each rank: all messages start at once, so one latency is waited for."""
        assert self.exchange is not None
        return np.where(self.degree > 1, self.latency + payload * self.exchange, 0.0)

    def message(self, size: Any) -> Real:
        """Seconds of a message of `size` bytes to the next rank. 0 if the group has one rank."""
        return np.where(self.degree > 1, self.latency + size / self.bandwidth, 0.0)


def link(grid: Grid, axis: CallAxis | Literal["edp"], device: DeviceSpec, assumed: Assumptions) -> Link:
    """The link of an axis's groups. `axis`: "edp" is the ranks that hold the same experts and shard them, ep apart along dp.

    Over dp groups have all ranks that hold the same parameters.
    """
    stride = strides(grid.degrees)
    if axis == "dp":
        return link_of(grid.replicas, stride["cp"], device, assumed)
    if axis == "ep":
        # The slowest of an all-to-all's messages goes between nodes, and all are waited for.
        return link_of(grid.ep, stride["dp"], device, assumed, waits=True)
    if axis == "edp":
        return link_of(grid.shards // grid.ep, stride["cp"] * grid.ep, device, assumed)
    return link_of(grid.degrees[axis], stride[axis], device, assumed, waits=axis == "pp")


def shard_links(grid: Grid, device: DeviceSpec, assumed: Assumptions) -> tuple[Link, Link]:
    """The link of the groups over which ZeRO shards, and that of the ranks that hold the same shard."""
    stride = strides(grid.degrees)["cp"]
    return (
        link_of(grid.shards, stride, device, assumed),
        link_of(grid.zero_replicas, stride * grid.shards, device, assumed),
    )


def link_of(degree: Whole, stride: Whole, device: DeviceSpec, assumed: Assumptions, waits: bool = False) -> Link:
    """The link of groups of `degree` ranks that are `stride` ranks apart. Neighbouring ranks are in the same node.

    A group is inside a node if stride × degree ≤ node_size. Otherwise its ring is as slow as the links between nodes. A node has
    node_size ÷ stride of the group's ranks, and the ring can use the network ports of all of them. One in node_size ÷ stride hops
    is between nodes, so the latency is the average over the hops; if a pipeline or an all-to-all `waits` for its slowest message,
    that one's.

    In an all-to-all a rank sends each other rank an equal part: those for its own node by the links in it, the others by its own
    network port. Both go on at the same time.
    """
    node = device.node_size
    inside = stride * degree <= node
    in_node = np.maximum(1, node // stride)  # the group's ranks in a node
    between = 1.0 if waits else 1 / in_node  # the share of hops between nodes
    inter = device.inter_bandwidth * assumed.inter_efficiency
    intra = device.intra_bandwidth * on_device(device, assumed).intra_efficiency
    near = np.minimum(degree, in_node)
    mixed = device.inter_latency * between + device.intra_latency * (1 - between)
    return Link(
        latency=np.where(inside, device.intra_latency, mixed),
        bandwidth=np.where(inside, intra, np.minimum(intra, inter * in_node)),
        degree=degree.astype(np.float64),
        exchange=np.maximum((near - 1) / intra, (degree - near) / inter) / degree,
    )
