"""Warm worker processes, for work that would take the server's memory or time: see `pages.shared.subprocesses`."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, NamedTuple, Self, get_type_hints

from engine.launch.host.client import messages
from engine.spec import RequestError, Sentence, sentence
from engine.wire import receive, send
from pages.shared.codec import name_of, packed_call, read_answer

ROOT = Path(__file__).parents[2]
_HEAVY_BYTES = 512 << 20  # a process with this much memory is replaced


def too_long(timeout_s: float) -> Sentence:
    return sentence("this took longer than {seconds} s and was stopped; use a smaller request", seconds=f"{timeout_s:g}")


class Answer(NamedTuple):
    """`value` is the result if `status` is "done", a sentence if it is "refused", and a traceback if it is "failed"."""

    status: str
    value: Any
    resident_bytes: int  # of the process, after the call


class Worker:
    """One process. Only one thread at a time may use it."""

    def __init__(self, jobs: str) -> None:
        """`jobs`: the module whose `JOBS` it may call."""
        # A separate program: multiprocessing's spawn would run app.py again in it, and its fork would keep the server's port.
        self._socket, child = socket.socketpair()
        self._socket.setblocking(False)  # so that writing has the same time limit as reading
        with child:
            output = messages()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pages.shared.worker", jobs],
                cwd=ROOT,
                stdin=child.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches only the server; this process ends with it
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes, kind: Any, timeout_s: float) -> Answer:
        """The answer, with a value of `kind`.

        Raises `TimeoutError` if the whole answer takes longer, `EOFError` or `ConnectionError` if the process has ended, and
        `WireError` if the answer is of another kind.
        """
        deadline = time.monotonic() + timeout_s
        send(self._socket.fileno(), question, deadline)
        return Answer(*read_answer(receive(self._socket.fileno(), deadline=deadline), kind))

    def end(self) -> int:
        """Kill the process. Returns its exit status, or minus the number of the signal that killed it."""
        self._process.kill()
        self._socket.close()  # closing twice is no error
        return self._process.wait()


class Workers:
    """At most as many workers as `turns` allows. Each is started on demand and reused. Any thread may call."""

    def __init__(
        self, turns: BoundedSemaphore, timeout_s: float, heavy_bytes: int = _HEAVY_BYTES, jobs: str = "pages.shared.jobs"
    ) -> None:
        """`jobs`: the module whose `JOBS` may be called."""
        self._turns, self._timeout_s, self._heavy_bytes, self._jobs = turns, timeout_s, heavy_bytes, jobs
        self._idle: list[Worker] = []  # the one that worked last is taken first: it may have the result in a cache
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End idle workers. Calls that run go on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function in a worker.

        Raises `RequestError` if the function does or takes too long, `RuntimeError` with its traceback for other errors.
        """
        if name_of(function) not in import_module(self._jobs).JOBS:
            raise LookupError(f"{name_of(function)} is not one of the JOBS of {self._jobs}")
        question, kind = packed_call(function, arguments, named), get_type_hints(function)["return"]
        with self._turns:
            try:
                answer = self._ask_worker(self._take_worker(), question, kind)
            except (EOFError, ConnectionError):  # the worker ended after its idle time, or was killed
                answer = self._ask_new_worker(question, kind)
        if answer.status == "refused":
            raise RequestError(answer.value)
        if answer.status != "done":
            raise RuntimeError(f"{function.__qualname__} failed: {answer.value}")
        return answer.value

    def _take_worker(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                worker.end()
        return Worker(self._jobs)

    def _ask_new_worker(self, question: bytes, kind: Any) -> Answer:
        worker = Worker(self._jobs)
        try:
            return self._ask_worker(worker, question, kind)
        except (EOFError, ConnectionError):
            raise RuntimeError(f"a process ended with exit status {worker.end()} before it had answered, twice") from None

    def _ask_worker(self, worker: Worker, question: bytes, kind: Any) -> Answer:
        """The worker's answer. Afterwards the worker is idle, or is ended if it failed or is too large."""
        reusable = False
        try:
            answer = worker.ask(question, kind, self._timeout_s)
            reusable = answer.resident_bytes < self._heavy_bytes
        except TimeoutError:
            raise RequestError(too_long(self._timeout_s)) from None
        finally:
            if reusable:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.end()
        return answer
