"""Worker processes: results, refusals and errors come back, and no process outlives the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore, Lock
from time import perf_counter
from typing import Any

import psutil
import pytest

from engine.catalog import MODELS
from engine.devices import device
from engine.planner.candidates import candidates
from engine.spec import RequestError, Sentence
from engine.wire import unpack
from pages.shared import subprocesses
from pages.shared.codec import packed_call
from pages.shared.worker import answered
from pages.shared.workers import ROOT, Worker, Workers
from tests.pages import jobs
from tests.patience import PATIENCE_S

SERVER = """
from threading import BoundedSemaphore
from pages.shared.workers import Workers
from tests.pages.jobs import pid, wait
workers = Workers(BoundedSemaphore(1), 3600, jobs="tests.pages.jobs")
print(workers.call(pid, (), {}), flush=True)
workers.call(wait, (3600,), {})
"""
JOBS = "tests.pages.jobs"


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(BoundedSemaphore(2), PATIENCE_S, jobs=JOBS) as workers:
        yield workers


def pid(workers: Workers) -> int:
    return int(workers.call(jobs.pid, (), {}))


def test_results_and_refusals_are_those_of_a_local_call(workers: Workers) -> None:
    assert workers.call(device, (), {"name": "l40s"}) == device("l40s")
    with pytest.raises(RequestError, match="no dp × tp × pp = 7 fits") as refused:
        workers.call(candidates, (MODELS["gpt-tiny"], 7, 3), {})
    told = refused.value.sentence
    assert isinstance(told, Sentence)  # so that it can be translated
    assert told.values["ranks"] == 7


def test_a_worker_runs_only_listed_functions(workers: Workers) -> None:
    with pytest.raises(LookupError, match=r"posix\.getpid is not one of the JOBS of tests\.pages\.jobs"):
        workers.call(os.getpid, (), {})
    head, _ = unpack(answered(packed_call(os._exit, (3,), {}), jobs.JOBS))
    assert head["how"] == "failed"
    assert "there is no job 'posix._exit'" in head["value"]


def test_an_error_has_its_traceback_and_the_worker_lives_on(workers: Workers) -> None:
    before = pid(workers)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        workers.call(jobs.divide, (1, 0), {})
    assert pid(workers) == before


def test_a_killed_worker_is_replaced_even_during_a_call(workers: Workers) -> None:
    waiting = pid(workers)
    os.kill(waiting, signal.SIGKILL)
    busy = pid(workers)
    assert busy != waiting
    with ThreadPoolExecutor(1) as session:
        answer = session.submit(workers.call, jobs.wait, (0.3,), {})
        os.kill(busy, signal.SIGKILL)
        assert answer.result() is None
    assert pid(workers) not in (waiting, busy)
    with pytest.raises(RuntimeError, match="ended with exit status 3 before it had answered, twice"):
        workers.call(jobs.leave, (3,), {})


def test_a_call_that_takes_too_long_is_stopped_and_reported() -> None:
    before = set(psutil.Process().children())
    with Workers(BoundedSemaphore(1), timeout_s=0.5, jobs=JOBS) as workers:
        for _ in range(2):  # the stopped call has released its turn
            with pytest.raises(RequestError, match=r"took longer than 0\.5 s and was stopped"):
                workers.call(jobs.wait, (3600,), {})
        assert set(psutil.Process().children()) <= before


def test_the_time_limit_includes_sending_the_call_and_receiving_the_whole_answer() -> None:
    for stop, question in ((True, bytes(1 << 24)), (False, packed_call(jobs.half_answer, (3600.0,), {}))):
        worker = Worker(JOBS)
        assert worker.ask(packed_call(jobs.pid, (), {}), int, PATIENCE_S).value == worker.pid
        if stop:
            os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            worker.ask(question, None, timeout_s=0.5)
        assert worker.end() == -signal.SIGKILL


def test_a_worker_with_too_much_memory_is_replaced() -> None:
    with Workers(BoundedSemaphore(1), PATIENCE_S, heavy_bytes=1, jobs=JOBS) as workers:
        before = pid(workers)
        assert not psutil.pid_exists(before)
        assert pid(workers) != before


def test_a_killed_server_leaves_no_worker_even_during_a_call() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    worker = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.wait()
    server.stdout.close()
    worker.wait(PATIENCE_S)


def test_a_worker_that_cannot_read_a_call_ends_with_the_reason() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "pages.shared.worker", JOBS]
        worker = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stderr=subprocess.PIPE, text=True)
        ours.sendall(b"\xff" * 8)
        _, said = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 1
    assert "WireError: a message of 18,446,744,073,709,551,615 bytes is more than" in said


def test_only_a_few_workers_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, most = Lock(), 0, 0

    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        until = perf_counter() + 0.005
        while perf_counter() < until:
            pass
        with lock:
            running -= 1
        return subprocess.CompletedProcess([], 0, b"", b"")

    monkeypatch.setattr(subprocesses.subprocess, "run", run)
    with ThreadPoolExecutor(30) as sessions:
        list(sessions.map(subprocesses.run_module, ["a.module"] * 30))
    assert 1 <= most <= 4
