"""Runs one rank of a layout without its peers: the worker itself, on fake tensors or on real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.inference import Inference
from engine.launch.textbook import Textbook
from engine.measure.fake_allocator import FakeAllocator
from engine.measure.memory import MemoryTrace, Tracer
from engine.measure.process import resident_bytes
from engine.measure.recorder import Recorder
from engine.parallel.comm import Comm
from engine.phases import SilentLink
from engine.schedule import Action
from engine.spec import RequestError, RunSpec
from engine.tables import Rows
from engine.worker import Trainer

Device = Literal["none", "cpu", "cuda"]
TimeMap = Callable[[int], int]
_PROGRESS_S = 0.25


@dataclass(frozen=True)
class DryRank:
    """What one rank would use. `grown_bytes`: the growth of this process's resident memory."""

    rank: int
    rows: Rows
    seconds: float
    grown_bytes: int


class _ProgressRecorder(Recorder):
    """Calls `progress` every `_PROGRESS_S` seconds with the number of finished actions."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._progress, self._over, self._next = progress, 0, time.monotonic() + _PROGRESS_S

    @contextmanager
    def action(self, action: Action, phase: str) -> Iterator[None]:
        with super().action(action, phase):
            yield
        self._over += 1
        if (now := time.monotonic()) >= self._next:
            self._next = now + _PROGRESS_S
            self._progress(self._over)


def count_actions(spec: RunSpec, stage: int, device: Device, clock: Textbook) -> int:
    """How many actions the dry run of a rank of `stage` executes."""
    warms_up = device != "none" and not spec.generate.skip_training  # a step before the traced one
    return len(clock.stages[stage]) * (2 if warms_up else 1)


def dry_run_rank(
    spec: RunSpec, rank: int, device: Device, clock: Textbook, progress: Callable[[int], None] = lambda over: None
) -> DryRank:
    """Run one step (or one generation) as `rank`, without peers. Rows of memory, traffic and spans, in times of `clock`.

    `progress` is called a few times a second with the number of finished actions, of `count_actions`.

    On device "none" tensors are fake. On "cpu" and "cuda" they are real and measured by the allocator of that device; what peers
    would have sent is zeros. Call it once in a process, since memory that an earlier run left is measured too. Raises
    `RequestError` if there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda needs a GPU, and there is none here; without it the dry run needs no device at all")
    began, before = time.monotonic(), resident_bytes()
    torch.set_num_threads(1)
    recorder = _ProgressRecorder(progress)
    with ExitStack() as stack:
        make_tracer: Any = Tracer
        if device == "none":
            stack.enter_context(FakeTensorMode())
            allocator = stack.enter_context(FakeAllocator())
            recorder.resized, make_tracer = allocator.resized, allocator.tracer
        mesh = spec.layout.mesh
        on = torch.device("cpu" if device == "none" else device)
        comm = Comm.without_others(mesh, rank, recorder, on, spec.subgroups)
        if spec.model.experts:  # what a router says about fake tensors is not known
            spec = spec.model_copy(update={"workload": spec.workload.model_copy(update={"balanced_router": True})})
        trace = _traced(spec, comm, make_tracer, warm_up=device != "none")
        grown = resident_bytes() - before
    times = clock.stages[comm.at.pp]
    rows = _retimed(trace, times).rows(rank, comm.at)
    rows |= {"traffic": recorder.traffic_rows(rank), "spans": _span_rows(recorder, rank, times)}
    return DryRank(rank, rows, time.monotonic() - began, grown)


def _traced(spec: RunSpec, comm: Comm, make_tracer: Any, warm_up: bool) -> MemoryTrace:
    if spec.generate.skip_training:
        return Inference(spec, comm, SilentLink()).trace(make_tracer)
    text = bytes(2 * spec.model.seq + 1)  # its content does not matter
    trainer = Trainer(spec, comm, SilentLink(), text)
    if warm_up:  # libraries allocate memory for themselves when first used
        trainer.run_step(1)
    else:
        trainer.allocate_optimizer_state()
    return trainer.trace(make_tracer)


# ------------------------------------------------------------------------------------------- from measured times to unit times


def _time_map(spans: Sequence[tuple[int, int]], times: Sequence[tuple[int, int]]) -> TimeMap:
    """Maps each action's span to its unit time, and instants inside it in proportion."""
    assert len(spans) == len(times), "the schedule's own list was executed"
    origin = spans[0][0]
    here = np.array([t - origin for span in spans for t in span], dtype=np.float64)
    there = np.array([t for time in times for t in time], dtype=np.float64)
    return lambda t: round(float(np.interp(t - origin, here, there)))


def _retimed(trace: MemoryTrace, times: Sequence[tuple[int, int]]) -> MemoryTrace:
    to_unit_time = _time_map([(a.start_ns, a.end_ns) for a in trace.actions], times)
    actions = [a._replace(start_ns=start, end_ns=end) for a, (start, end) in zip(trace.actions, times, strict=True)]
    return replace(trace, actions=actions, events=[c._replace(t_ns=to_unit_time(c.t_ns)) for c in trace.events])


def _span_rows(recorder: Recorder, rank: int, times: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    origin = recorder.origin_ns
    to_unit_time = _time_map([(a.start_ns - origin, a.end_ns - origin) for a in recorder.actions], times)
    rows = []
    for row in recorder.span_rows(rank):
        start, end = to_unit_time(row["start_ns"]), to_unit_time(row["end_ns"])
        busy = end - start if row["lane"] == "compute" else 0
        rows.append(row | {"step": 1, "start_ns": start, "end_ns": end, "cpu_ns": busy, "exposed_ns": -1})
    return rows
