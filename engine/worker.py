"""What one rank does, from spec to tables: connect, build, train, trace, and hand the rows to rank 0, which saves the run."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from engine.generate import Generator, readable
from engine.inference import Inference
from engine.measure.memory import MakeTracer, MemoryTrace, Tracer
from engine.measure.process import process_row, resident_bytes
from engine.measure.recorder import Recorder
from engine.model.chunk import TIED, TransformerChunk, layer_ranges, streams_before, to_tensors
from engine.objective import Feed, feed
from engine.parallel.comm import Backend, Comm, choose_backend
from engine.parallel.data import DataParallel
from engine.parallel.pipeline import Executor
from engine.parallel.tensor import DTYPES, TensorParallel
from engine.parallel.update import make_optimizer
from engine.phases import PHASES
from engine.reference import compare, publish
from engine.schedule import plan
from engine.spec import FaultSpec, RunSpec
from engine.store import save
from engine.summary import summarize
from engine.tables import RunResult, table
from engine.text import load
from engine.wire import WireError, pack_rows, unpack_rows


class Link(Protocol):
    """The worker's line to whoever launched it."""

    def report(self, event: dict[str, Any]) -> None:
        """Tell something that a user wants to see. JSON-able."""
        ...

    def at(self, doing: str) -> None:
        """Note what this rank is about to do, for the message if it fails there. Called for every action."""
        ...


def work(spec: RunSpec, rank: int, store: dist.Store, link: Link, out: Path | None, local: tuple[int, int] | None = None) -> None:
    """Be rank `rank` of a run of `spec`, together with the others that meet at `store`. Rank 0 saves the run as `out`.

    `local` is (rank on this machine, ranks on this machine), where that is not (rank, all of them).
    Raises `CommError` when another rank went away, and whatever goes wrong in this one.
    """
    baseline = resident_bytes()
    local_rank, ranks_here = local or (rank, spec.layout.ranks)
    link.at("connecting")
    torch.set_num_threads(1)  # a rank is one device; with more, its CPU time would be spread over threads that are not read
    backend = choose_backend(ranks_here, local_rank)
    if backend.device.type == "cuda":
        torch.cuda.set_device(backend.device)
    recorder = Recorder()
    mesh = spec.layout.mesh
    comm = Comm.connect(store, mesh, rank, backend, spec.workload.time_limit, recorder)
    link.at("building the model")
    only = spec.generate.skip_training
    model = Inference(spec, comm, recorder, link.at) if only else Trainer(spec, comm, recorder, link)
    comm.common_instant()
    if rank == 0:
        link.report({"event": "ready", "rank": 0, "backend": backend.name, "why": backend.why})
    generated: list[int] = []
    if isinstance(model, Inference):
        _phase(link, rank, "generating")
        generated, rows = model.generate()
    else:
        rows = model.train(store)
    comm.common_instant()  # the last step's report comes before the next phase's
    _phase(link, rank, "tracing")
    rows |= model.trace().rows(rank, comm.at)
    if isinstance(model, Trainer) and spec.generate.prompt:
        _phase(link, rank, "generating")
        generated = model.go_on()
    rows["process"] = [process_row(rank, baseline)]
    comm.common_instant()  # a rank that hangs is found waiting here by the others, not by rank 0 alone
    store.set(f"rows/{rank}", pack_rows(rows))  # type: ignore[arg-type]  # its stub forgets bytes
    if rank == 0:
        _collect_and_save(spec, comm, backend, store, link, out, generated)
    comm.common_instant()  # rank 0 may host the store that the others still write to
    comm.disconnect()
    if rank == 0 and out is not None:
        link.report({"event": "saved", "folder": str(out)})


