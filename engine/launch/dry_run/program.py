"""The program of a dry run: imports torch, forks a process for each rank, and saves their results.

    python -m engine.launch.dry_run.program --out FOLDER [--rank K] [--device none|cpu|cuda] < spec.json

Without --rank, one rank of each stage. A real device is used by one rank at a time. Without one, as many ranks run at once as
there are cores. Events are written as JSON lines to standard output:

    {"event": "progress", "actions": …, "of": …}    a few times a second: finished actions of all ranks together
    {"event": "rank_done", "rank": …, "done": …, "of": …}
    {"event": "finished", "how": "done" | "wrong" | "failed", "message": …, "traceback": …}

If its parent process ends, it ends with all its processes. `engine.launch.dry_run.client` is the other end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any, get_args

from engine.launch.dry_run.tables import first_of_each_stage, result
from engine.launch.parent import end_with_parent
from engine.launch.root_cause import RaisedError, as_json, raised_from
from engine.launch.textbook import textbook
from engine.launch.warm import preload
from engine.spec import RequestError, RunSpec, sentence
from engine.store import save
from engine.wire import pack, pack_rows, receive, send, unpack, unpack_rows

if TYPE_CHECKING:
    from engine.launch.dry_run.rank import Device, DryRank


class RankError(Exception):
    """The dry run of a rank raised an error, or its process ended without saying why."""

    def __init__(self, raised: RaisedError) -> None:
        super().__init__(raised.sentence)
        self.raised = raised


@dataclass
class _Running:
    """A forked process that dry-runs a rank, and the pipe on which it sends its progress and then its result."""

    rank: int
    pid: int
    pipe: int  # file descriptor of the reading end

    def reap(self) -> int:
        """Its exit status, or minus the signal that killed it. Waits for its end."""
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def dry_run_ranks(
    spec: RunSpec,
    ranks: Sequence[int],
    device: Device,
    most: int,
    rank_done: Callable[[int, int], None] = lambda rank, done: None,
    progress: Callable[[int, int], None] = lambda rank, over: None,
) -> dict[int, DryRank]:
    """Dry-run each rank in a process of its own, `most` at a time. Raises `RankError`, and leaves no process.

    `rank_done(rank, done)` is called with each rank that is done and how many are done. `progress(rank, over)` is called a few
    times a second with the number of finished actions of a rank. The calling process must not have used torch yet.
    """
    waiting, found = deque(ranks), {}
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                started = _fork(spec, waiting.popleft(), device, list(running))
                running[started.pipe] = started
            for pipe in select(list(running), [], [])[0]:
                one = running[pipe]
                try:
                    head, parts = unpack(receive(pipe))
                except EOFError:
                    del running[pipe]
                    status = one.reap()
                    silent = f"the process of rank {one.rank} ended with exit status {status}, without saying why"
                    raise RankError(RaisedError(silent, "")) from None
                if "over" in head:
                    progress(one.rank, int(head["over"]))
                    continue
                del running[pipe]
                one.reap()
                found[one.rank] = _found(one.rank, head, parts)
                rank_done(one.rank, len(found))
    finally:
        for one in running.values():
            os.kill(one.pid, signal.SIGKILL)
            one.reap()
    return found


def _found(rank: int, head: dict[str, Any], parts: Mapping[str, memoryview]) -> DryRank:
    """The result in a message from a process. Raises `RankError` if the rank failed, and `WireError`."""
    from engine.launch.dry_run.rank import DryRank

    if "failed" in head:
        raise RankError(raised_from(head["failed"]))
    rows = unpack_rows(bytes(parts["rows"]), rank)
    return DryRank(rank, rows, float(head["seconds"]), int(head["grown_bytes"]))


def _fork(spec: RunSpec, rank: int, device: Device, others: Sequence[int]) -> _Running:
    """`others`: the pipes of the processes that run already, which the new one closes."""
    pipe, writing = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()  # otherwise the child would write the buffers too
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Running(rank, pid, pipe)
    try:
        for fd in (pipe, *others):
            os.close(fd)
        end_with_parent()
        if os.getppid() == parent:  # otherwise it ended before the call
            send(writing, _message(spec, rank, device, writing))
    finally:
        sys.stderr.flush()
        os._exit(0)  # exit handlers are the parent's


def _message(spec: RunSpec, rank: int, device: Device, pipe: int) -> bytes:
    """In a forked process: dry-run the rank, and return its result or error as a message."""
    from engine.launch.dry_run.rank import dry_run_rank
    from engine.launch.ranks import raised_error

    try:
        done = dry_run_rank(spec, rank, device, textbook(spec), progress=lambda over: send(pipe, pack({"over": over})))
        return pack({"seconds": done.seconds, "grown_bytes": done.grown_bytes}, {"rows": pack_rows(done.rows)})
    except Exception as error:  # noqa: BLE001  the parent hears of it, whatever it is
        return pack({"failed": as_json(raised_error(error))})


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launch.dry_run.program")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to save; it must not exist")
    parser.add_argument("--rank", type=int, help="the rank to dry-run; without it, one of each stage")
    parser.add_argument("--device", default="none", help="none, cpu or cuda")
    given = parser.parse_args(arguments)
    end_with_parent()
    try:
        spec = RunSpec.read_json(sys.stdin.buffer.read())
        _dry_run(spec, given.rank, given.device, given.out)
    except RequestError as error:
        return _finish("wrong", str(error))
    except RankError as failed:
        return _finish("wrong" if failed.raised.wrong else "failed", failed.raised.sentence, failed.raised.traceback)
    return _finish("done")


def _dry_run(spec: RunSpec, rank: int | None, device: Device, out: Path) -> None:
    began = time.monotonic()
    ranks, clock = _asked(spec, rank), textbook(spec)
    preload()
    from engine.launch.dry_run.rank import Device, count_actions
    from engine.parallel.backend import Backend
    from engine.worker import environment

    if device not in get_args(Device):
        raise RequestError(sentence("there is no device {device!r}; a dry run takes none, cpu or cuda", device=device))
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page that it shares with this process
    most = (os.cpu_count() or 1) if device == "none" else 1
    mesh = spec.layout.mesh
    all_ = {rank: count_actions(spec, mesh.coordinate(rank).pp, device, clock) for rank in ranks}
    over = dict.fromkeys(ranks, 0)

    def progress(rank: int, actions: int) -> None:
        over[rank] = actions
        _report({"event": "progress", "actions": sum(over.values()), "of": sum(all_.values())})

    def rank_done(rank: int, done: int) -> None:
        _report({"event": "rank_done", "rank": rank, "done": done, "of": len(ranks)})
        progress(rank, all_[rank])

    found = dry_run_ranks(spec, ranks, device, most, rank_done, progress)
    import torch

    why = "a dry run: one rank at a time, without the others, " + ("on fake tensors" if device == "none" else f"on this {device}")
    where = environment(Backend("none", torch.device("cpu" if device == "none" else device), why))
    rows = {rank: one.rows for rank, one in found.items()}
    answer = result(spec, rows, rank is None, clock, where, time.monotonic() - began)
    answer.summary["grown_bytes"] = max(one.grown_bytes for one in found.values())
    save(answer, out)


def _asked(spec: RunSpec, rank: int | None) -> list[int]:
    if rank is None:
        return first_of_each_stage(spec)
    ranks = spec.layout.ranks
    if not 0 <= rank < ranks:
        values = {"rank": rank, "ranks": ranks, "layout": spec.layout.code, "last": ranks - 1}
        raise RequestError(sentence("rank {rank} is not one of the {ranks} ranks of {layout}, 0 to {last}", **values))
    return [rank]


def _finish(how: str, message: str = "", trace: str = "") -> int:
    _report({"event": "finished", "how": how, "message": message, "traceback": trace})
    return {"done": 0, "failed": 1, "wrong": 2}[how]


def _report(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
