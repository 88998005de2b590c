"""Seconds of one layer and of the ends of a model, for one microbatch and for many layouts at once, read from ledgers.

A matrix product takes the longer of two times (roofline, Williams et al. 2009): its FLOPs at the reached FLOP/s of the precision,
or the bytes of its operands and result at the reached memory bandwidth. fp32 is not rounded to TF32, as in torch by default. The
products inside attention are so thin that they take both, if the scores are written to memory. Every other kernel takes the bytes
that it reads and writes. `engine.ledger.kernels` says what a kernel is. A call over tp takes the time of its collective.
A pass takes at least as long as its host needs to launch all its kernels and calls. A processor that works off its kernels itself
takes both times, one after the other; and it fuses none of them, so each operation and copy is launched.

A product of experts reads the weights of all that a rank has, for the rows that come to them if loads are equal.

Times are arrays (3, 5, n). The first axis is the kind of pass: `FORWARD`; `INPUTS` and `WEIGHTS`, the two halves of backward.
The forward that backward computes again is in `INPUTS`. The second axis is `COMPUTE`, `TP`, `CP`,
`EP` and `DP`. The third is the layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.devices import DeviceSpec
from engine.grid import RECOMPUTES, Grid, Whole, distinct
from engine.ledger.dimensions import loss_chunks, middle_steps
from engine.ledger.form import LOSS_CHUNK, RUNS, Call, Ledger, Part, Product, Segment, Step, Structure
from engine.ledger.kernels import Kernel, beside, kernels
from engine.ledger.split import part_of
from engine.ledger.store import NotRecordedError, ledger_store
from engine.predict.speed.rates import Assumptions, Link, Real, link, on_device, rates
from engine.predict.structures import by_structure
from engine.spec import ModelSpec, Precision, WorkloadSpec
from engine.topology import CallAxis

FORWARD, INPUTS, WEIGHTS = range(3)
COMPUTE, TP, CP, EP, DP = PARTS_OF_PASS = range(5)
_ACTIONS = "FIW"  # by kind of pass
_LINKS: tuple[CallAxis, ...] = ("tp", "cp", "ep")  # of calls that a pass makes
_KEPT = 512  # readings, the latest
PartName = Literal["embedding", "layer", "decoder", "head", "loss chunk"]  # "decoder": a layer with cross-attention
MODEL_PARTS: tuple[PartName, ...] = ("embedding", "layer", "decoder", "head")  # a loss in chunks is in the head


class Pass(NamedTuple):
    """One pass through a part of the model: how often there is each kernel, and each call over tp, cp and ep."""

    kernels: Counter[Kernel]
    calls: Counter[Call]
    beside: Counter[tuple[Call, Kernel]]  # of the calls, those that a whole backward runs beside a product, with that
    operations: Counter[Step]  # how many of each step are in its kernels, and copies and sums of gradients


class ModelPasses:
    """Seconds of each part of a model, for each layout of a grid."""

    def __init__(self, seconds: dict[PartName, Real], which: Whole, kept: Whole) -> None:
        """`seconds`: of layouts that differ, (3, 5, k) each. `which`: which of these each layout is, (n,). `kept`: which its
        layers are that full recompute leaves out.
        """
        self._seconds, self._which, self._kept = seconds, which, kept

    def take(self, which: Any) -> ModelPasses:
        """Those of the layouts that an index, a slice or a mask selects."""
        return ModelPasses(self._seconds, self._which[which], self._kept[which])

    def of(self, part: PartName, kept: bool = False) -> Real:
        """Seconds of a part. `kept`: of layers that full recompute leaves out. (3, 5, n)"""
        return self._seconds[part].take(self._kept if kept else self._which, axis=2)


def model_passes(model: ModelSpec, workload: WorkloadSpec, grid: Grid, device: DeviceSpec, assumed: Assumptions) -> ModelPasses:
    """Raises `NotRecordedError` for all ledgers that are missing."""
    some = grid.recomputed > 0
    every = grid.joined(replace(grid, recompute=np.where(some, RECOMPUTES.index("none"), grid.recompute))) if some.any() else grid
    whole_backward = ~every.by_schedule(lambda facts: facts.splits)
    first, which = distinct(
        every.tp, every.cp, every.ep, every.context, every.microbatch_size, every.sequence_parallel, every.recompute,
        whole_backward,
    )  # fmt: skip
    few, whole_backward = every.take(first), whole_backward[first] & assumed.backward_overlap
    part = _whole(model)
    groups, store = by_structure(model, workload, few), ledger_store()
    if missing := [(group.structure, part) for group in groups if (group.structure, part) not in store]:
        raise NotRecordedError(missing)
    on_device = _Seconds(model, workload.precision, device, assumed)
    seconds: dict[PartName, Real] = {name: np.zeros((3, len(PARTS_OF_PASS), len(few))) for name in MODEL_PARTS}
    for group in groups:
        here = group.rows
        sizes = {name: values[group.which].astype(np.float64) for name, values in group.values.items()}
        links = {axis: link(few.take(here), axis, device, assumed) for axis in _LINKS}
        for (name, kind), read in _passes(group.structure, part).items():
            if name != "loss chunk":
                hidden = 0.0 if name in ("embedding", "head") else assumed.tp_overlap
                seconds[name][kind][:DP, here] += on_device.of(read, sizes, links, hidden, whole_backward[here])
                continue
            whole, left = loss_chunks(sizes)
            seconds["head"][kind][:DP, here] += whole * on_device.of(read, sizes, links)
            seconds["head"][kind][:DP, here] += (left > 0) * on_device.of(read, {**sizes, "C": left}, links)
    return ModelPasses(seconds, which[: len(grid)], which[-len(grid) :])


def _whole(model: ModelSpec) -> Part:
    """The whole model. Where layers with an MLP and with experts alternate, as if the former came first: layers of a kind take as
    long wherever they are.
    """
    if model.experts:
        return Part(True, True, min(model.layers - model.expert_layers, 2), False, min(model.expert_layers, 2))
    part, _ = part_of(model, range(model.layers), True, True)
    return part


class _Seconds:
    """Seconds of passes on a device."""

    def __init__(self, model: ModelSpec, precision: Precision, device: DeviceSpec, assumed: Assumptions) -> None:
        self._rates, self._launch = rates(device, precision, assumed), on_device(device, assumed).launch_us / 1e6
        self._ahead = device.launches_ahead
        # The share of the scores that fused attention computes.
        self._computed = _computed(model)

    def of(
        self, one: Pass, sizes: Mapping[str, Real], links: Mapping[CallAxis, Link], hidden: float = 0.0, whole: Any = False
    ) -> Real:
        """Seconds of kernels, of calls over tp that are not hidden, and of those over cp and ep. (4, k)

        `sizes`: the values of the dimensions. `hidden`: the share of the calls over tp that overlaps with kernels. `whole`: where
        backward is not split, so that `Pass.beside` overlap each with its product, and what takes longer than that is not hidden.
        What is passed round a ring overlaps with the products of attention in the same way.
        """
        found: dict[tuple[str, ...], Any] = {(): 1.0}

        def value(names: tuple[str, ...]) -> Any:
            if names not in found:
                found[names] = value(names[:-1]) * sizes[names[-1]]
            return found[names]

        def total(products: Iterable[Product]) -> Any:
            return sum(product.times * value(product.dimensions) for product in products)

        def at(step: Step, times: int) -> Any:
            return times * middle_steps(sizes) if step == "middle" else times

        def often(what: Kernel | Call, times: int) -> Any:
            return at(what.step, times)

        kernels = [(kernel, often(kernel, times) * self._kernel(kernel, total)) for kernel, times in one.kernels.items()]
        compute, attention = sum(time for _, time in kernels), sum(time for kernel, time in kernels if kernel.attention)
        seconds = dict.fromkeys((*_LINKS, "ring"), np.zeros(1))
        for call, times in one.calls.items():
            axis: CallAxis = call.axis  # type: ignore[assignment]
            name = "ring" if call.collective == "send_recv" else axis
            seconds[name] = seconds[name] + often(call, times) * links[axis].call(call.collective, total([call.payload]))
        over_tp = seconds["tp"] * (1 - hidden)
        if one.beside:
            tp = links["tp"]
            under = sum(
                times * np.minimum(tp.call(call.collective, total([call.payload])), self._kernel(kernel, total))
                for (call, kernel), times in one.beside.items()
            )
            over_tp = np.minimum(over_tp, seconds["tp"] - np.where(whole, under, 0.0))
        over_cp = seconds["cp"] + np.maximum(0.0, seconds["ring"] - attention)
        over_ep = seconds["ep"]
        launched: Iterable[Any] = (often(kernel, times) for kernel, times in one.kernels.items())
        if not self._ahead:
            launched = (at(step, times) for step, times in one.operations.items())
        launches = (sum(launched) + sum(often(call, times) for call, times in one.calls.items())) * self._launch
        work = np.maximum(compute, launches - over_tp - over_cp - over_ep) if self._ahead else compute + launches
        return np.stack(np.broadcast_arrays(work, over_tp, over_cp, over_ep, links["tp"].degree)[:4])

    def _kernel(self, kernel: Kernel, total: Callable[[Iterable[Product]], Any]) -> Any:
        """Seconds of a kernel. `total`: the value of a sum of products."""
        moved = total(kernel.moved) / self._rates.memory
        if not kernel.flops:
            return moved
        if not kernel.attention:
            return np.maximum(total(kernel.flops) / self._rates.products, moved)
        products = total(kernel.flops) / self._rates.attention
        if kernel.attention == "whole":
            return products
        return products * self._computed if kernel.attention == "fused" else products + moved


def _computed(model: ModelSpec) -> float:
    """The share of the scores that a fused kernel computes: half of them below the diagonal; with a window those inside it."""
    if model.parts.objective != "causal":
        return 1.0
    windowed = sum(map(model.windowed, range(model.layers))) / model.layers
    inside = model.window / model.seq * (1 - model.window / model.seq / 2) if windowed else 0.0
    return 0.5 + windowed * (inside - 0.5)


@lru_cache(maxsize=_KEPT)
def _passes(one: Structure, part: Part) -> dict[tuple[PartName, int], Pass]:
    """The passes of each part of a model, from the ledger of the whole model. `part`: the whole model."""
    ledger = ledger_store()(one, part)
    trace = ledger.trace(hooked=False, split=True)
    found = {}
    hidden = _by_part(ledger.trace(hooked=False, split=False).segments("B"), part, False)
    for kind, action in enumerate(_ACTIONS):
        for name, segments in _by_part(trace.segments(action), part, kind == FORWARD).items():
            steps = list(kernels(ledger, segments))
            of_kernels = Counter(step for step in steps if isinstance(step, Kernel))
            calls = Counter(step for step in steps if isinstance(step, Call))
            overlaps = kind != FORWARD and name in ("layer", "decoder")
            over = _beside(ledger, hidden[name], kind) if overlaps else Counter[tuple[Call, Kernel]]()
            found[name, kind] = Pass(of_kernels, calls, over, _operations(ledger, segments))
    return found


def _operations(ledger: Ledger, segments: Iterable[Segment]) -> Counter[Step]:
    return Counter(ledger.operations[number].step for one in segments for kind, number in one.events() if kind == RUNS)


def _beside(ledger: Ledger, segments: Iterable[Segment], kind: int) -> Counter[tuple[Call, Kernel]]:
    """Those of a layer's whole backward, by the half of it that makes the call: I reduces gradients, and W gathers inputs."""
    return Counter(one for one in beside(ledger, segments) if (one[0].collective == "all_gather") == (kind == WEIGHTS))


def _by_part(segments: Iterable[Segment], part: Part, forward: bool) -> dict[PartName, list[Segment]]:
    """The segments of a pass by the part of the model. Of three recorded layers of a kind, the second stands for all."""
    encoders, decoders = part.recorded
    layers: dict[int, PartName] = {encoders // 2: "layer", LOSS_CHUNK: "loss chunk"}
    if decoders:
        layers[encoders + decoders // 2] = "decoder"
    ends: tuple[PartName, PartName] = ("embedding", "head") if forward else ("head", "embedding")
    turn = encoders + decoders - 1 if forward else 0  # the layer before the other end
    found: dict[PartName, list[Segment]] = defaultdict(list)
    passed = False
    for segment in segments:
        passed = passed or segment.layer == turn
        name = ends[passed] if segment.layer == -1 else layers.get(segment.layer)
        if name is not None:
            found[name].append(segment)
    return found