class Trainer:
    """One rank's model, optimizer and executor, put together from the spec."""

    def __init__(self, spec: RunSpec, comm: Comm, recorder: Recorder, link: Link, text: bytes | None = None) -> None:
        """`text` to train on in place of the one that `spec` names."""
        self.spec, self.comm, self.recorder, self.link = spec, comm, recorder, link
        self.text = load(spec.workload.text) if text is None else text
        self.step = 0
        self.grad_norm = torch.zeros((), device=comm.device)  # of the whole model, over all ranks
        schedule = plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
        ranges = layer_ranges(spec.layout.chunk_layers(spec.model.layers))
        last = len(schedule.placement) - 1
        self.has_last = schedule.placement[last] == comm.at.pp
        layout, workload = spec.layout, spec.workload
        tp = TensorParallel(comm, layout.sequence_parallel, DTYPES[workload.precision])
        self.chunks = {
            c: TransformerChunk(spec.model, ranges[c], c == 0, c == last, self._batch, tp, layout.recompute)
            for c, stage in enumerate(schedule.placement)
            if stage == comm.at.pp
        }
        for chunk in self.chunks.values():
            chunk.draw(workload.seed)
        parts = {c: chunk.parts() for c, chunk in self.chunks.items()}
        accumulate = DTYPES[workload.accumulate if workload.precision == "bf16" else "fp32"]
        self.data = DataParallel(
            parts, comm, layout.zero, layout.sequence_parallel, accumulate, workload.microbatches, tp.deferred
        )
        for chunk in self.chunks.values():
            chunk.through = self.data.through
        self.optimizer = make_optimizer(workload, [bucket.master for bucket in self.data.buckets.values()])
        entering = [streams_before(spec.model, layers.start, workload.microbatch_size, tp) for layers in ranges]
        self.executor = Executor(schedule, self.chunks, self.data, comm, recorder, link.at, entering, self._tie, self._update)

    def train(self, store: dist.Store) -> dict[str, list[dict[str, Any]]]:
        """The timed steps. Returns rows of steps (from one rank), and spans and traffic of the last step."""
        steps = []
        rows: dict[str, list[dict[str, Any]]] = {}
        workload, at, mesh = self.spec.workload, self.comm.at, self.comm.mesh
        reporting = self.has_last and at.dp == 0 and at.tp == 0
        tokens = mesh.dp * workload.microbatches * workload.microbatch_size * self.spec.model.seq
        for step in range(1, workload.steps + 1):
            self.link.at(f"step {step}: start")
            _act_out(self.spec.fault, self.comm.rank, step)
            origin = self.run_step(step)
            took = time.perf_counter_ns() - origin
            if step == workload.steps:  # before parity's own collectives pass the door
                rows = {"spans": self.recorder.span_rows(self.comm.rank), "traffic": self.recorder.traffic_rows(self.comm.rank)}
            if self.spec.parity and step == 1:
                self._publish_gradients(store)
            if reporting:
                row = {"step": step, "loss": float(self.executor.loss), "grad_norm": float(self.grad_norm), "step_ns": took}
                steps.append(row | {"tokens": tokens})
                self.link.report({"event": "step", **row})
        return rows | {"steps": steps}

    def trace(self, make_tracer: MakeTracer = Tracer) -> MemoryTrace:
        """One more step, under torch's profiler unless told otherwise."""
        buckets = list(self.data.buckets.values())
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        owned: dict[str, list[torch.Tensor]] = {
            "optimizer": [*states, *(b.master for b in buckets)],
            "parameters": [b.shard for b in buckets],  # after the masters: in fp32 the two are one
            "gradients": [b.gradients for b in buckets],
        }
        tracer = make_tracer(owned, self.recorder, self.comm.device)
        with tracer.step():
            self.run_step(self.spec.workload.steps + 1, "the traced step")
        return tracer.result()

    def settle(self) -> None:
        """Bring into being what the first step leaves behind, the optimizer's state, without the rest of a step."""
        self._update()

    def go_on(self) -> list[int]:
        """Continue the prompt with the trained model: the new tokens, on the first stage's ranks."""
        generator = Generator(self.spec, self.chunks, self.executor.placement, self.comm, self.recorder, self.link.at)
        return generator.run()

    def run_step(self, step: int, called: str = "") -> int:
        """Returns the instant at which all ranks began. `called`: see `Executor.run`."""
        self.step = step
        origin = self.comm.common_instant()
        self.recorder.begin_step(step, origin)
        self.executor.run(step, called)
        return origin

    def _batch(self, microbatch: int) -> Feed:
        workload = self.spec.workload
        index = self.comm.at.dp * workload.microbatches + microbatch
        arrays = feed(self.spec.model, self.text, workload.microbatch_size, workload.seed, self.step, index)
        return to_tensors(arrays, self.comm.device)

    def _tie(self) -> None:
        """Add up the gradients of the token table's two copies, which the first and the last chunk have."""
        copies = [self.data.buckets[c.embedding.token].reduced for c in self.chunks.values() if c.embedding is not None]
        if len(copies) == 1:
            self.comm.all_reduce(copies[0], "tie")
        else:  # both are on this rank
            copies[0].add_(copies[1])
            copies[1].copy_(copies[0])

    def _update(self) -> None:
        """The optimizer's step, with the two numbers that the user follows: the norm of all gradients and the loss."""
        pieces = [piece for chunk in self.chunks.values() for piece in self._counted(chunk)]
        squared = (
            torch.nn.utils.get_total_norm([p.float() for p in pieces]).square()
            if pieces
            else torch.zeros((), device=self.comm.device)
        )
        if self.spec.layout.zero:
            self.comm.all_reduce(squared, "dp")
        self.comm.all_reduce(squared, "tp")
        self.grad_norm.copy_(self.comm.all_reduce(squared, "pp").sqrt())
        if self.has_last:
            self.comm.all_reduce(self.executor.loss, "dp")
        for bucket in self.data.buckets.values():
            bucket.master.grad = bucket.reduced.to(bucket.master.dtype)
        self.optimizer.step()
        for bucket in self.data.buckets.values():
            bucket.master.grad = None
            bucket.round_values()

    def _counted(self, chunk: TransformerChunk) -> list[torch.Tensor]:
        """The chunk's gradients on this rank, without what another rank counts: the copy of the table at the pipeline's end,
        and on all tp ranks but one what tp does not cut.
        """
        pieces = []
        for layer in chunk.parts():
            if chunk.embedding is None or chunk.first or layer is not chunk.embedding.token:
                pieces += self.data.buckets[layer].counted(lambda p: p.cut.dim is not None or self.comm.at.tp == 0)
        return pieces

    def _publish_gradients(self, store: dist.Store) -> None:
        """Hand this rank's gradients of step 1 to rank 0, for parity."""
        for chunk in self.chunks.values():
            names = {p: name for name, p in chunk.named_parameters()}
            for layer in chunk.parts():
                bucket = self.data.buckets[layer]
                for p, gradient in bucket.whole_gradients().items():
                    key = "tied" if names[p] == TIED and not chunk.first else names[p]
                    publish(store, key, self.comm.at.dp, self.comm.at.tp, gradient)


