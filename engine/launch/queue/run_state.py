"""The state of a run of the queue at one moment, for those who watch it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.spec import RunSpec

Phase = Literal["queued", "starting", "running", "tracing", "parity", "generating", "saving", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class RunState:
    """The state of a run at one moment."""

    id: str
    spec: RunSpec
    by: str = ""  # the session that submitted it
    phase: Phase = "queued"
    begun: tuple[Phase, ...] = ()  # of `engine.phases.PHASES`, in order: who looks late sees those that are over too
    ahead: int = 0  # runs that are active or wait before it
    step: int = 0  # finished steps
    losses: tuple[float, ...] = ()  # of the finished steps
    backend: str = ""
    why: str = ""  # why that backend
    ready_s: float | None = None  # from being started to all ranks being ready to train
    message: str = ""  # one sentence, if failed or cancelled
    traceback: str = ""  # of the rank that failed
    failed_rank: int | None = None
    wrong: bool = False  # failed because of the request, not of a rank
    folder: Path | None = None  # where it is saved, when done

    @property
    def finished(self) -> bool:
        return self.phase in ("done", "failed", "cancelled")
