"""The planner: every layout of N devices for a model and a batch. Layouts that fit are ranked by the time of a step.

All layouts are estimated in closed form. The best are then simulated action by action, and ranked by the simulated time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from engine.devices import DeviceSpec
from engine.grid import RECOMPUTES, Grid, Whole, distinct
from engine.optimizer import Framework
from engine.papers.accounting import AccountingName, Fullest, accounting
from engine.papers.closed_forms import model_flops
from engine.planner.candidates import candidates
from engine.planner.frameworks import NAMES, SPLIT_BY, had_by
from engine.planner.hybrid import hybrids
from engine.planner.partial import partial_recompute
from engine.planner.reserve import reserve
from engine.planner.uneven import Split, uneven
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import StepTime, estimate, simulated_all
from engine.schedule import SCHEDULES
from engine.spec import LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec, sentence
from engine.spec.context import CONTEXTS, kind_of
from engine.topology import CALL_AXES_BY_FREQUENCY, EP

MIXED = WorkloadSpec(precision="bf16", accumulate="fp32")  # the default workload of a search
_SIMULATED = 20  # layouts; the best by the closed form


@dataclass(frozen=True)
class Plan:
    """The result of a search. Row i of `layouts` is entry i of `grid` and of `step_time`."""

    model: ModelSpec
    workload: WorkloadSpec  # microbatches and their size are the layout's
    ranks: int
    global_batch: int
    device: DeviceSpec
    assumed: Assumptions
    accounting: AccountingName
    layouts: pd.DataFrame
    grid: Grid
    step_time: StepTime
    reserve: int | None = None  # bytes kept free on every device; None: what `engine.planner.reserve` says for each layout

    @property
    def feasible(self) -> int:
        """The number of layouts that fit. They are the first rows."""
        return int(self.layouts["fits"].sum())

    @property
    def missed(self) -> int | None:
        """The row of the fastest layout that does not fit, if it is faster than every layout that fits; else None."""
        too_large = self.layouts["step_s"].to_numpy()[self.feasible :]
        if not len(too_large) or (self.feasible and too_large.min() >= self.layouts["step_s"].iloc[0]):
            return None
        return self.feasible + int(too_large.argmin())

    def spec(self, row: int) -> RunSpec:
        """The spec that runs the layout of a row. Raises `RequestError` if it does not fit."""
        split = LayoutSpec.split_of(str(self.layouts["split"].iloc[row]))
        return self.grid.spec(row, self.model, self.workload, split)

    def kept_free(self, grid: Grid, memory: Whole) -> Whole:
        """Bytes to keep free beside the tensors' peak `memory`, for each layout of `grid`. (n,)"""
        return reserve(self.device, grid, self.model, memory, self.reserve)


