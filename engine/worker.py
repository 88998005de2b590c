"""What one rank does: connect, build the model, train, trace memory, and send its rows to rank 0, which saves the run."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from engine.generate import Generator, readable
from engine.inference import Inference
from engine.measure.memory import MakeTracer, MemoryTrace, Tracer
from engine.measure.process import process_row, resident_bytes
from engine.measure.recorder import Recorder, StepSpans
from engine.model.chunk import TIED, TransformerChunk, streams_before, to_tensors
from engine.model.experts import biased, expert_layers, router_biases
from engine.objective import Feed, feed
from engine.parallel.backend import Backend, choose_backend
from engine.parallel.comm import Comm
from engine.parallel.context import own_tokens
from engine.parallel.data import DataParallel
from engine.parallel.pipeline import Executor
from engine.parallel.routing import Routing
from engine.parallel.tensor import DTYPES, TensorParallel
from engine.parallel.update import DistributedOptimizer, update_biases
from engine.phases import LauncherLink, begin_phase
from engine.reference import compare, publish
from engine.schedule import plan
from engine.spec import FaultSpec, RunSpec
from engine.store import save
from engine.summary import summarize
from engine.tables import Rows, RunResult, table
from engine.text import load
from engine.topology import EP
from engine.weights import initial
from engine.wire import WireError, pack_rows, unpack_rows

_MEDIAN_OF = 9  # steps, the last ones: their median is drawn, so that one slow step is not
_MEDIAN_STEP = "median step"  # key in the store


class Task(Protocol):
    """The work of one rank: training, or generation without training."""

    def run(self, store: dist.Store) -> Rows:
        """The timed part: rows of steps, spans and traffic."""
        ...

    def trace(self) -> MemoryTrace:
        """The memory of one more step, or of one more generation."""
        ...

    def generate(self) -> list[int]:
        """The new tokens, on the ranks of the first stage. Empty where the spec has no prompt."""
        ...


def work(
    spec: RunSpec, rank: int, store: dist.Store, link: LauncherLink, out: Path | None, local: tuple[int, int] | None = None
) -> None:
    """Run rank `rank` of `spec`. All ranks meet at `store`. Rank 0 saves the run as `out`.

    `local`: (rank on this machine, ranks on this machine). None: all ranks are on this machine.
    Raises `CommError` if another rank ended, and any error of this rank.
    """
    baseline = resident_bytes()
    local_rank, ranks_here = local or (rank, spec.layout.ranks)
    link.set_status("connecting")
    torch.set_num_threads(1)  # a rank is one device, and CPU time of other threads would not be measured
    backend = choose_backend(ranks_here, local_rank)
    if backend.device.type == "cuda":
        torch.cuda.set_device(backend.device)
    recorder = Recorder()
    mesh = spec.layout.mesh
    comm = Comm.connect(store, mesh, rank, backend, spec.workload.time_limit, recorder, spec.subgroups)
    link.set_status("building the model")
    task: Task = Inference(spec, comm, link) if spec.generate.skip_training else Trainer(spec, comm, link)
    comm.common_instant()
    if rank == 0:
        link.report({"event": "ready", "rank": 0, "backend": backend.name, "why": backend.why})
    rows = task.run(store)
    comm.common_instant()  # the last step's report comes before the next phase's
    begin_phase(link, rank, "tracing")
    rows |= task.trace().rows(rank, comm.at)
    generated = task.generate()
    rows["process"] = [process_row(rank, baseline)]
    nodes = [first for (first,) in comm.gathered([rank - local_rank])]  # if a rank hangs, all others wait here, not rank 0 alone
    store.set(f"rows/{rank}", pack_rows(rows))  # type: ignore[arg-type]  # its stub forgets bytes
    if rank == 0:
        _collect_and_save(spec, comm, environment(backend) | _cluster(comm, nodes), store, link, out, generated)
    comm.common_instant()  # rank 0 may host the store that the others still write to
    comm.disconnect()
    if rank == 0 and out is not None:
        link.report({"event": "saved", "folder": str(out)})


class Trainer:
    """One rank's model, optimizer and executor, built from the spec."""

    def __init__(self, spec: RunSpec, comm: Comm, link: LauncherLink, text: bytes | None = None) -> None:
        """`text`: to train on in place of the one that `spec` names."""
        self.spec, self.comm, self.recorder, self.link = spec, comm, comm.recorder, link
        self.text = load(spec.workload.text) if text is None else text
        self.step = 0
        layout, workload = spec.layout, spec.workload
        schedule = plan(layout, workload.microbatches, spec.model.parts.tied)
        ranges = layout.layer_ranges(spec.model.layers)
        recomputed = layout.recomputed_whole(spec.model.layers, spec.model.encoder_layers)
        last = len(schedule.placement) - 1
        routing = Routing(workload.balanced_router, layout.dp * workload.microbatches)
        precision = DTYPES[workload.precision]
        tp = TensorParallel(comm, layout.sequence_parallel, precision, layout.context_parallel, routing=routing)
        accumulate, masters = DTYPES[workload.gradient_precision], workload.master_bytes > 0
        self.data = DataParallel(tp, layout.zero, accumulate, workload.microbatches, masters)
        self.chunks = {
            c: TransformerChunk(
                spec.model,
                ranges[c],
                c == 0,
                c == last,
                self._batch,
                tp,
                layout.recompute,
                self.data.through,
                spec.attention,
                workload.loss_tokens(spec.model, layout.tp, layout.cp),
                [layer for layer, again in zip(ranges[c], recomputed[c], strict=True) if again],
            )
            for c, stage in enumerate(schedule.placement)
            if stage == comm.at.pp
        }
        weights = initial(workload)
        for c, chunk in self.chunks.items():
            chunk.initialize(workload.seed, weights)
            self.data.add_chunk(c, chunk.parts())
        tied = {chunk.embedding.token: chunk for chunk in self.chunks.values() if chunk.embedding is not None}
        copies = [table for table, chunk in tied.items() if not chunk.first]
        self.expert_layers = expert_layers(self.chunks.values())
        update = partial(update_biases, biased(self.expert_layers), spec.model.rate_of_balancing, comm)
        self.optimizer = DistributedOptimizer(workload, self.data, list(tied), copies, update)
        inputs = [streams_before(spec.model, layers.start, workload.microbatch_size, tp) for layers in ranges]
        self.executor = Executor(schedule, self.chunks, inputs, self.data, self.optimizer, link.set_status)
        self._reads = any(chunk.reads for chunk in self.chunks.values())
        self._feeds: list[Feed] = []  # the microbatches of the step

    def run(self, store: dist.Store) -> Rows:
        """The timed steps. Returns rows of steps (from one rank), traffic of a step, and spans of a step of median time."""
        steps, loads = [], []
        rows: Rows = {}
        recent: deque[tuple[int, StepSpans]] = deque(maxlen=_MEDIAN_OF)
        workload, at, mesh = self.spec.workload, self.comm.at, self.comm.mesh
        reporting = self.executor.has_last and not any(place for axis, place in at.items() if axis != "pp")
        tokens = mesh.dp * workload.microbatches * workload.microbatch_size * self.spec.model.seq
        for step in range(1, workload.steps + 1):
            self.link.set_status(f"step {step}: start")
            _inject_fault(self.spec.fault, self.comm.rank, step)
            self.optimizer.keeps_gradients = compared = self.spec.parity and step == 1
            origin = self.run_step(step)
            loads += self._load_rows(step)
            took = time.perf_counter_ns() - origin
            recent.append((took, self.recorder.step_spans()))  # before parity's own collectives are counted
            if step == workload.steps:
                rows = {"traffic": self.recorder.traffic_rows(self.comm.rank)}
            if compared:
                self._publish_gradients(store)
            if reporting:
                row = {"step": step, "loss": float(self.executor.loss), "grad_norm": float(self.optimizer.grad_norm)}
                row["step_ns"] = took
                steps.append(row | {"tokens": tokens})
                self.link.report({"event": "step", **row})
        if reporting:
            store.set(_MEDIAN_STEP, str(_median(recent).step))
        median = int(store.get(_MEDIAN_STEP))  # all ranks take the same step
        spans = next(spans for _, spans in recent if spans.step == median)
        rows |= {"steps": steps, "spans": spans.moved(self.comm.measure_clocks()).rows(self.comm.rank)}
        return rows | ({"expert_load": loads} if self.spec.model.experts else {})

    def _load_rows(self, step: int) -> list[dict[str, int]]:
        """Rows of the table of loads for the last step."""
        index, _ = self.data.tp.experts
        senders, rows = self.comm.groups[EP].ranks, []
        for layer in self.expert_layers:
            here = len(layer.experts.inner)
            for place, tokens in enumerate(layer.arrived):
                sender, number = divmod(place, here)
                one = {"rank": self.comm.rank, "layer": layer.number, "expert": index * here + number, "step": step}
                rows.append(one | {"sender": senders[sender], "tokens": tokens})
        return rows

    def trace(self, make_tracer: MakeTracer = Tracer) -> MemoryTrace:
        """The memory of one more step, by torch's profiler or another tracer."""
        buckets = list(self.data.buckets.values())
        owned: dict[str, list[torch.Tensor]] = {
            "optimizer": [*self.optimizer.state_tensors(), *(b.master for b in buckets)],
            "parameters": [
                *(b.shard for b in buckets),
                *router_biases(self.expert_layers),
            ],  # after the masters: in fp32 they are the same tensors
            "gradients": [b.gradients for b in buckets],
        }
        tracer = make_tracer(owned, self.recorder, self.comm.device)
        with tracer.step():
            self.run_step(self.spec.workload.steps + 1, status="the traced step")
        return tracer.result()

    def allocate_optimizer_state(self) -> None:
        """Make the optimizer allocate its state, as the first step does, without the rest of a step."""
        self.optimizer.step(loss=None)

    def generate(self) -> list[int]:
        """Continue the prompt with the trained model, if there is one: the new tokens, on the ranks of the first stage."""
        if not self.spec.generate.prompt:
            return []
        begin_phase(self.link, self.comm.rank, "generating")
        return Generator(self.spec, self.chunks, self.comm, self.link.set_status).run()

    def run_step(self, step: int, status: str = "") -> int:
        """Returns the instant at which all ranks began. `status` names the step in the status, if its number does not."""
        self.step = step
        origin = self.comm.common_instant()
        self.recorder.begin_step(step, origin)
        # All at once: one after the other takes a third of the time that each takes among the layers' work.
        self._feeds = [self._feed(microbatch) for microbatch in range(self.spec.workload.microbatches if self._reads else 0)]
        for layer in self.expert_layers:
            layer.empty()
        self.executor.run(status or f"step {step}")
        return origin

    def _batch(self, microbatch: int) -> Feed:
        return to_tensors(self._feeds[microbatch], self.comm.device)

    def _feed(self, microbatch: int) -> Feed:
        workload = self.spec.workload
        index = self.comm.at.dp * workload.microbatches + microbatch
        arrays = feed(self.spec.model, self.text, workload.microbatch_size, workload.seed, self.step, index)
        mesh = self.comm.mesh
        if mesh.cp > 1:
            return arrays.part(own_tokens(self.spec.layout.context_parallel, self.spec.model.seq, mesh.cp, self.comm.at.cp))
        return arrays

    def _publish_gradients(self, store: dist.Store) -> None:
        """Send this rank's gradients of step 1 to rank 0, for parity."""
        for chunk in self.chunks.values():
            names = {p: name for name, p in chunk.named_parameters()}
            for layer in chunk.parts():
                bucket = self.data.buckets[layer]
                for p, gradient in bucket.whole_gradients().items():
                    key = "tied" if names[p] == TIED and not chunk.first else names[p]
                    publish(store, key, self.comm.mesh.replica(self.comm.rank), self.comm.at.tp, gradient)


