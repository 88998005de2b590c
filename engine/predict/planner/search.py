"""The planner: every layout of N devices for a model and a batch, those that fit ranked by the time of a step.

All are weighed in closed form; the best are then replayed by the simulator, action by action, and ranked by what that says.
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
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.grid import RECOMPUTES, Grid, Whole, distinct
from engine.predict.papers.accounting import AccountingName, accounting
from engine.predict.planner.candidates import candidates
from engine.predict.speed.cost import Cost, model_flops
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import StepTime, estimate, replayed
from engine.schedule import SCHEDULES
from engine.spec import ModelSpec, RunSpec, WorkloadSpec
from engine.topology import AXES_BY_FREQUENCY, Mesh

MIXED = WorkloadSpec(precision="bf16", accumulate="fp32")  # what is planned for, unless told otherwise
_REPLAYED = 20  # so many of the best


@dataclass(frozen=True)
class Plan:
    """What a search found. Row i of `layouts` is entry i of `grid` and of `step_time`."""

    model: ModelSpec
    workload: WorkloadSpec  # all that a layout does not change
    ranks: int
    global_batch: int
    device: DeviceSpec
    assumed: Assumptions
    accounting: AccountingName
    layouts: pd.DataFrame
    grid: Grid
    step_time: StepTime

    @property
    def feasible(self) -> int:
        """How many fit; they are the first rows."""
        return int(self.layouts["fits"].sum())

    @property
    def missed(self) -> int | None:
        """The fastest layout that does not fit, if it is faster than every one that does."""
        late = self.layouts["step_s"].to_numpy()[self.feasible :]
        if not len(late) or (self.feasible and late.min() >= self.layouts["step_s"].iloc[0]):
            return None
        return self.feasible + int(late.argmin())

    def spec(self, row: int) -> RunSpec:
        """What to run for that row."""
        return self.grid.spec(row, self.model, self.workload)


def search(
    model: ModelSpec,
    ranks: int,
    device: DeviceSpec,
    global_batch: int,
    workload: WorkloadSpec = MIXED,
    assumed: Assumptions | None = None,
    account: AccountingName = "engine",
    replayed: int = _REPLAYED,
) -> Plan:
    """Weigh all layouts of `ranks` devices for `global_batch` sequences a step. Raises `RequestError` where there are none.

    `workload` says what a layout does not: precision, optimizer and the like. Columns of `layouts`, first those that fit by
    step time, then the others by memory:

        layout, dp, tp, pp, chunks, schedule, microbatch_size, microbatches, zero, sequence_parallel, recompute   as in a spec
        memory_bytes, fullest_stage   of the fullest rank, by the account asked for
        step_s, bubble                seconds of a step; idle share of the pipeline's total time
        tokens_per_second             of all devices together
        tflops_per_device, mfu        model FLOPs, nothing computed again counted, a second and device; as a share of the peak
        tp_bytes, pp_bytes, dp_bytes  wire bytes of the busiest rank in a step
        fits, reason                  whether it fits the device's memory; if not, by how much
        pareto                        among those that fit: no other is faster in as little memory

    Columns of text are categories, as few texts are distinct.
    """
    assumed = assumed or Assumptions()
    with _uncollected():
        grid = candidates(model, ranks, global_batch)
        cost = Cost(model, workload, grid, device, assumed)
        memory, stage = accounting(account)(model, workload, grid)
        times, order = _refined(cost, estimate(cost), memory, replayed)
        wire = {axis: sent[order] for axis, sent in bulk_traffic(model, workload, grid, AXES_BY_FREQUENCY, calls=False).items()}
        grid, times, memory, stage = grid.take(order), times.take(order), memory[order], stage[order]
        layouts = _table(model, grid, times, memory, stage, wire, device, workload, global_batch)
    return Plan(model, workload, ranks, global_batch, device, assumed, account, layouts, grid, times)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of reference cycles, which would go through all that the process holds again and again.

    A search makes very many small things that are gone when it ends, nearly all of them without a cycle.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _ranked(step: Any, memory: Whole, rows: Any, most: int) -> Any:
    """Of some rows so many first ones, by step time and of equals by memory."""
    if most < len(rows):
        rows = rows[step[rows] <= np.partition(step[rows], most)[most]]
    return rows[np.lexsort((memory[rows], step[rows]))][:most]


def _refined(cost: Cost, times: StepTime, memory: Whole, most: int) -> tuple[StepTime, Any]:
    """The times with the best replayed, and the order: first those that fit by step time and of equals by memory, then the
    others by memory. What the closed form had wrong is put down to idling.

    The first `most` of those that fit are replayed; then, as some fall behind others, those that come to stand among the first
    half as many, until all of these were or as many again.
    """
    step, bubble = times.step.copy(), times.bubble.copy()
    fits = memory <= cost.device.memory_bytes
    fitting, others = np.flatnonzero(fits), np.flatnonzero(~fits)
    due, done = _ranked(step, memory, fitting, most).tolist(), set[int]()
    while due and len(done) < 2 * most:
        specs = [cost.grid.spec(row, cost.model, cost.workload) for row in due]
        step[due], bubble[due] = np.array(replayed(specs, cost.device, cost.assumed)).T
        done.update(due)
        due = [row for row in _ranked(step, memory, fitting, most // 2).tolist() if row not in done]
    order = np.append(_ranked(step, memory, fitting, len(fitting)), others[np.argsort(memory[others], kind="stable")])
    return replace(times, step=step, idle=times.idle + step - times.step, bubble=bubble), order


def _table(
    model: ModelSpec,
    grid: Grid,
    times: StepTime,
    memory: Whole,
    stage: Whole,
    wire: dict[str, Any],
    device: DeviceSpec,
    workload: WorkloadSpec,
    batch: int,
) -> pd.DataFrame:
    fits = memory <= device.memory_bytes
    devices = prod(grid.degrees.values())
    flops = model_flops(model) * batch / devices / times.step
    columns: dict[str, Any] = {
        "layout": _codes(grid),
        **dict[str, Any](grid.degrees.items()), "chunks": grid.chunks,
        "schedule": pd.Categorical.from_codes(grid.schedule, pd.Index(SCHEDULES)),
        "microbatch_size": grid.microbatch_size, "microbatches": grid.microbatches,
        "zero": grid.zero, "sequence_parallel": grid.sequence_parallel,
        "recompute": pd.Categorical.from_codes(grid.recompute, pd.Index(RECOMPUTES)),
        "memory_bytes": memory, "fullest_stage": stage,
        "step_s": times.step, "bubble": times.bubble, "tokens_per_second": batch * model.seq / times.step,
        "tflops_per_device": flops / 1e12, "mfu": flops / device.peak(workload.precision),
        **{f"{axis}_bytes": sent.astype(np.int64) for axis, sent in wire.items()},
        "fits": fits, "reason": _reasons(memory, fits, device.memory_bytes), "pareto": _pareto(memory, fits),
    }  # fmt: skip
    return pd.DataFrame(columns, copy=False)  # one array serves the table, the grid and the times


def _codes(grid: Grid) -> Any:
    """The short form of each layout; few are distinct."""
    degrees = grid.degrees
    first, which = distinct(*(degree for axis, degree in degrees.items() if axis != "dp"))  # dp is what they leave of the ranks
    meshes = [Mesh({axis: int(degree[i]) for axis, degree in degrees.items()}) for i in first]
    return pd.Categorical.from_codes(which, pd.Index([mesh.code for mesh in meshes]))


def _reasons(memory: Whole, fits: Any, have: int) -> Any:
    """Why a layout does not fit, with the arithmetic; empty where it does. Few tenths of GiB are distinct."""
    missing = ~fits
    need = memory[missing]
    # Products and quotients are exact, and an even tenth is taken of two as near: so tenths are what would be written.
    tenths, more = (np.rint(size * 10 / 2**30).astype(np.int64) for size in (need, need - have))
    first, which = distinct(tenths, more)
    needed, lacking = tenths[first].tolist(), more[first].tolist()
    written = {number: f"{number / 10:,.1f} GiB" for number in {*needed, *lacking}}
    codes = np.zeros(len(memory), np.int64)
    codes[missing] = 1 + which
    has = f"{have / 2**30:,.1f}"
    texts = [f"needs {written[a]}, {written[b]} more than the device's {has} GiB" for a, b in zip(needed, lacking, strict=True)]
    return pd.Categorical.from_codes(codes, pd.Index(["", *texts]))


def _pareto(memory: Whole, fits: Any) -> Any:
    """Sorted by time: who needs less memory than everyone faster."""
    count = int(fits.sum())
    out = np.zeros(len(memory), np.bool_)
    if count:
        before = np.concatenate(([np.iinfo(np.int64).max], np.minimum.accumulate(memory[: count - 1])))
        out[:count] = memory[:count] < before
    return out