def search(
    model: ModelSpec,
    ranks: int,
    device: DeviceSpec,
    global_batch: int,
    workload: WorkloadSpec = MIXED,
    assumed: Assumptions | None = None,
    account: AccountingName = "engine",
    simulate_best: int = _SIMULATED,
    only: Framework | None = None,
    kept_free: int | None = None,
) -> Plan:
    """Estimate all layouts of `ranks` devices for `global_batch` sequences a step. Raises `RequestError` if there are none.

    `workload`: precision, optimizer and other settings that a layout does not have. `account`: whose formulas for memory.
    `simulate_best`: how many of the best layouts are simulated. `only`: layouts that this framework runs as they are.
    `kept_free`: bytes of a device that tensors must leave; None means what `engine.planner.reserve` says for each layout.

    In the table `layouts`, those that fit come first, sorted by step time. The others follow, sorted by memory. Columns:

        layout, dp, cp, tp, pp, ep, chunks, schedule, microbatch_size, microbatches, zero, zero_replicas,
        sequence_parallel, recompute  as in a spec
        context_parallel              ring, all_gather or ulysses; empty where cp is 1
        split                         layers of each chunk, such as 3,3,2; empty: as even as possible
        recompute_layers              with full recompute, the first so many layers of each chunk; 0: all
        memory_bytes, fullest_stage   memory of the fullest rank by `account`, and its stage
        reserve_bytes                 kept free beside it
        step_s, bubble                seconds of a step; idle share of the pipeline's total time
        tokens_per_second             of all devices together
        tflops_per_device, mfu        model TFLOP/s of a device, without recompute; the same ÷ the peak
        tp_bytes, cp_bytes, ep_bytes, pp_bytes, dp_bytes  wire bytes of the busiest rank in a step
        fits, reason                  whether both fit the device's memory; if not, by how much they are too large
        pareto                        it fits, and no layout with at most as much memory is faster

    Columns of text are categories, since there are few different texts. Where full recompute fits and less does not, some layouts
    stand there again with as few recomputed layers as fit, see `engine.planner.partial`; and a few with an uneven split, see
    `engine.planner.uneven`, if memory is counted by `engine`, some layouts are simulated, and the framework splits so.
    """
    assumed = assumed or Assumptions()
    with _without_garbage_collection():
        grid = candidates(model, ranks, global_batch, workload)
        if only is not None:
            grid = grid.take(had_by(only, model, workload, grid))
            if not len(grid):
                raise RequestError(sentence("{framework} supports none of the layouts", framework=NAMES[only]))
        cost = Cost(model, workload, grid, device, assumed)
        memory, stage = accounting(account)(model, workload, grid)
        if account == "engine" and simulate_best:
            grid, memory, stage = _with_partial(cost, memory, stage, device, only, kept_free)
            cost = Cost(model, workload, grid, device, assumed)

        def kept(some: Grid, held: Whole) -> Whole:
            return reserve(device, some, model, held, kept_free)

        fits = memory + kept(grid, memory) <= device.memory_bytes
        cost, times, memory, stage = _with_hybrids(cost, fits, (memory, stage), account, only)
        grid, free = cost.grid, kept(cost.grid, memory)
        fits = memory + free <= device.memory_bytes
        times = _refined(cost, times, memory, fits, simulate_best)
        wire = bulk_traffic(model, workload, grid, CALL_AXES_BY_FREQUENCY, calls=False)
        splits = np.zeros(len(grid), np.int64), pd.Index([""])
        if account == "engine" and simulate_best and only in (None, *SPLIT_BY):
            more = uneven(cost, times, memory, fits, kept)
            if more is not None:
                grid, times, wire = grid.joined(more.grid), times.joined(more.times), _joined(wire, more.wire)
                memory, stage = np.append(memory, more.memory), np.append(stage, more.stage)
                free = np.append(free, kept(more.grid, more.memory))
                splits = _splits(len(cost.grid), more.splits)
        order = _order(times.step, memory, memory + free <= device.memory_bytes)
        grid, times, held = grid.take(order), times.take(order), (memory[order], free[order], stage[order])
        wire = {axis: sent[order] for axis, sent in wire.items()}
        split = pd.Categorical.from_codes(splits[0][order], splits[1])
        layouts = _table(model, grid, times, held, wire, split, device, workload, global_batch)
    return Plan(model, workload, ranks, global_batch, device, assumed, account, layouts, grid, times, kept_free)


def _with_partial(
    cost: Cost, memory: Whole, stage: Whole, device: DeviceSpec, only: Framework | None, kept_free: int | None
) -> tuple[Grid, Whole, Whole]:
    """The layouts, and those with full recompute of some layers behind them; bytes of tensors and fullest stage of each."""

    def fits(some: Grid, held: Whole) -> Any:
        return held + reserve(device, some, cost.model, held, kept_free) <= device.memory_bytes

    more = partial_recompute(cost, fits(cost.grid, memory), fits)
    if more is not None and only is not None:
        more = more.take(had_by(only, cost.model, cost.workload, more.grid))
    if more is None:
        return cost.grid, memory, stage
    return cost.grid.joined(more.grid), np.append(memory, more.memory), np.append(stage, more.stage)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause Python's cyclic garbage collector.

    A search makes very many small objects, which would make the collector scan the whole process again and again. Nearly none of
    them are in a cycle, so they are freed without it. Those that are kept count as old ones afterwards. As new ones they would
    all be scanned at the next allocation.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
            gc.enable()


