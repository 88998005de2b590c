"""What is done in a process of its own: its answer, its refusal and its failure come back, and a class takes turns."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter
from typing import Any

import pytest

from engine.catalog import MODELS
from engine.devices import device
from engine.predict.planner.candidates import candidates
from engine.spec import RequestError, Sentence
from pages.shared import apart


def test_an_answer_and_a_refusal_come_back_as_if_it_had_been_called_here() -> None:
    assert apart.done_apart(device, name="l40s") == device("l40s")
    with pytest.raises(RequestError, match="no dp × tp × pp = 7 fits") as refused:
        apart.done_apart(candidates, MODELS["gpt-tiny"], 7, 3)
    told = refused.value.sentence
    assert isinstance(told, Sentence)  # so that it can be said in other languages
    assert told.values["ranks"] == 7


def test_what_goes_wrong_there_is_told_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        apart.done_apart(divmod, 1, 0)


def test_however_many_ask_only_a_few_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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

    monkeypatch.setattr(apart.subprocess, "run", run)
    with ThreadPoolExecutor(30) as sessions:
        list(sessions.map(apart.made_apart, ["a.module"] * 30))
    assert 1 <= most <= 4
