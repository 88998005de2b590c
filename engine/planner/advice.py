"""The checklist for choosing a layout: levers in the order in which they are tried, each with the memory that it needs.

It is the practice of the field (Narayanan et al. 2021, section 5, takeaways; Korthikanti et al. 2022): tensor parallelism inside
a node, pipeline parallelism across nodes, data parallelism for the rest. Cheap levers come before expensive ones. The checklist
is for teaching. `engine.planner.search` compares all layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.devices import DeviceSpec
from engine.papers.accounting import accounting
from engine.predict.grid import Grid
from engine.spec import LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec, sentence

Lever = Literal["replicas", "zero", "recompute", "tensor", "pipeline", "full"]


@dataclass(frozen=True)
class Try:
    """One entry of the checklist: a lever, the spec with it, and the memory of its fullest rank."""

    lever: Lever
    spec: RunSpec
    needs: int  # bytes
    fits: bool


def advise(model: ModelSpec, devices: int, device: DeviceSpec, sequences: int) -> list[Try]:
    """The entries that are tried, in order, up to the first that fits. The last one is the advice, unless it is too large too.

    `sequences`: the global batch. Entries whose dp does not divide it are left out. All are in bf16, with written attention and
    one sequence in a microbatch. Raises `RequestError` if every entry is left out.
    """
    tried = []
    for lever, layout in _ladder(model, devices, device.node_size):
        microbatches, left = divmod(sequences, layout.dp)
        if left:
            continue
        workload = WorkloadSpec(microbatches=microbatches, microbatch_size=1, precision="bf16", attention="written")
        try:
            spec = RunSpec(model=model, layout=layout, workload=workload)
        except RequestError:  # such as tp that does not divide the heads, or more stages than layers
            continue
        needs = int(accounting("engine")(model, workload, Grid.of([spec]))[0][0])
        tried.append(Try(lever, spec, needs, needs <= device.memory_bytes))
        if tried[-1].fits:
            break
    if not tried:
        raise RequestError(
            sentence(
                "no entry of the checklist for {devices} devices divides {sequences} sequences over its replicas",
                devices=devices,
                sequences=sequences,
            )
        )
    return tried


def left_out(model: ModelSpec, devices: int, device: DeviceSpec, sequences: int, last: Try) -> list[tuple[Lever, int]]:
    """The entries before `last` that `advise` left out since their dp does not divide the batch, each with its dp."""
    found = []
    for lever, layout in _ladder(model, devices, device.node_size):
        if (lever, layout) == (last.lever, last.spec.layout):
            break
        if sequences % layout.dp:
            found.append((lever, layout.dp))
    return found


def _ladder(model: ModelSpec, devices: int, node: int) -> list[tuple[Lever, LayoutSpec]]:
    """Every entry of the checklist, cheapest first. tp, and then pp, doubles as long as there are devices for it."""
    found: list[tuple[Lever, LayoutSpec]] = [("replicas", LayoutSpec(dp=devices))]
    zero = 1 if devices > 1 else 0
    if zero:
        found.append(("zero", LayoutSpec(dp=devices, zero=1)))
    found.append(("recompute", LayoutSpec(dp=devices, zero=zero, recompute="core_attn")))
    widest = 1
    for tp in _doubling(min(node, devices)):
        if devices % tp == 0 and model.fits_tp(tp):
            widest = tp
            found.append(("tensor", _split(devices, tp, 1)))
    deepest = 1
    for pp in _doubling(min(devices // widest, model.layers)):
        if devices % (widest * pp) == 0:
            deepest = pp
            found.append(("pipeline", _split(devices, widest, pp)))
    last = _split(devices, widest, deepest)
    found.append(("full", last.model_copy(update={"recompute": "full"})))
    return found


def _split(devices: int, tp: int, pp: int) -> LayoutSpec:
    """dp is the rest of the devices. Selective recompute; ZeRO 1 if dp > 1; sequence parallelism if tp > 1."""
    dp = devices // (tp * pp)
    return LayoutSpec(dp=dp, tp=tp, pp=pp, zero=1 if dp > 1 else 0, recompute="core_attn", sequence_parallel=tp > 1)


def _doubling(most: int) -> list[int]:
    """2, 4, 8 … up to `most`."""
    out = []
    degree = 2
    while degree <= most:
        out.append(degree)
        degree *= 2
    return out