def _with_hybrids(
    cost: Cost, fits: Any, held: Fullest, account: AccountingName, only: Framework | None
) -> tuple[Cost, StepTime, Whole, Whole]:
    """All layouts with their times in closed form, memory and fullest stages, and behind them those with hybrid sharding.

    `held`: memory and fullest stages of those of `cost`. `fits`: whether they fit.
    """
    (memory, stage), times, grid = held, estimate(cost), cost.grid
    rows, hybrid, faster = hybrids(cost, times, fits)
    if len(rows) and only is not None:
        allowed = np.flatnonzero(had_by(only, cost.model, cost.workload, hybrid))
        rows, hybrid, faster = rows[allowed], hybrid.take(allowed), faster.take(allowed)
    if not len(rows):
        return cost, times, memory, stage
    more, fullest = accounting(account)(cost.model, cost.workload, hybrid)
    joined = cost.like(np.append(np.arange(len(grid)), rows), grid.joined(hybrid))
    return joined, times.joined(faster), np.append(memory, more), np.append(stage, fullest)


def _ranked(step: Any, memory: Whole, rows: Any, most: int) -> Any:
    """The first `most` of some rows, sorted by step time. Rows with equal times are sorted by memory."""
    if most < len(rows):
        rows = rows[step[rows] <= np.partition(step[rows], most)[most]]
    return rows[np.lexsort((memory[rows], step[rows]))][:most]


def _order(step: Any, memory: Whole, fits: Any) -> Whole:
    """The order of the rows as in `search`."""
    fitting, others = np.flatnonzero(fits), np.flatnonzero(~fits)
    return np.append(_ranked(step, memory, fitting, len(fitting)), others[np.argsort(memory[others], kind="stable")])


