"""A run as anybody's, from asking to its end."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.launch.following import follow
from engine.launch.queue import RunQueue
from engine.spec import RunSpec


class Ended(NamedTuple):
    """Where a run is saved, and seconds from its start to all ranks being ready to train."""

    folder: Path
    ready_s: float


def ended(queue: RunQueue, spec: RunSpec) -> Ended:
    """Ask for a run, and wait for it. Ends the benchmark where it does not finish, with what it said."""
    state = follow(queue, queue.submit(spec))
    if state.phase != "done" or state.folder is None or state.ready_s is None:
        raise SystemExit(f"{spec.layout.code} did not finish: {state.message}\n{state.traceback}\n{spec.model_dump_json()}")
    return Ended(state.folder, state.ready_s)
