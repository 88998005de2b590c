"""One process a rank, forked from a host that has imported torch. Both ends of it: the host's and the rank's.

A rank sends events to its host through a pipe of its own. The pipe's end-of-file means that the rank has ended. Its status is
written to shared memory, because a killed process sends no messages.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from engine.launch.parent import end_with_parent
from engine.launch.root_cause import RaisedError, as_json
from engine.parallel.pending import CommError
from engine.spec import RequestError, RunSpec
from engine.worker import work


class StatusBoard:
    """The status of each rank and since when it has it, in memory that host and ranks share: 128 bytes a rank."""

    _slot = struct.Struct("=q120s")  # CLOCK_MONOTONIC in ns, which all processes of a machine share; UTF-8, padded with zeros

    def __init__(self, ranks: int) -> None:
        self._memory = mmap.mmap(-1, ranks * self._slot.size)
        for rank in range(ranks):
            self.write(rank, "")

    def write(self, rank: int, doing: str) -> None:
        self._slot.pack_into(self._memory, rank * self._slot.size, time.monotonic_ns(), doing.encode()[:120])

    def read(self, rank: int) -> tuple[str, float]:
        """The status of the rank, and for how many seconds it has it."""
        since, text = self._slot.unpack_from(self._memory, rank * self._slot.size)
        return text.rstrip(b"\0").decode(errors="ignore"), (time.monotonic_ns() - since) / 1e9

    def close(self) -> None:
        self._memory.close()


class PipeLink:
    """The worker's link to its host. Any thread may call `report`."""

    def __init__(self, rank: int, events: FileIO, board: StatusBoard) -> None:
        self._rank, self._events, self._board = rank, events, board
        self._one_at_a_time = threading.Lock()

    def report(self, event: dict[str, Any]) -> None:
        line = memoryview(json.dumps(event).encode() + b"\n")
        with self._one_at_a_time:
            while line:
                line = line[self._events.write(line) :]

    def set_status(self, status: str) -> None:
        self._board.write(self._rank, status)


@dataclass
class Rank:
    """The host's end of one rank."""

    rank: int
    pid: int
    events: FileIO  # pipe: JSON lines; end-of-file when the rank is gone
    dumps: FileIO  # pipe: faulthandler's stacks; end-of-file likewise
    raised: RaisedError | None = None
    ended: bool = False  # it reported that its work is done
    status: int | None = None  # None while it lives; then as subprocess has it
    dump: bytearray = field(default_factory=bytearray)
    _unread: bytearray = field(default_factory=bytearray)

    def read_events(self) -> list[dict[str, Any]] | None:
        """Its events since the last call. None when it is gone. Blocks if there is none."""
        data = self.events.read(1 << 16)
        if not data:
            return None
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        return [json.loads(line) for line in lines]

    def read_dump(self) -> bool:
        """Read a part of its stack dump. False at end-of-file."""
        data = self.dumps.read(1 << 16)
        self.dump += data
        return bool(data)

    def kill(self) -> None:
        """Kill it if it lives. It stays a zombie until `reap`, so its id cannot belong to another process."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def ask_for_stack(self) -> None:
        """Make it dump its stacks to `dumps` and die of SIGUSR1."""
        if self.status is None:
            os.kill(self.pid, signal.SIGUSR1)

    def reap(self) -> None:
        """Wait for its exit status. Call when its pipe is at end-of-file: then it has exited or exits at once."""
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)


def fork(spec: RunSpec, out: Path, rendezvous: Path, board: StatusBoard, life: int, leave_host: Callable[[], None]) -> list[Rank]:
    """Start all ranks of `spec`. The caller must not have touched CUDA nor run a torch operation.

    They meet at the file `rendezvous`. `life` is the reading end of a pipe whose writing end only the host holds; `leave_host`
    closes, in a rank, what is the host's alone. If the system refuses a process, those started before are killed and OSError is
    raised.
    """
    host = os.getpid()
    started: list[Rank] = []
    try:
        for rank in range(spec.layout.ranks):
            events, events_end = _pipe()
            dumps, dumps_end = _pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    leave_host()
                    for pipe in (events, dumps, *(pipe for other in started for pipe in (other.events, other.dumps))):
                        pipe.close()
                    link = PipeLink(rank, events_end, board)
                    _be_rank(spec, rank, out if rank == 0 else None, link, rendezvous, dumps_end, life, host)
                finally:
                    os._exit(1)  # whatever happened, a rank must not continue as a second host
            started.append(Rank(rank, pid, events, dumps))
            events_end.close()  # at once: if the next rank inherited it, the end of this one would not be seen
            dumps_end.close()
    except OSError:
        for other in started:
            other.kill()
            other.reap()
        raise
    return started


def _pipe() -> tuple[FileIO, FileIO]:
    reading, writing = os.pipe()
    return FileIO(reading, "r"), FileIO(writing, "w")


def raised_error(error: BaseException) -> RaisedError:
    """An exception in the form that is sent to the host."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, RequestError):
        return RaisedError(error.sentence, text, wrong=True)
    said = str(error).strip().partition("\n")[0]
    # torch raises DistError when the store or a connection breaks: another rank was gone first.
    lost_peer = isinstance(error, (CommError, dist.DistError))
    return RaisedError(f"{type(error).__name__}: {said}" if said else type(error).__name__, text, secondary=lost_peer)


def _be_rank(
    spec: RunSpec, rank: int, out: Path | None, link: PipeLink, rendezvous: Path, dumps: FileIO, life: int, host: int
) -> NoReturn:
    """In the forked process: run a rank."""
    status = 1
    try:
        _die_with(host, life)
        faulthandler.enable(file=dumps)  # so that a segmentation fault shows where
        # Chained to the default action, which ends the process: at the end of the pipe the dump is complete.
        faulthandler.register(signal.SIGUSR1, file=dumps, all_threads=True, chain=True)
        work(spec, rank, _connect(spec, rendezvous), link, out)
        link.report({"event": "end"})
        status = 0
    except SystemExit as leaving:  # as anywhere: exit with this status, without a message
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:  # noqa: BLE001  reported to the host, whatever it is
        link.report({"event": "failed", **as_json(raised_error(error))})
    finally:
        # Not sys.exit: the host's exit handlers and buffers were forked too, and must not run here.
        sys.stderr.flush()
        os._exit(status)


def _connect(spec: RunSpec, rendezvous: Path) -> dist.Store:
    """A store in a file that only this user can open.

    torch's store that listens on a port has no password: anyone who reaches the port could use it.
    """
    store = dist.FileStore(str(rendezvous))
    store.set_timeout(timedelta(seconds=spec.workload.time_limit + 60))  # the host enforces the limit, and reports more
    return store


def _die_with(host: int, life: int) -> None:
    """End this process when its host ends."""
    end_with_parent()
    if os.getppid() != host:  # it died before the call
        os._exit(1)

    def watch() -> None:
        os.read(life, 1)  # nothing is ever written: this returns when the host is gone
        os._exit(1)

    threading.Thread(target=watch, name="host watch", daemon=True).start()
