"""Faults in every phase of a run: a rank breaks at a status that it reports. Nothing of the product knows of this.

A host is started with a `sitecustomize` on its module path, which changes the link of every rank that it forks. Which rank
breaks, where and how is read from a file, so one host serves all cases.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.launch.queue.run_queue import RunState
from engine.spec import GenerateSpec, RunSpec
from tests.launch.bench import NEVER_S, Bench, finished, small
from tests.patience import time_limits

# A phase, and how the status of a rank begins when it enters it.
PHASES = {
    "start": "",
    "rendezvous": "connecting",
    "building": "building the model",
    "forward": r"step 2: F",
    "backward": r"step 2: B",
    "reduction": r"step 2: (reduce|R)",
    "optimizer": r"step 2: step",
    "tracing": "tracing",
    "traced step": "the traced step: B",
    "generating": "generating",
    "parity": "comparing",
    "saving": "saving",
}
RANK_0_ALONE = ("parity", "saving")
BY_SIGNAL = ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGSEGV")
KINDS = ("raise", "exit", *BY_SIGNAL, "closed sockets", "full disk", "read-only folder")
LAYOUT, RANKS = "dp2.tp1.pp2", {"first": 0, "middle": 2, "last": 3}

_SITE = """
import os
import sys

def _break_here():
    if "engine.launch.ranks" not in sys.modules:
        return
    from tests.launch.breaking import break_links
    break_links()

os.register_at_fork(after_in_child=_break_here)
"""


@dataclass(frozen=True)
class Case:
    phase: str
    kind: str
    rank: int

    def __str__(self) -> str:
        return f"{self.kind} of rank {self.rank} in {self.phase}"


def cases() -> Iterator[Case]:
    """Every phase × kind × rank that there is."""
    for phase in PHASES:
        for rank in (0,) if phase in RANK_0_ALONE else RANKS.values():
            for kind in KINDS:
                if kind == "closed sockets" and phase in ("start", "rendezvous", *RANK_0_ALONE):
                    continue  # there are none, or no other rank is asked for anything
                if kind == "read-only folder" and phase != "saving":
                    continue  # nothing is written before
                if phase == "start" and kind not in (*BY_SIGNAL, "exit"):
                    continue
                yield Case(phase, kind, rank)


class FaultyBench(Bench):
    """A bench whose ranks break where a case says."""

    def __init__(self, home: Path, places: Path) -> None:
        self.places, self._order, self._reached = places, places / "order.json", places / "reached"
        super().__init__(home)
        assert self.told(None).phase == "done"
        self._host_pid, self._descriptors = self.host.pid, self.host.num_fds()

    def told(self, case: Case | None, limit: float = NEVER_S) -> RunState:
        """The last state of a run with this fault."""
        self._reached.unlink(missing_ok=True)
        order: dict[str, object] = {}
        if case:
            order = {"pattern": PHASES[case.phase], "kind": case.kind, "rank": case.rank, "home": str(self.home)}
        self._order.write_text(json.dumps(order))
        state = finished(self.queue, self.queue.submit(spec(limit)))
        self.home.chmod(0o700)
        return state

    def answer(self, case: Case) -> RunState:
        """The same. A stopped rank is told of when the time limit is reached, which must not be before the fault."""
        if case.kind != "SIGSTOP":
            return self.told(case)
        for limit in time_limits():
            state = self.told(case, 2 * limit)
            if self._reached.exists():
                return state
        raise AssertionError(f"{case} was not reached")

    def seconds(self) -> float:
        """How long ago the fault happened."""
        return time.monotonic() - float(self._reached.read_text())

    def left_behind(self) -> list[str]:
        """Whatever a run that failed should not leave."""
        found = [f"process {rank.pid}" for rank in self.ranks()]
        found += [f"file {name}" for name in self.saved() if name.startswith(".")]
        found += [f"rendezvous {path.name}" for path in Path(tempfile.gettempdir()).glob("shardscope-*") if path.is_dir()]
        if self.host.pid != self._host_pid:
            found.append("another host")
        elif (more := self.host.num_fds() - self._descriptors) > 0:
            found.append(f"{more} descriptors of the host")
        return found


def spec(limit: float) -> RunSpec:
    """A run that has every phase."""
    return small(LAYOUT, parity=True, steps=2, time_limit=limit).model_copy(
        update={"generate": GenerateSpec(prompt="On", new_tokens=2)}
    )


@contextmanager
def faulty_bench(folder: Path) -> Iterator[FaultyBench]:
    """A bench whose host, and temporary files, are in `folder`."""
    site, places = folder / "site", folder / "places"
    for made in (site, places):
        made.mkdir()
    (site / "sitecustomize.py").write_text(_SITE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(site))
        environment.setenv("SHARDSCOPE_FAULT", str(places))
        environment.setenv("TMPDIR", str(places))
        environment.setattr(tempfile, "tempdir", str(places))
        bench = FaultyBench(folder / "runs", places)
        try:
            yield bench
        finally:
            bench.queue.close()


def wrong_with(case: Case, state: RunState, left: list[str]) -> list[str]:
    """What a user would miss: nothing, if the run failed, names the rank and the cause, and left nothing."""
    found = list(left)
    if state.phase != "failed" or state.wrong:
        found.append(f"it is {state.phase}: {state.message}")
    blamed = range(4) if case.kind == "closed sockets" else (case.rank,)  # both ends of each line see it close
    if state.failed_rank not in blamed:
        found.append(f"rank {state.failed_rank} is named: {state.message}")
    if not re.search(_CAUSES[case.kind], state.message):
        found.append(f"the cause is not told: {state.message}")
    return found


_CAUSES = {
    "raise": "RuntimeError: drill",
    "exit": "left with exit status 3",
    "SIGSTOP": "reached its time limit",
    "closed sockets": "lost the connection|onnection|ocket",
    "full disk": "File too large|rite|could not be saved",
    "read-only folder": "Permission denied",
} | {name: re.escape(name) for name in ("SIGKILL", "SIGTERM", "SIGSEGV")}
