"""The program of a dry run: imports torch, forks a process for each rank to rehearse, and saves what they found.

    python -m engine.launch.dry --out FOLDER [--rank K] [--device none|cpu|cuda] < spec.json

Without --rank, one rank of each stage. Real devices are used by one rank at a time; without one, as many ranks rehearse at once
as there are cores. Events leave as JSON lines on standard output:

    {"event": "acted", "actions": …, "of": …}    a few times a second: of all ranks together, how many are over
    {"event": "rehearsed", "rank": …, "done": …, "of": …}
    {"event": "finished", "how": "done" | "wrong" | "failed", "message": …, "traceback": …}

When whoever started it is gone, it ends with all its processes. `engine.launch.dry_client` is the other end.
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

from engine.launch.dry_tables import kinds, result
from engine.launch.parent import end_with_parent
from engine.launch.textbook import textbook
from engine.launch.verdict import Raised, as_json, raised_from
from engine.launch.warm import preload
from engine.spec import RequestError, RunSpec
from engine.store import save
from engine.wire import pack, pack_rows, receive, send, unpack, unpack_rows

if TYPE_CHECKING:
    from engine.launch.rehearsal import Device, Rehearsal


class RankError(Exception):
    """A rank's rehearsal raised, or its process ended without a word."""

    def __init__(self, raised: Raised) -> None:
        super().__init__(raised.sentence)
        self.raised = raised


@dataclass
class _Running:
    """A forked process that rehearses a rank, and the pipe on which it says how far it is, and at last what it found."""

    rank: int
    pid: int
    said: int  # file descriptor

    def reap(self) -> int:
        """Its exit status, or minus the signal that killed it. Waits for its end."""
        os.close(self.said)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def rehearse_all(
    spec: RunSpec,
    ranks: Sequence[int],
    device: Device,
    most: int,
    told: Callable[[int, int], None] = lambda rank, done: None,
    acted: Callable[[int, int], None] = lambda rank, over: None,
) -> dict[int, Rehearsal]:
    """Rehearse each rank in a process of its own, `most` at a time. Raises `RankError`, and leaves no process.

    `told(rank, done)` hears of each and how many that makes; `acted(rank, over)` a few times a second how many actions of a rank
    are over. To be called by a process that has not used torch yet.
    """
    waiting, found = deque(ranks), {}
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                started = _fork(spec, waiting.popleft(), device, list(running))
                running[started.said] = started
            for pipe in select(list(running), [], [])[0]:
                one = running[pipe]
                try:
                    head, parts = unpack(receive(pipe))
                except EOFError:
                    del running[pipe]
                    status = one.reap()
                    told_nothing = f"the process of rank {one.rank} ended with exit status {status}, without saying why"
                    raise RankError(Raised(told_nothing, "")) from None
                if "acted" in head:
                    acted(one.rank, int(head["acted"]))
                    continue
                del running[pipe]
                one.reap()
                found[one.rank] = _found(one.rank, head, parts)
                told(one.rank, len(found))
    finally:
        for one in running.values():
            os.kill(one.pid, signal.SIGKILL)
            one.reap()
    return found


def _found(rank: int, head: dict[str, Any], parts: Mapping[str, memoryview]) -> Rehearsal:
    """The rehearsal that a process found. Raises `RankError` if it failed, and `WireError`."""
    from engine.launch.rehearsal import Rehearsal

    if "failed" in head:
        raise RankError(raised_from(head["failed"]))
    rows = unpack_rows(bytes(parts["rows"]), rank)
    return Rehearsal(rank, rows, float(head["seconds"]), int(head["grown_bytes"]))


def _fork(spec: RunSpec, rank: int, device: Device, others: Sequence[int]) -> _Running:
    """`others`: the pipes of those that run already, which are no business of the new one."""
    said, says = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()  # what waits in a buffer would be written twice
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(says)
        return _Running(rank, pid, said)
    try:
        for fd in (said, *others):
            os.close(fd)
        end_with_parent()
        if os.getppid() == parent:  # otherwise it ended before the call
            send(says, _rehearsed(spec, rank, device, says))
    finally:
        sys.stderr.flush()
        os._exit(0)  # what was forked, exit handlers and all, is not this process's to end


def _rehearsed(spec: RunSpec, rank: int, device: Device, says: int) -> bytes:
    """In a forked process: what to say of the rank."""
    from engine.launch.ranks import account
    from engine.launch.rehearsal import rehearse

    try:
        done = rehearse(spec, rank, device, textbook(spec), told=lambda over: send(says, pack({"acted": over})))
        return pack({"seconds": done.seconds, "grown_bytes": done.grown_bytes}, {"rows": pack_rows(done.rows)})
    except Exception as error:  # noqa: BLE001  the parent hears of it, whatever it is
        return pack({"failed": as_json(account(error))})


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launch.dry")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to save; it must not exist")
    parser.add_argument("--rank", type=int, help="the rank to rehearse; without it, one of each stage")
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
    from engine.launch import rehearsal
    from engine.parallel.comm import Backend
    from engine.worker import environment

    if device not in get_args(rehearsal.Device):
        raise RequestError(f"there is no device {device!r}; a dry run takes none, cpu or cuda")
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page that it shares with this process
    most = (os.cpu_count() or 1) if device == "none" else 1
    mesh = spec.layout.mesh
    all_ = {rank: rehearsal.actions_of(spec, mesh.coordinate(rank).pp, device, clock) for rank in ranks}
    over = dict.fromkeys(ranks, 0)

    def acted(rank: int, actions: int) -> None:
        over[rank] = actions
        _tell({"event": "acted", "actions": sum(over.values()), "of": sum(all_.values())})

    def told(rank: int, done: int) -> None:
        _tell({"event": "rehearsed", "rank": rank, "done": done, "of": len(ranks)})
        acted(rank, all_[rank])

    found = rehearse_all(spec, ranks, device, most, told, acted)
    import torch

    why = "a dry run: one rank at a time, without the others, " + ("on fake tensors" if device == "none" else f"on this {device}")
    where = environment(Backend("none", torch.device("cpu" if device == "none" else device), why))
    rows = {r: rehearsed.rows for r, rehearsed in found.items()}
    answer = result(spec, rows, rank is None, clock, where, time.monotonic() - began)
    answer.summary["grown_bytes"] = max(rehearsed.grown_bytes for rehearsed in found.values())
    save(answer, out)


def _asked(spec: RunSpec, rank: int | None) -> list[int]:
    if rank is None:
        return kinds(spec)
    ranks = spec.layout.ranks
    if not 0 <= rank < ranks:
        raise RequestError(f"rank {rank} is not one of the {ranks} ranks of {spec.layout.code}, 0 to {ranks - 1}")
    return [rank]


def _finish(how: str, message: str = "", trace: str = "") -> int:
    _tell({"event": "finished", "how": how, "message": message, "traceback": trace})
    return {"done": 0, "failed": 1, "wrong": 2}[how]


def _tell(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
