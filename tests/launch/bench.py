"""Smallest runs, and their processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import psutil

from engine.launch.queue.run_queue import RunQueue, RunState
from engine.spec import FaultSpec, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from tests.patience import PATIENCE_S

SMALL = ModelSpec(layers=2, hidden=16, heads=2, seq=16)


NEVER_S = 24 * 3600.0  # the longest time limit of a run; no test reaches it


def small(layout: str = "dp2.tp2.pp1", fault: str | None = None, parity: bool = False, **workload: Any) -> RunSpec:
    """A spec that runs fast. It has no effective time limit unless `workload` sets one."""
    return RunSpec(
        model=SMALL,
        layout=LayoutSpec(**LayoutSpec.degrees(layout)),
        workload=WorkloadSpec(**{"steps": 3, "microbatches": 2, "time_limit": NEVER_S, **workload}),
        parity=parity,
        fault=FaultSpec.read(fault) if fault else None,
    )


def until(queue: RunQueue, id: str, there: Callable[[RunState], bool]) -> RunState:
    """Wait until `there(state)` is true, and return the state."""
    deadline = time.monotonic() + PATIENCE_S
    state = queue.state(id)
    assert state is not None
    while not there(state):
        left = deadline - time.monotonic()
        assert left > 0, f"still {state} after {PATIENCE_S} s"
        assert not state.finished, f"ended otherwise: {state}"
        state = queue.wait(id, state, left)
        assert state is not None
    return state


def finished(queue: RunQueue, id: str) -> RunState:
    return until(queue, id, lambda state: state.finished)


def hosts(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The warm hosts that a process has started and that have not ended."""
    alive = [child for child in (of or psutil.Process()).children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "engine.launch.host.program" in child.cmdline()]


def host_of(starter: psutil.Process, others: Collection[int] = ()) -> psutil.Process:
    """The warm host that a process has started, other than `others`. Waits for it: a run's phase can change before it starts."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [host for host in hosts(starter) if host.pid not in others]):
        assert time.monotonic() < deadline, "there is no host"
        time.sleep(0.01)  # there is no event to wait for
    (host,) = found
    return host


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them have ended now, and none is a zombie."""
    return not psutil.wait_procs(processes, timeout=0)[1]


def all_end(processes: list[psutil.Process]) -> bool:
    """Whether all of them end. Zombies count as ended: only the system's init removes an orphan."""
    deadline = time.monotonic() + PATIENCE_S
    alive = processes
    while alive and time.monotonic() < deadline:
        _, left = psutil.wait_procs(alive, timeout=0.05)
        alive = [process for process in left if not _is_zombie(process)]
    return not alive


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def hang_instead_of_torch(folder: Path) -> str:
    """A module path on which importing torch never ends, so that a host never becomes warm."""
    (folder / "torch.py").write_text("import threading; threading.Event().wait()")
    return str(folder)


class Bench:
    """A queue with its own home folder, and its host."""

    def __init__(self, home: Path, unwatched_s: float | None = None, cores: int = 1) -> None:
        """`cores`: 1 lets one run go on at a time, on any machine."""
        self.home = home
        self._others = {host.pid for host in hosts()}
        self.queue = RunQueue(home, unwatched_s, cores)

    @property
    def host(self) -> psutil.Process:
        return host_of(psutil.Process(), self._others)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the current run, in rank order."""
        return sorted(self.host.children(), key=lambda rank: rank.pid)

    def saved(self) -> list[str]:
        """All entries of the home folder, hidden ones too."""
        return sorted(path.name for path in self.home.iterdir())