def _collect_and_save(
    spec: RunSpec, comm: Comm, backend: Backend, store: dist.Store, link: Link, out: Path | None, generated: list[int]
) -> None:
    """On rank 0: wait for every rank's rows, compare with the unsharded model if asked, and write the folder."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for rank in range(comm.mesh.size):
        for name, part in _handed_in(store, rank).items():
            rows.setdefault(name, []).extend(part)
    allocator = rows.pop("allocator")
    extra: dict[str, Any] = {"allocator": allocator}
    if spec.parity:
        _phase(link, 0, "parity")
        rows["parity"], losses = compare(spec, store)
        apart = [abs(row["loss"] - loss) for row, loss in zip(rows["steps"], losses, strict=True)]
        # torch's max keeps NaN, Python's does not.
        extra |= {"reference_losses": losses, "loss_max_abs": float(torch.tensor(apart, dtype=torch.float64).max())}
    if generated:
        extra["generated"] = {"prompt": spec.generate.prompt, "tokens": generated, "text": readable(generated)}
    _phase(link, 0, "saving")
    tables = {name: table(name, part, "measured") for name, part in rows.items()}
    summary = summarize(tables, comm.mesh) | extra
    if out is not None:
        save(RunResult(spec, environment(backend), summary, tables), out)


def _handed_in(store: dist.Store, rank: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of another rank. Raises `WireError` if it handed in something else."""
    try:
        return unpack_rows(store.get(f"rows/{rank}"), rank)
    except WireError as error:
        raise WireError(f"what rank {rank} handed in cannot be read: {error}") from error


def environment(backend: Backend) -> dict[str, Any]:
    """What a saved run says of where it ran."""
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


def _phase(link: Link, rank: int, phase: str) -> None:
    link.at(PHASES[phase])
    if rank == 0:
        link.report({"event": "phase", "phase": phase})


def _act_out(fault: FaultSpec | None, rank: int, step: int) -> None:
    """The drill that the spec asks for, if it is this rank's turn."""
    if fault is None or (fault.rank, fault.step) != (rank, step):
        return
    if fault.kind == "raise":
        raise RuntimeError(f"drill: rank {rank} was told to raise in step {step}")
    if fault.kind == "exit":
        os._exit(3)
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # hang