def _median(recent: Sequence[tuple[int, StepSpans]]) -> StepSpans:
    """The spans of the step of median time. `recent`: a step's nanoseconds, and its spans."""
    return sorted(recent, key=lambda step: step[0])[(len(recent) - 1) // 2][1]


def _cluster(comm: Comm, firsts: list[int]) -> dict[str, Any]:
    """What `run.json` says of several machines. `firsts`: the first rank of each rank's node. Empty for one node."""
    nodes = sorted(set(firsts))
    if len(nodes) == 1:
        return {}
    return {"nodes": [nodes.index(first) for first in firsts], "clock_error_ns": comm.clock_error_ns}


def _collect_and_save(
    spec: RunSpec,
    comm: Comm,
    ran_on: dict[str, Any],
    store: dist.Store,
    link: LauncherLink,
    out: Path | None,
    generated: list[int],
) -> None:
    """On rank 0: wait for the rows of every rank, compare with the unsharded model if asked, and save the run."""
    rows: Rows = {}
    for rank in range(comm.mesh.size):
        for name, part in _rows_of(store, rank).items():
            rows.setdefault(name, []).extend(part)
    allocator = rows.pop("allocator")
    extra: dict[str, Any] = {"allocator": allocator}
    if spec.parity:
        begin_phase(link, 0, "parity")
        rows["parity"], losses = compare(spec, store)
        differences = [abs(row["loss"] - loss) for row, loss in zip(rows["steps"], losses, strict=True)]
        # torch's max keeps NaN, Python's does not.
        extra |= {"reference_losses": losses, "loss_max_abs": float(torch.tensor(differences, dtype=torch.float64).max())}
    if generated:
        extra["generated"] = {"prompt": spec.generate.prompt, "tokens": generated, "text": readable(generated)}
    begin_phase(link, 0, "saving")
    tables = {name: table(name, part, "measured") for name, part in rows.items()}
    summary = summarize(tables, comm.mesh, ran_on) | extra
    if out is not None:
        save(RunResult(spec, ran_on, summary, tables), out)


def _rows_of(store: dist.Store, rank: int) -> Rows:
    """The rows of a rank. Raises `WireError` if they cannot be read."""
    try:
        return unpack_rows(store.get(f"rows/{rank}"), rank)
    except WireError as error:
        raise WireError(f"what rank {rank} sent cannot be read: {error}") from error


def environment(backend: Backend) -> dict[str, Any]:
    """Where a run ran, for its `run.json`."""
    return {
        "backend": backend.name,
        "why": backend.why,
        "device": backend.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
    }


def _inject_fault(fault: FaultSpec | None, rank: int, step: int) -> None:
    """Cause the fault that the spec asks for, if it is for this rank and step."""
    if fault is None or (fault.rank, fault.step) != (rank, step):
        return
    if fault.kind == "raise":
        raise RuntimeError(f"drill: rank {rank} was told to raise in step {step}")
    if fault.kind == "exit":
        os._exit(3)
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # hang
