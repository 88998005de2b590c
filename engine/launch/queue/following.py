"""Waits for a run of the queue to finish. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.launch.failure import RunError
from engine.launch.queue.run_queue import RunQueue, RunState
from engine.spec import RequestError

Progress = Callable[[RunState], None]


def follow(queue: RunQueue, id: str, progress: Progress | None = None) -> RunState:
    """Wait until a run is finished, and return its last state. `progress` is called with each new state, the last included."""
    seen: RunState | None = None
    while seen is None or not seen.finished:
        seen = queue.wait(id, seen)
        assert seen is not None
        if progress is not None:
            progress(seen)
    return seen


def saved_folder(finished: RunState) -> Path:
    """Where a finished run is saved. Raises `RequestError` if it was refused, `RunError` if it failed or was cancelled."""
    if finished.wrong:
        raise RequestError(finished.message)
    if finished.folder is None:
        raise RunError(finished.message, finished.traceback, finished.failed_rank)
    return finished.folder
