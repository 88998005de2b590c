"""A run through the queue, from the request to its end."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.launch.queue.following import follow
from engine.launch.queue.run_queue import RunQueue
from engine.spec import RunSpec


class Ended(NamedTuple):
    """The folder of a saved run, and the seconds from its start until all ranks were ready to train."""

    folder: Path
    ready_s: float


def ended(queue: RunQueue, spec: RunSpec) -> Ended:
    """Submit a run and wait for it. If it does not finish, the benchmark ends with the run's message."""
    state = follow(queue, queue.submit(spec))
    if state.phase != "done" or state.folder is None or state.ready_s is None:
        raise SystemExit(f"{spec.layout.code} did not finish: {state.message}\n{state.traceback}\n{spec.model_dump_json()}")
    return Ended(state.folder, state.ready_s)