def _refined(cost: Cost, times: StepTime, memory: Whole, fits: Any, most: int) -> StepTime:
    """The times, simulated for the best layouts.

    The first `most` layouts that fit are simulated. Then the order may change. So layouts that are now among the first `most` ÷ 2
    are simulated too, until all of these are, or 2 × `most` layouts were simulated. The difference between the simulated time and
    the closed form is added to `idle`.
    """
    step, bubble = times.step.copy(), times.bubble.copy()
    fitting = np.flatnonzero(fits)
    due, done = _ranked(step, memory, fitting, most).tolist(), set[int]()
    while due and len(done) < 2 * most:
        specs = [cost.grid.spec(row, cost.model, cost.workload) for row in due]
        step[due], bubble[due] = np.array(simulated_all(specs, cost.device, cost.assumed, cost.passes.take(due))).T
        done.update(due)
        due = [row for row in _ranked(step, memory, fitting, most // 2).tolist() if row not in done]
    return replace(times, step=step, idle=times.idle + step - times.step, bubble=bubble)


def _table(
    model: ModelSpec,
    grid: Grid,
    times: StepTime,
    held: tuple[Whole, Whole, Whole],
    wire: dict[str, Any],
    split: Any,
    device: DeviceSpec,
    workload: WorkloadSpec,
    batch: int,
) -> pd.DataFrame:
    memory, free, stage = held
    fits = memory + free <= device.memory_bytes
    devices = prod(grid.degrees.values())
    flops = model_flops(model) * batch / devices / times.step
    columns: dict[str, Any] = {
        "layout": _codes(grid),
        **dict[str, Any](grid.degrees.items()), "ep": grid.ep, "context_parallel": _kinds(grid),
        "chunks": grid.chunks, "split": split,
        "schedule": pd.Categorical.from_codes(grid.schedule, pd.Index(SCHEDULES)),
        "microbatch_size": grid.microbatch_size, "microbatches": grid.microbatches,
        "zero": grid.zero, "zero_replicas": grid.zero_replicas, "sequence_parallel": grid.sequence_parallel,
        "recompute": pd.Categorical.from_codes(grid.recompute, pd.Index(RECOMPUTES)), "recompute_layers": grid.recomputed // 2,
        "memory_bytes": memory, "fullest_stage": stage, "reserve_bytes": free,
        "step_s": times.step, "bubble": times.bubble, "tokens_per_second": batch * model.seq / times.step,
        "tflops_per_device": flops / 1e12, "mfu": flops / device.peak(workload.precision),
        **{f"{axis}_bytes": sent.astype(np.int64) for axis, sent in wire.items()},
        "fits": fits, "reason": _reasons(memory + free, fits, device.memory_bytes), "pareto": _pareto(memory, fits),
    }  # fmt: skip
    return pd.DataFrame(columns, copy=False)  # the table shares its arrays with the grid and the times


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {axis: np.append(sent, other[axis]) for axis, sent in one.items()}


def _splits(even: int, splits: list[Split]) -> tuple[Whole, Any]:
    """For so many layouts with the even split and then those with these: numbers of texts, and the texts."""
    texts = [",".join(map(str, split)) for split in splits]
    index = pd.Index(["", *dict.fromkeys(texts)])
    return np.append(np.zeros(even, np.int64), index.get_indexer(pd.Index(texts))), index


def _codes(grid: Grid) -> Any:
    """The short form of each layout. There are few different ones."""
    degrees: dict[str, Whole] = {**grid.degrees, EP: grid.ep}  # type: ignore[dict-item]
    first, which = distinct(*(degree for axis, degree in degrees.items() if axis != "dp"))  # the others and the ranks give dp
    codes = [LayoutSpec(**{axis: int(degree[i]) for axis, degree in degrees.items()}).code for i in first]
    return pd.Categorical.from_codes(which, pd.Index(codes))


def _kinds(grid: Grid) -> Any:
    """The kind of context parallelism of each layout; empty where cp is 1."""
    kinds = ["" if not context else kind_of(context) for context in CONTEXTS]
    index = pd.Index(list(dict.fromkeys(kinds)))
    return pd.Categorical.from_codes(index.get_indexer(pd.Index(kinds))[grid.context], index)


def _reasons(wanted: Whole, fits: Any, have: int) -> Any:
    """Why each layout does not fit, with the arithmetic; empty if it fits. In tenths of GiB there are few different texts.

    `wanted`: bytes of the tensors and of what is kept free.
    """
    missing = ~fits
    need = wanted[missing]
    # This rounds as formatting with one decimal does: the division by a power of two is exact, and ties go to the even digit.
    tenths, more = (np.rint(size * 10 / 2**30).astype(np.int64) for size in (need, need - have))
    first, which = distinct(tenths, more)
    needed, lacking = tenths[first].tolist(), more[first].tolist()
    written = {number: f"{number / 10:,.1f} GiB" for number in {*needed, *lacking}}
    codes = np.zeros(len(wanted), np.int64)
    codes[missing] = 1 + which
    has = f"{have / 2**30:,.1f}"
    texts = [
        f"needs {written[a]} with its reserve, {written[b]} more than the device's {has} GiB"
        for a, b in zip(needed, lacking, strict=True)
    ]
    return pd.Categorical.from_codes(codes, pd.Index(["", *texts]))


def _pareto(memory: Whole, fits: Any) -> Any:
    """Whether each layout needs less memory than every faster one. `memory` is sorted by step time, layouts that fit first."""
    count = int(fits.sum())
    out = np.zeros(len(memory), np.bool_)
    if count:
        before = np.concatenate(([np.iinfo(np.int64).max], np.minimum.accumulate(memory[: count - 1])))
        out[:count] = memory[:count] < before
    return out
