"""A run as anybody's, from asking to its end."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.launch.queue import RunQueue
from engine.spec import RunSpec


class Ended(NamedTuple):
    """Where a run is saved, and seconds from its start to all ranks being ready to train."""

    folder: Path
    ready_s: float


def ended(queue: RunQueue, spec: RunSpec) -> Ended:
    """Ask for a run, and wait for it. Ends the benchmark where it does not finish, with what it said."""
    id = queue.submit(spec)
    state = queue.state(id)
    while state is not None and not state.finished:
        state = queue.wait(id, state)
    if state is None or state.phase != "done" or state.folder is None or state.ready_s is None:
        told = f"{state.message}\n{state.traceback}" if state else ""
        raise SystemExit(f"{spec.layout.code} did not finish: {told}\n{spec.model_dump_json()}")
    return Ended(state.folder, state.ready_s)
