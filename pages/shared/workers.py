"""Warm processes beside the server, for work that would take its memory or its time: see `pages.shared.subprocesses`."""

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

from engine.launch.client import messages
from engine.spec import RequestError, Sentence, sentence
from engine.wire import receive, send
from pages.shared.codec import name_of, packed_call, read_answer

ROOT = Path(__file__).parents[2]
_HEAVY_BYTES = 512 << 20  # a process that has grown so large makes room for a new one


def too_long(patience_s: float) -> Sentence:
    return sentence("this took longer than {seconds} s and was stopped; ask for less at a time", seconds=f"{patience_s:g}")


class Answer(NamedTuple):
    """`how` tells what `value` is: "done" what was asked for, "refused" a sentence, "failed" the traceback of any other error."""

    how: str
    value: Any
    resident_bytes: int  # of the process that worked it out, after that


class Worker:
    """One process. Not for use by more than one thread at a time."""

    def __init__(self, jobs: str) -> None:
        """`jobs`: the module whose `JOBS` are what it may be asked."""
        # A program of its own: what multiprocessing spawns from a server would run app.py again, and a fork would keep its port.
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)  # so that no write waits longer than the answer may take
        with theirs:
            said = messages()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pages.shared.worker", jobs],
                cwd=ROOT,
                stdin=theirs.fileno(),
                stdout=said,
                stderr=said,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches the server alone, with which it ends
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes, kind: Any, patience_s: float) -> Answer:
        """An answer of `kind`.

        Raises `TimeoutError` where it takes longer until all of it is there, `EOFError` or `ConnectionError` where the process is
        gone, and `WireError` where the answer is of another kind.
        """
        deadline = time.monotonic() + patience_s
        send(self._socket.fileno(), question, deadline)
        return Answer(*read_answer(receive(self._socket.fileno(), deadline=deadline), kind))

    def end(self) -> int:
        """End it, whatever it is at. Its exit status, or minus the signal that killed it."""
        self._process.kill()
        self._socket.close()  # a second time does no harm
        return self._process.wait()


class Workers:
    """As many as there are turns, each started when it is needed and kept. Any thread may ask."""

    def __init__(
        self, turns: BoundedSemaphore, patience_s: float, heavy_bytes: int = _HEAVY_BYTES, jobs: str = "pages.shared.jobs"
    ) -> None:
        """`jobs`: the module whose `JOBS` are what they may be asked."""
        self._turns, self._patience_s, self._heavy_bytes, self._jobs = turns, patience_s, heavy_bytes, jobs
        self._idle: list[Worker] = []  # the one that was busy last is taken first, as it may know already what is asked
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End those that wait. What is under way goes on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def do(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Raises `RequestError` if the function does or takes too long, `RuntimeError` with its traceback for other errors."""
        if name_of(function) not in import_module(self._jobs).JOBS:
            raise LookupError(f"{name_of(function)} is not one of the JOBS of {self._jobs}")
        question, kind = packed_call(function, arguments, named), get_type_hints(function)["return"]
        with self._turns:
            try:
                answer = self._asked(self._taken(), question, kind)
            except (EOFError, ConnectionError):  # it had waited long enough and ended, or somebody killed it
                answer = self._asked_anew(question, kind)
        if answer.how == "refused":
            raise RequestError(answer.value)
        if answer.how != "done":
            raise RuntimeError(f"{function.__qualname__} failed: {answer.value}")
        return answer.value

    def _taken(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.lives:
                    return worker
                worker.end()
        return Worker(self._jobs)

    def _asked_anew(self, question: bytes, kind: Any) -> Answer:
        worker = Worker(self._jobs)
        try:
            return self._asked(worker, question, kind)
        except (EOFError, ConnectionError):
            raise RuntimeError(f"a process ended with exit status {worker.end()} before it had answered, twice") from None

    def _asked(self, worker: Worker, question: bytes, kind: Any) -> Answer:
        """Its answer. The worker then waits for the next question, or is ended."""
        stays = False
        try:
            answer = worker.ask(question, kind, self._patience_s)
            stays = answer.resident_bytes < self._heavy_bytes
        except TimeoutError:
            raise RequestError(too_long(self._patience_s)) from None
        finally:
            if stays:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.end()
        return answer
