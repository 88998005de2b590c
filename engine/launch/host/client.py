"""The client of a warm host: start it, send requests, read events, end it. Imports no torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

from engine.launch.root_cause import signal_named
from engine.spec import sentence

_WARM_S = 300.0  # for it to import torch
_PATIENCE_S = 5.0  # for a host to end by itself; it needs milliseconds


class WarmHost:
    """One host process. Not for use by more than one thread.

    A host that is stopped or stuck does not end a run at its time limit and does not cancel it. So each request has a deadline
    here, after which the host is killed. Deadlines are set for a run, by its name, or for the host itself.
    """

    def __init__(self, reserve: int | None = None, gpus: bool = True) -> None:
        """`reserve`: bytes of memory that it keeps free by ending runs; None: what is usual on such a machine.

        `gpus`: whether runs may use GPUs.
        """
        self.events, events_end = os.pipe()
        command = [sys.executable, "-P", "-m", "engine.launch.host.program", "--events", str(events_end)]
        command += [] if reserve is None else ["--reserve", str(reserve)]
        try:
            said = messages()  # output of the host must not mix with a command's results
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(events_end,),
                env=environment(gpus),
                start_new_session=True,  # so that Ctrl-C in a terminal reaches the command, which cancels the run
            )
        except OSError:
            os.close(self.events)
            raise
        finally:
            os.close(events_end)
        self._unread = bytearray()
        self.overdue: tuple[str, str] | None = None  # the run for which `kill_if_late` killed it, and why
        self._due: dict[str, tuple[float, str]] = {}
        self.must_answer(_WARM_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, request: dict[str, Any]) -> None:
        """Send a request. If the host is gone, `read_events` reports it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def read_events(self) -> list[dict[str, Any]] | None:
        """Its events since the last call. None when it and its ranks are gone. Blocks if there is none."""
        data = os.read(self.events, 1 << 16)
        if not data:
            return None
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        return [json.loads(line) for line in lines]

    def must_answer(self, seconds: float, run: str = "") -> None:
        """Set the deadline for its next answer."""
        why = sentence("the process that runs the ranks did not answer within {seconds:g} s and was ended", seconds=seconds)
        self._due[run] = time.monotonic() + seconds, why

    def must_end(self, run: str, limit: float, seconds: float) -> None:
        """Set the deadline for the end of a run: `seconds` after its time limit."""
        why = sentence(
            "the run reached its time limit of {limit:g} s; the process that runs the ranks did not answer and was ended",
            limit=limit,
        )
        self._due[run] = time.monotonic() + limit + seconds, why

    def has_answered(self, run: str = "") -> None:
        """Remove the deadline."""
        self._due.pop(run, None)

    def patience(self) -> float | None:
        """Seconds until the next deadline. None if there is none."""
        return max(0.0, min(self._due.values())[0] - time.monotonic()) if self._due else None

    def kill_if_late(self) -> None:
        """Kill it after a deadline. Its ranks end too, and then `read_events` returns None."""
        late = [(due, run, why) for run, (due, why) in self._due.items() if time.monotonic() >= due]
        if late:
            _, run, why = min(late)
            self.overdue = run, why
            self._due.clear()
            self._process.kill()

    def end(self, patience: float = _PATIENCE_S) -> int:
        """End it and its ranks, and return when they are gone: its exit status, or minus the signal that killed it.

        After `patience` seconds it is killed. Its ranks end too when their parent is gone.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, and a request was still in the buffer
            self._process.stdin.close()  # which ends it
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:  # stopped or stuck
            self._process.kill()
            status = self._process.wait()
        self._await_ranks()
        os.close(self.events)
        return status

    def _await_ranks(self) -> None:
        """Wait for ranks that outlive the host. They hold its end of `events` open, so it is at end-of-file after the last."""
        deadline = time.monotonic() + _PATIENCE_S
        while select([self.events], [], [], max(0.0, deadline - time.monotonic()))[0] and os.read(self.events, 1 << 16):
            pass


def how_ended(status: int) -> str:
    """How a host ended, in a sentence, by what `WarmHost.end` returned."""
    if status < 0:
        return sentence(
            "the process that runs the ranks was killed by {signal}, and the ranks with it", signal=signal_named(-status)
        )
    return sentence("the process that runs the ranks left with exit status {status}, and the ranks with it", status=status)


def messages() -> int:
    """This process's standard error, if it has one."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


def environment(gpus: bool = True) -> dict[str, str]:
    """This process's environment, with settings that torch's libraries read from there only. `gpus`: whether torch sees GPUs."""
    here = dict(os.environ)
    root = str(Path(__file__).parents[3])  # where the package `engine` is
    here["PYTHONPATH"] = os.pathsep.join(filter(None, (root, here.get("PYTHONPATH"))))
    here["KINETO_LOG_LEVEL"] = "6"  # otherwise the profiler's library prints two lines for every profile
    if not gpus:
        here["CUDA_VISIBLE_DEVICES"] = ""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:  # all ranks are on this machine, so they need not be reachable from its network
        here["GLOO_SOCKET_IFNAME"] = here["NCCL_SOCKET_IFNAME"] = loopback
    return here
