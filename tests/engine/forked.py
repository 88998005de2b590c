"""Run a function in several processes that share a store, for tests of several ranks.

The processes are forked from a server that has imported torch and has run no operation, like the ranks of a warm host.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.parallel.comm import ZERO_SHARDS, Comm
from engine.parallel.pipeline import Executor
from engine.parallel.tensor import ShardSpec, Started, TensorParallel
from engine.spec import RunSpec
from engine.store import load
from engine.tables import RunResult
from engine.worker import work
from tests.patience import PATIENCE_S
from tests.runs import small

Body = Callable[..., Any]  # (rank, store, …) → a value that can be pickled; a module-level function


@dataclass(frozen=True)
class RaisedInProcess:
    """What a process raised instead of returning."""

    kind: type[BaseException]
    text: str


def together(ranks: int, body: Body, *args: Any) -> list[Any]:
    """Run `body(rank, store, *args)` in `ranks` processes. Returns the result of each, `RaisedInProcess`, or None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._inductor.config", "torch.profiler", "pyarrow.parquet", "tests.engine.forked"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = []
    try:
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_be, args=(theirs, store.port, body, rank, *args), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        return [_answer(process, pipe) for process, pipe in started]
    finally:
        for process, pipe in started:
            process.kill()
            process.join()
            process.close()
            pipe.close()


def _answer(process: Any, pipe: Connection) -> Any:
    assert wait([pipe], PATIENCE_S), f"process {process.pid} said nothing for {PATIENCE_S} s"
    try:
        return pipe.recv()
    except EOFError:
        return None


def _be(answer: Connection, port: int, body: Body, rank: int, *args: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    try:
        answer.send(body(rank, store, *args))
    except Exception as error:  # noqa: BLE001  the test gets every error
        answer.send(RaisedInProcess(type(error), traceback.format_exc()))


# -------------------------------------------------------------------------------------------------------------- mutants


class _NoLink:
    def report(self, event: dict[str, Any]) -> None: ...

    def set_status(self, status: str) -> None: ...


@dataclass(frozen=True)
class Mutant:
    """A mistake to make in the engine, in a process that ends with the run, and a run in which it has an effect."""

    make: Callable[[], None]
    spec: RunSpec


def _microbatches_add_up_undivided() -> None:
    init = Executor.__init__

    def mistaken(self: Executor, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.loss_scale *= self.microbatches

    pytest.MonkeyPatch().setattr(Executor, "__init__", mistaken)


def _replicas_keep_their_own_gradients() -> None:
    start = Comm.start_all_reduce

    def mistaken(self: Comm, tensor: torch.Tensor, group: str, *args: Any) -> Any:
        return start(self, tensor.clone() if group == ZERO_SHARDS else tensor, group, *args)

    pytest.MonkeyPatch().setattr(Comm, "start_all_reduce", mistaken)


def _unreduced(where: Callable[[Comm, str], bool]) -> None:
    reduce = Comm.all_reduce

    def mistaken(self: Comm, tensor: torch.Tensor, group: str, *args: Any) -> torch.Tensor:
        return tensor if where(self, group) else reduce(self, tensor, group, *args)

    pytest.MonkeyPatch().setattr(Comm, "all_reduce", mistaken)


def _slices_do_not_add_up_in_backward() -> None:
    start = TensorParallel.start_reduce_from_tp

    def mistaken(self: TensorParallel, x: torch.Tensor) -> Started:
        return (lambda: x) if self.comm.recorder.phase == "backward" else start(self, x)

    pytest.MonkeyPatch().setattr(TensorParallel, "start_reduce_from_tp", mistaken)


def _ends_of_the_pipeline_do_not_agree() -> None:
    _unreduced(lambda comm, group: group == "tie")


def _every_rank_has_the_first_slice() -> None:
    shard = ShardSpec.shard
    pytest.MonkeyPatch().setattr(ShardSpec, "shard", lambda self, whole, index, of: shard(self, whole, 0, of))


def _microbatches_are_mixed_up() -> None:
    forward = Executor._forward

    def mistaken(self: Executor, action: Any) -> None:
        forward(self, action)
        if self.comm.at.pp == 0 and action.microbatch == 1:  # each gradient is used with the other microbatch's graph
            first, second = (action.chunk, 0), (action.chunk, 1)
            self._inputs[first], self._inputs[second] = self._inputs[second], self._inputs[first]
            self._roots[first], self._roots[second] = self._roots[second], self._roots[first]

    pytest.MonkeyPatch().setattr(Executor, "_forward", mistaken)


MUTANTS: dict[str, Mutant] = {
    "microbatches add up undivided": Mutant(_microbatches_add_up_undivided, small("dp1", steps=1)),
    "replicas keep their own gradients": Mutant(_replicas_keep_their_own_gradients, small("dp2", steps=1)),
    "slices do not add up in backward": Mutant(_slices_do_not_add_up_in_backward, small("tp2", steps=1)),
    "every rank has the first slice": Mutant(_every_rank_has_the_first_slice, small("tp2", steps=1)),
    "ends of the pipeline do not agree": Mutant(_ends_of_the_pipeline_do_not_agree, small("pp2", steps=1)),
    "microbatches are mixed up": Mutant(_microbatches_are_mixed_up, small("pp2", "gpipe", steps=1)),
}


def run_mutant(name: str, spec: RunSpec, out: Path) -> RunResult:
    """The result of a run of `spec` in which each rank has the mistake of that name ("none": no mistake)."""
    answers = together(spec.layout.ranks, _work, name, spec, out)
    assert answers == ["done"] * spec.layout.ranks, "\n".join(a.text for a in answers if isinstance(a, RaisedInProcess))
    return load(out)


def _work(rank: int, store: dist.Store, mutant: str, spec: RunSpec, out: Path) -> str:
    if mutant in MUTANTS:
        MUTANTS[mutant].make()
    work(spec, rank, store, _NoLink(), out if rank == 0 else None)
    return "done"
