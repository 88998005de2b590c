"""The checklist for choosing a layout: techniques in the order in which they are tried, each with its memory and step time.

It is the practice of the field. There are two ways to make a model fit. One shards the states over all replicas (ZeRO, FSDP;
Rajbhandari et al. 2020). The other shards the model: tensor parallelism inside a node, pipeline parallelism across nodes, data
parallelism for the rest (Narayanan et al. 2021, section 5, takeaways; Korthikanti et al. 2022). The checklist tries each way up
to the first layout that fits, and takes the faster. On one device there is one way: selective, then full recomputation.
It is for teaching. `engine.planner.search` compares all layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.devices import DeviceSpec
from engine.grid import Grid
from engine.papers.accounting import accounting
from engine.planner.candidates import cheap_recompute
from engine.planner.reserve import reserve
from engine.planner.search import MIXED
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.spec import LayoutSpec, ModelSpec, Recompute, RequestError, RunSpec, WorkloadSpec, sentence

Lever = Literal["replicas", "zero", "recompute", "fsdp", "fsdp_full", "tensor", "pipeline", "full"]
_SHARDS_STATES: tuple[Lever, ...] = ("replicas", "zero", "recompute", "fsdp", "fsdp_full")  # the first way, not the second


@dataclass(frozen=True)
class Try:
    """One entry of the checklist: a technique, the spec with it, the bytes of its fullest rank, and the seconds of a step.

    `needs` has the tensors' peak and what a plan keeps free beside it (`engine.planner.reserve`). `step_s` is None if it does not
    fit.
    """

    lever: Lever
    spec: RunSpec
    needs: int
    step_s: float | None

    @property
    def fits(self) -> bool:
        return self.step_s is not None


def advise(model: ModelSpec, devices: int, device: DeviceSpec, sequences: int) -> list[Try]:
    """The entries that are tried: of each way up to the first that fits.

    `sequences`: the global batch. Entries whose dp does not divide it are left out. All have the workload of a search, and one
    sequence in a microbatch. Raises `RequestError` if every entry is left out.
    """
    possible = list(_possible(model, devices, device.node_size, sequences))
    if not possible:
        raise RequestError(
            sentence(
                "no entry of the checklist for {devices} devices divides {sequences} sequences over its replicas",
                devices=devices,
                sequences=sequences,
            )
        )
    grid = Grid.of([spec for _, spec in possible])
    memory = accounting("engine")(model, MIXED, grid)[0]
    needs = memory + reserve(device, grid, model, memory)
    tried: list[Try] = []
    fitted: set[bool] = set()  # for each way that has an entry that fits: whether it shards the states
    for (lever, spec), need in zip(possible, needs, strict=True):
        way = devices == 1 or lever in _SHARDS_STATES  # one device shards nothing, so there is one way
        if way in fitted:
            continue
        fits = need <= device.memory_bytes
        if fits:
            fitted.add(way)
        tried.append(Try(lever, spec, int(need), simulated(spec, device, Assumptions())[0] if fits else None))
    return tried


def advice(tried: list[Try]) -> Try | None:
    """The fastest entry that fits; None if none does."""
    return min((entry for entry in tried if entry.fits), key=lambda entry: entry.step_s or 0.0, default=None)


def left_out(model: ModelSpec, devices: int, device: DeviceSpec, sequences: int, tried: list[Try]) -> list[tuple[Lever, int]]:
    """The entries before the last tried whose dp does not divide the batch, which `advise` left out, each with its dp."""
    last = tried[-1].lever, tried[-1].spec.layout
    found = []
    for lever, layout in _checklist(model, devices, device.node_size):
        if (lever, layout) == last:
            break
        if sequences % layout.dp:
            found.append((lever, layout.dp))
    return found


def _possible(model: ModelSpec, devices: int, node: int, sequences: int) -> Iterator[tuple[Lever, RunSpec]]:
    for lever, layout in _checklist(model, devices, node):
        microbatches, left = divmod(sequences, layout.dp)
        if left:
            continue
        workload = WorkloadSpec.model_validate(MIXED.model_dump() | {"microbatches": microbatches, "microbatch_size": 1})
        try:
            yield lever, RunSpec(model=model, layout=layout, workload=workload)
        except RequestError:  # such as tp that does not divide the heads, or more stages than layers
            continue


def _checklist(model: ModelSpec, devices: int, node: int) -> list[tuple[Lever, LayoutSpec]]:
    """Every entry of the checklist, cheapest first. tp, and then pp, doubles as long as there are devices for it."""
    cheap = cheap_recompute(model, MIXED)
    found: list[tuple[Lever, LayoutSpec]] = [("replicas", LayoutSpec(dp=devices))]
    if devices > 1:
        found.append(("zero", LayoutSpec(dp=devices, zero=1)))
    found.append(("recompute", LayoutSpec(dp=devices, zero=1 if devices > 1 else 0, recompute=cheap)))
    if devices > 1:
        found.append(("fsdp", LayoutSpec(dp=devices, zero=3, recompute=cheap)))
        found.append(("fsdp_full", LayoutSpec(dp=devices, zero=3, recompute="full")))
    widest = 1
    for tp in _doubling(min(node, devices)):
        if devices % tp == 0 and model.fits_tp(tp):
            widest = tp
            found.append(("tensor", _split(devices, tp, 1, cheap)))
    deepest = 1
    for pp in _doubling(min(devices // widest, model.layers)):
        if devices % (widest * pp) == 0:
            deepest = pp
            found.append(("pipeline", _split(devices, widest, pp, cheap)))
    found.append(("full", _split(devices, widest, deepest, "full")))
    return found


def _split(devices: int, tp: int, pp: int, recompute: Recompute) -> LayoutSpec:
    """dp is the rest of the devices. ZeRO 1 if dp > 1; sequence parallelism if tp > 1."""
    dp = devices // (tp * pp)
    return LayoutSpec(dp=dp, tp=tp, pp=pp, zero=1 if dp > 1 else 0, recompute=recompute, sequence_parallel=tp > 1)


def _doubling(most: int) -> list[int]:
    """2, 4, 8 … up to `most`."""
    out = []
    degree = 2
    while degree <= most:
        out.append(degree)
        degree *= 2
    return out
