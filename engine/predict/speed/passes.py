"""Seconds of one layer and of the ends of a model, for one microbatch and for many layouts at once, read from ledgers.

A matrix product takes the longer of two times (roofline, Williams et al. 2009): its FLOPs at the reached FLOP/s of the precision,
or the bytes of its operands and result at the reached memory bandwidth. fp32 is not rounded to TF32, as in torch by default. The
efficiency of attention's products is measured in 16 bits and used for fp32 too. Every other kernel takes the bytes that it reads
and writes. What is a kernel is said in `engine.predict.ledger.kernels`. A pass takes at least as long as the host needs to launch
its kernels. A call over tp takes the time of its collective (`engine.predict.speed.rates.Link`).

Times are arrays (3, 3, n). The first axis is the kind of pass: `FORWARD`; `INPUTS` and `WEIGHTS`, the two halves of backward,
which includes the forward that it computes again. The second axis is `COMPUTE`, `TP` and `DP`. The third is the layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.devices import DeviceSpec
from engine.predict.grid import RECOMPUTES, Grid, Whole, distinct
from engine.predict.ledger.dimensions import dimensions, slicing, structure
from engine.predict.ledger.form import Call, Part, Product, Structure
from engine.predict.ledger.kernels import Kernel, kernels, with_fused_attention
from engine.predict.ledger.split import part_of
from engine.predict.ledger.store import NotRecordedError, ledger_store
from engine.predict.speed.rates import Assumptions, Link, Real, link
from engine.spec import ModelSpec, WorkloadSpec

FORWARD, INPUTS, WEIGHTS = range(3)
COMPUTE, TP, DP = range(3)
_ACTIONS = "FIW"  # by kind of pass
_KEPT = 512  # readings, the latest
PartName = Literal["embedding", "layer", "decoder", "head"]  # "decoder": a layer with cross-attention
MODEL_PARTS: tuple[PartName, ...] = ("embedding", "layer", "decoder", "head")


class Pass(NamedTuple):
    """One pass through a part of the model. Equal kernels, products and calls are counted."""

    products: Counter[Kernel]
    others: Counter[Kernel]  # without FLOPs
    calls: Counter[Call]

    def add(self, step: Kernel | Call) -> None:
        several: Counter[Any] = self.calls if isinstance(step, Call) else self.products if step.flops else self.others
        several[step] += 1


class ModelPasses:
    """Seconds of each part of a model, for each layout of a grid."""

    def __init__(self, seconds: dict[PartName, Real], which: Whole) -> None:
        """`seconds`: of layouts that differ, (3, 3, k) each. `which`: which of these each layout is, (n,)."""
        self._seconds, self._which = seconds, which

    def take(self, which: Any) -> ModelPasses:
        """Those of the layouts that an index, a slice or a mask selects."""
        return ModelPasses(self._seconds, self._which[which])

    def of(self, part: PartName) -> Real:
        """Seconds of a part. (3, 3, n)"""
        return self._seconds[part].take(self._which, axis=2)


def model_passes(
    model: ModelSpec, workload: WorkloadSpec, grid: Grid, device: DeviceSpec, assumed: Assumptions
) -> ModelPasses:
    """Raises `NotRecordedError` for all ledgers that are missing."""
    first, which = distinct(grid.tp, grid.microbatch_size, grid.sequence_parallel, grid.recompute)
    few = grid.take(first)
    part, _ = part_of(model, range(model.layers), True, True)
    groups: dict[Structure, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    columns = (few.tp, few.microbatch_size, few.sequence_parallel, few.recompute)
    for row, (tp, size, sequence, recompute) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        cut = slicing(tp, sequence)
        sizes = dimensions(model, cut, tp, size)
        groups[structure(model, workload, RECOMPUTES[recompute], cut, sizes)].append((row, sizes))
    store = ledger_store()
    if missing := [(one, part) for one in groups if (one, part) not in store]:
        raise NotRecordedError(missing)
    rates = _Rates(model, workload, device, assumed)
    seconds: dict[PartName, Real] = {name: np.zeros((3, 3, len(few))) for name in MODEL_PARTS}
    for one, rows in groups.items():
        here = np.array([row for row, _ in rows])
        known = {name: np.array([sizes[name] for _, sizes in rows], np.float64) for name in rows[0][1]}
        of_tp = link(few.take(here), "tp", device, assumed)
        for (name, kind), read in _passes(one, part, assumed.fused_attention).items():
            compute, tp = rates.seconds(read, known, of_tp)
            seconds[name][kind, TP, here] = tp if name in ("embedding", "head") else tp * (1 - assumed.tp_overlap)
            seconds[name][kind, COMPUTE, here] = compute
    return ModelPasses(seconds, which)


class _Rates:
    """What a device reaches."""

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, device: DeviceSpec, assumed: Assumptions) -> None:
        self.products = device.reached(workload.precision) * assumed.matmul_efficiency
        self.attention = device.peak(workload.precision) * assumed.attention_efficiency
        self.bandwidth = device.memory_bandwidth * assumed.memory_efficiency
        self.launch = assumed.launch_s
        self.computed = 0.5 if model.parts.objective == "causal" else 1.0  # the scores that fused attention computes

    def seconds(self, one: Pass, sizes: Mapping[str, Real], of_tp: Link) -> tuple[Any, Any]:
        """Seconds of kernels and of calls over tp."""
        found: dict[tuple[str, ...], Any] = {(): 1.0}

        def value(dimensions: tuple[str, ...]) -> Any:
            if dimensions not in found:
                found[dimensions] = value(dimensions[:-1]) * sizes[dimensions[-1]]
            return found[dimensions]

        def total(products: Iterable[Product]) -> Any:
            return sum(product.times * value(product.dimensions) for product in products)

        compute: Any = sum(times * total(kernel.moved) for kernel, times in one.others.items()) / self.bandwidth
        for kernel, times in one.products.items():
            flops = total(kernel.flops) / (self.attention if kernel.attention else self.products)
            moved = total(kernel.moved) / self.bandwidth
            if kernel.attention == "written":
                seconds = flops + moved
            elif kernel.attention:
                seconds = flops * self.computed
            else:
                seconds = np.maximum(flops, moved)
            compute = compute + times * seconds
        tp = sum(times * of_tp.call(call.collective, total([call.payload])) for call, times in one.calls.items())
        launches = one.products.total() + one.others.total()
        return np.maximum(compute, launches * self.launch - tp), tp


@lru_cache(maxsize=_KEPT)
def _passes(one: Structure, part: Part, fuses: bool) -> dict[tuple[PartName, int], Pass]:
    """The passes of each part of a model, from the ledger of the whole model. `part`: the whole model."""
    ledger = ledger_store()(one, part)
    trace = ledger.trace(hooked=False, split=True)
    encoders, decoders = part.recorded
    # Of three recorded layers of a kind, the one in the middle stands for all.
    layers: dict[int, PartName] = {encoders // 2: "layer"} | ({encoders + decoders // 2: "decoder"} if decoders else {})
    found: dict[tuple[PartName, int], Pass] = defaultdict(lambda: Pass(Counter(), Counter(), Counter()))
    for kind, action in enumerate(_ACTIONS):
        last = encoders + decoders - 1 if kind == FORWARD else 0  # the layer behind which the other end of the model is
        end: PartName = "embedding" if kind == FORWARD else "head"
        steps = kernels(ledger, trace, action)
        for layer, step in with_fused_attention(steps) if fuses else steps:
            if layer == last:
                end = "head" if kind == FORWARD else "embedding"
            if name := end if layer < 0 else layers.get(layer):
                found[name, kind].add(step)
    return found
