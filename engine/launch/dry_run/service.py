"""The dry runs of a server: one at a time, each ended when nobody watches it any more. Imports no torch."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from engine import store
from engine.launch.dry_run.client import DryRun
from engine.launch.failure import RunError
from engine.spec import RequestError, RunSpec, sentence

Phase = Literal["running", "done", "failed", "cancelled"]
_KEPT = 8  # ended dry runs whose result can still be seen
_WATCH_S = 0.5  # how often the service checks whether somebody still watches


@dataclass(frozen=True)
class DryRunState:
    """One dry run: `done` of `of` ranks so far. `peaks`: when it is done, the peak of each rank that it ran.

    `actions` of `of_actions` are finished, of all these ranks together; 0 of 0 before the first. `rank` None: one of each stage.
    `message`: a sentence that says why it failed. `traceback`: that of the rank that failed.
    """

    id: str
    spec: RunSpec
    rank: int | None
    began: float  # on the clock of time.monotonic
    phase: Phase = "running"
    done: int = 0
    of: int = 1
    actions: int = 0
    of_actions: int = 0
    peaks: pd.DataFrame | None = None  # the columns of memory_peak
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""


class DryRunService:
    """Any thread may call. `close` ends its processes."""

    def __init__(self, unwatched_s: float = 15.0) -> None:
        """A dry run that nobody watched for `unwatched_s` seconds is ended."""
        self._unwatched_s = unwatched_s
        self._lock = threading.Lock()
        self._states: dict[str, DryRunState] = {}
        self._watched: dict[str, float] = {}
        self._current: tuple[str, DryRun, threading.Thread] | None = None

    def start(self, spec: RunSpec, rank: int | None = None) -> str:
        """Start a dry run, and return its id. Raises `RequestError` while another one runs."""
        with self._lock:
            if self._current is not None:
                raise RequestError(sentence("another dry run is on; it must end or be cancelled first"))
            id, now = secrets.token_urlsafe(9), time.monotonic()
            of = spec.layout.pp if rank is None else 1
            self._states[id] = DryRunState(id, spec, rank, now, of=of)
            self._watched[id] = now
            for old in list(self._states)[:-_KEPT]:
                del self._states[old], self._watched[old]
            with ExitStack() as opened:  # so that nothing is left if the process cannot be started
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
                running = opened.enter_context(DryRun(spec, folder, rank))
                ends = opened.pop_all()
            thread = threading.Thread(target=self._run, args=(id, running, ends), daemon=True)
            self._current = id, running, thread
            thread.start()
        return id

    def watch(self, id: str) -> DryRunState | None:
        """Its state; None for an unknown id. A dry run that is not watched is ended."""
        with self._lock:
            if id in self._watched:
                self._watched[id] = time.monotonic()
            return self._states.get(id)

    def cancel(self, id: str) -> None:
        with self._lock:
            if self._current is not None and self._current[0] == id:
                self._current[1].cancel()

    def close(self) -> None:
        with self._lock:
            current = self._current
        if current is not None:
            current[1].cancel()
            current[2].join()

    def _run(self, id: str, running: DryRun, ends: ExitStack) -> None:
        over = threading.Event()
        reaper = threading.Thread(target=self._end_unwatched, args=(id, running, over), daemon=True)
        reaper.start()
        try:
            with ends:
                found = self._outcome(id, running)
            self._update(id, found)
        finally:
            over.set()
            reaper.join()
            with self._lock:
                self._current = None
                if self._states[id].phase == "running":  # an error of this program, printed on the server's terminal
                    self._states[id] = replace(self._states[id], phase="failed", message="its result could not be read")

    def _outcome(self, id: str, running: DryRun) -> dict[str, object]:
        """Wait for its end, and return the changes of its state."""

        def rank_done(done: int, of: int) -> None:
            self._update(id, {"done": done, "of": of})

        def progress(actions: int, of: int) -> None:
            self._update(id, {"actions": actions, "of_actions": of})

        try:
            result = store.load(running.wait(rank_done, progress))
        except RequestError as error:
            return {"phase": "failed", "message": error.sentence}
        except RunError as error:
            phase = "cancelled" if running.cancelled else "failed"
            return {"phase": phase, "message": str(error), "traceback": error.traceback}
        peak = result.tables["memory_peak"]
        peaks = peak[peak["rank"].isin(result.summary["rehearsed"])].reset_index(drop=True)
        return {"phase": "done", "peaks": peaks, "seconds": float(result.summary["seconds"])}

    def _update(self, id: str, changes: dict[str, object]) -> None:
        with self._lock:
            if id in self._states:
                self._states[id] = replace(self._states[id], **changes)  # type: ignore[arg-type]

    def _end_unwatched(self, id: str, running: DryRun, over: threading.Event) -> None:
        while not over.wait(min(_WATCH_S, self._unwatched_s)):
            with self._lock:
                unseen = time.monotonic() - self._watched[id]
            if unseen > self._unwatched_s:
                running.cancel()
                return
