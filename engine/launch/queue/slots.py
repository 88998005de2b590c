"""Which runs go on at the same time. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from engine.launch.host.free_memory import memory_for_runs
from engine.launch.limits import need
from engine.spec import RunSpec


class Slots:
    """A run is started beside others if each rank has a core of its own, and the predicted memory of all of them is there.

    A run with more ranks than there are cores runs alone. On a machine with a GPU there is one run at a time, unless `cores` says
    otherwise: every run would take the same GPU.
    """

    def __init__(self, cores: int | None = None) -> None:
        """`cores`: those that ranks may use; None: all that this process may use, and 1 with a GPU."""
        self.cores = cores or (1 if has_gpu() else _usable_cores())  # with 1, no run is beside another
        self._free = 0  # bytes when no run was active

    def has_room(self, spec: RunSpec, active: Collection[RunSpec]) -> bool:
        """Whether `spec` can start now beside the runs that are active."""
        if not active:
            self._free = memory_for_runs()
            return True
        together = (spec, *active)
        if sum(run.layout.ranks for run in together) > self.cores:  # first, as the queue asks at every event
            return False
        return sum(need(run).total for run in together) <= self._free and need(spec).total <= memory_for_runs()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Asked of the system: torch is not loaded here."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
