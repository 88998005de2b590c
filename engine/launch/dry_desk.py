"""Where a server's dry runs are asked for: one at a time, each ended when nobody looks at it any more. Imports no torch."""

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
from engine.launch.dry_client import DryRun
from engine.launch.failure import RunError
from engine.spec import RequestError, RunSpec, sentence

Phase = Literal["on", "done", "failed", "cancelled"]
_KEPT = 8  # ended dry runs whose result can still be seen
_LOOKED_S = 0.5  # how often it is seen whether somebody still looks


@dataclass(frozen=True)
class Rehearsed:
    """One dry run: `done` of `of` ranks so far, and when it is done the peak of each rank that was rehearsed.

    `actions` of `of_actions` of all these ranks together are over, 0 of 0 until the first are. `rank` None: one of each stage.
    `message` is a sentence of why it failed, `traceback` that of the rank it happened on.
    """

    id: str
    spec: RunSpec
    rank: int | None
    began: float  # on the clock of time.monotonic
    phase: Phase = "on"
    done: int = 0
    of: int = 1
    actions: int = 0
    of_actions: int = 0
    peaks: pd.DataFrame | None = None  # the columns of memory_peak
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""


class DryRunDesk:
    """Any thread may ask. Close it, and no process of it is left."""

    def __init__(self, unwatched_s: float = 15.0) -> None:
        """A dry run that nobody has looked at for `unwatched_s` seconds is ended."""
        self._unwatched_s = unwatched_s
        self._lock = threading.Lock()
        self._states: dict[str, Rehearsed] = {}
        self._looked: dict[str, float] = {}
        self._on: tuple[str, DryRun, threading.Thread] | None = None

    def start(self, spec: RunSpec, rank: int | None = None) -> str:
        """The id to look at it by. Raises `RequestError` while another one is on."""
        with self._lock:
            if self._on is not None:
                raise RequestError(sentence("another dry run is on; it must end or be cancelled first"))
            id, now = secrets.token_urlsafe(9), time.monotonic()
            of = spec.layout.pp if rank is None else 1
            self._states[id] = Rehearsed(id, spec, rank, now, of=of)
            self._looked[id] = now
            for old in list(self._states)[:-_KEPT]:
                del self._states[old], self._looked[old]
            with ExitStack() as opened:  # so that nothing is left where the process cannot be started
                nowhere = Path(opened.enter_context(tempfile.TemporaryDirectory()))
                running = opened.enter_context(DryRun(spec, nowhere, rank))
                ends = opened.pop_all()
            thread = threading.Thread(target=self._watch_over, args=(id, running, ends), daemon=True)
            self._on = id, running, thread
            thread.start()
        return id

    def look(self, id: str) -> Rehearsed | None:
        """How it stands; None for an id that is not known. Looking keeps it going."""
        with self._lock:
            if id in self._looked:
                self._looked[id] = time.monotonic()
            return self._states.get(id)

    def cancel(self, id: str) -> None:
        with self._lock:
            if self._on is not None and self._on[0] == id:
                self._on[1].cancel()

    def close(self) -> None:
        with self._lock:
            on = self._on
        if on is not None:
            on[1].cancel()
            on[2].join()

    def _watch_over(self, id: str, running: DryRun, ends: ExitStack) -> None:
        over = threading.Event()
        reaper = threading.Thread(target=self._end_unwatched, args=(id, running, over), daemon=True)
        reaper.start()
        try:
            with ends:
                found = self._end_of(id, running)
            self._becomes(id, found)
        finally:
            over.set()
            reaper.join()
            with self._lock:
                self._on = None
                if self._states[id].phase == "on":  # by an error of the program, which is on the server's terminal
                    self._states[id] = replace(self._states[id], phase="failed", message="its result could not be read")

    def _end_of(self, id: str, running: DryRun) -> dict[str, object]:
        """What becomes of the state when it ends."""

        def told(done: int, of: int) -> None:
            self._becomes(id, {"done": done, "of": of})

        def acted(actions: int, of: int) -> None:
            self._becomes(id, {"actions": actions, "of_actions": of})

        try:
            result = store.load(running.wait(told, acted))
        except RequestError as error:
            return {"phase": "failed", "message": error.sentence}
        except RunError as error:
            phase = "cancelled" if running.cancelled else "failed"
            return {"phase": phase, "message": str(error), "traceback": error.traceback}
        peak = result.tables["memory_peak"]
        peaks = peak[peak["rank"].isin(result.summary["rehearsed"])].reset_index(drop=True)
        return {"phase": "done", "peaks": peaks, "seconds": float(result.summary["seconds"])}

    def _becomes(self, id: str, changes: dict[str, object]) -> None:
        with self._lock:
            if id in self._states:
                self._states[id] = replace(self._states[id], **changes)  # type: ignore[arg-type]

    def _end_unwatched(self, id: str, running: DryRun, over: threading.Event) -> None:
        while not over.wait(min(_LOOKED_S, self._unwatched_s)):
            with self._lock:
                unseen = time.monotonic() - self._looked[id]
            if unseen > self._unwatched_s:
                running.cancel()
                return
