"""Processes that train on request, so that two ways of doing the same step can take turns in one benchmark.

All ranks of a side are started once. They wait without using the processor until they are asked for steps. So both sides see the
same load of the machine, and no start is measured.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, Protocol

from engine.spec import RunSpec

if TYPE_CHECKING:
    import torch.distributed as dist


class Trained(Protocol):
    """One rank's model. The loss is right on the ranks of the last stage."""

    def run_step(self, step: int) -> int:
        """Returns the instant at which all ranks began."""
        ...

    def seen(self) -> tuple[float, float]:
        """The loss and the norm of all gradients of the last step."""
        ...


Make = Callable[[int, "dist.Store", RunSpec], Trained]


class Step(NamedTuple):
    """A step: nanoseconds from the common start to the end of the last rank, and of CPU time, of all threads of all ranks."""

    wall_ns: int
    cpu_ns: int
    loss: float
    grad_norm: float


class _RankStep(NamedTuple):
    began_ns: int
    ended_ns: int
    cpu_ns: int
    loss: float
    grad_norm: float


@dataclass
class Side:
    """All ranks of `spec` on one machine, each a process with one thread for operators. `make` makes a rank's model in it."""

    spec: RunSpec
    make: Make
    steps: list[Step] = field(default_factory=list)  # all so far

    def __enter__(self) -> Side:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._inductor.config", "benchmarks.torch_side", "engine.worker"])
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="shardscope-"))
        self._pipes: list[Connection] = []
        for rank in range(self.spec.layout.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_be, args=(theirs, f"{folder}/store", rank, self.spec, self.make), daemon=True)
            process.start()
            theirs.close()
            self._stack.callback(process.join)
            self._stack.callback(process.kill)
            self._pipes.append(ours)
        self._answers()  # every rank is ready
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, steps: int) -> list[Step]:
        """Train that many more steps."""
        for pipe in self._pipes:
            pipe.send(steps)
        layout = self.spec.layout
        reporting = (layout.pp - 1) * layout.dp * layout.tp
        new = []
        for of_ranks in zip(*self._answers(), strict=True):
            wall = max(step.ended_ns for step in of_ranks) - min(step.began_ns for step in of_ranks)
            seen = of_ranks[reporting]
            new.append(Step(wall, sum(step.cpu_ns for step in of_ranks), seen.loss, seen.grad_norm))
        self.steps += new
        return new

    def _answers(self) -> list[list[_RankStep]]:
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise SystemExit(f"{self.spec.layout.code}: a process ended; it said why above") from None


def _be(pipe: Connection, store: str, rank: int, spec: RunSpec, make: Make) -> None:
    """In the process of a rank."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    trained = make(rank, dist.FileStore(store), spec)
    gc.collect()
    gc.freeze()  # as the engine's host does before forking
    pipe.send([])
    step = 0
    while True:
        seen = []
        for _ in range(pipe.recv()):
            step += 1
            cpu = time.process_time_ns()
            began = trained.run_step(step)
            ended, cpu = time.perf_counter_ns(), time.process_time_ns() - cpu
            seen.append(_RankStep(began, ended, cpu, *trained.seen()))
        pipe.send(seen)


class EngineRank:
    """A rank as a run has it, with a status board and reports that nobody reads."""

    def __init__(self, rank: int, store: dist.Store, spec: RunSpec) -> None:
        from engine.launch.ranks import PipeLink, StatusBoard
        from engine.measure.recorder import Recorder
        from engine.parallel.backend import choose_backend
        from engine.parallel.comm import Comm
        from engine.worker import Trainer

        ranks = spec.layout.ranks
        link = PipeLink(rank, FileIO(os.open(os.devnull, os.O_WRONLY), "w"), StatusBoard(ranks))
        backend = choose_backend(ranks, rank)
        comm = Comm.connect(store, spec.layout.mesh, rank, backend, spec.workload.time_limit, Recorder())
        self._trainer = Trainer(spec, comm, link)

    def run_step(self, step: int) -> int:
        return self._trainer.run_step(step)

    def seen(self) -> tuple[float, float]:
        return float(self._trainer.executor.loss), float(self._trainer.optimizer.grad_norm)


class Round(NamedTuple):
    """Seconds of a step of each side in one round, wall and CPU: medians of its steps."""

    ours: float
    theirs: float
    our_cpu: float
    their_cpu: float


def take_turns(ours: Side, theirs: Side, rounds: int, steps: int) -> list[Round]:
    """`rounds` times `steps` steps of each side. In every second round the other begins."""
    found = []
    for number in range(rounds):
        if number % 2:
            second, first = theirs.run(steps), ours.run(steps)
        else:
            first, second = ours.run(steps), theirs.run(steps)
        seconds = [
            statistics.median(getattr(step, clock) for step in side) / 1e9
            for clock in ("wall_ns", "cpu_ns")
            for side in (first, second)
        ]
        found.append(Round(*seconds))
    return found
