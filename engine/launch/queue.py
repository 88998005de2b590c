"""The queue of runs on this machine, one at a time: progress, cancelling, time limits. Imports no torch."""

from __future__ import annotations

import atexit
import os
import secrets
import selectors
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from engine.launch import limits
from engine.launch.client import WarmHost
from engine.launch.draft import Draft
from engine.launch.root_cause import signal_named
from engine.spec import RequestError, RunSpec, sentence
from engine.spec.sentence import unpacked

Phase = Literal["queued", "starting", "running", "tracing", "parity", "generating", "saving", "done", "failed", "cancelled"]

# How long the host may take to answer, in seconds. It needs milliseconds, and more on a busy machine.
_TAKEN_S = 30.0  # to begin a run
_LATE_S = 10.0  # after the run's time limit, at which it ends the run and reports why
_CANCELLED_S = 5.0  # to end a run that is cancelled

_REMEMBERED = 200  # finished runs whose state is kept; saved runs are kept anyway


@dataclass(frozen=True)
class RunState:
    """The state of a run at one moment."""

    id: str
    spec: RunSpec
    phase: Phase = "queued"
    ahead: int = 0  # runs before it in the queue
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


@dataclass
class _Current:
    """The current run."""

    id: str
    draft: Draft
    since: float
    sent: bool = False  # whether the host got the request; before that it imports torch
    taken: bool = False  # whether the host has started it
    ending: bool = False  # whether the host was asked to cancel it


class RunQueue:
    """Runs specs one after another in a warm host, which is started at once. Any thread may call.

    Saved runs go to new folders in `home`, which is made if needed; `RequestError` if it cannot be made. A run that nobody
    watched for `unwatched_s` seconds is cancelled; None: never.
    """

    def __init__(self, home: Path, unwatched_s: float | None = 90.0) -> None:
        _make_home(home)
        self._home, self._unwatched_s = home.absolute(), unwatched_s
        # This lock protects what callers read and request; the other fields belong to the thread.
        self._changed = threading.Condition()
        self._states: dict[str, RunState] = {}
        self._unfinished: dict[str, float] = {}  # run → when it was last watched
        self._waiting: deque[str] = deque()
        self._running: RunSpec | None = None  # the spec of the current run
        self._to_cancel: dict[str, str] = {}  # run → the sentence that says why
        self._closing = False

        self._current: _Current | None = None
        self._host: WarmHost | None = None
        self._warm = False  # whether the host is ready for a run
        self._keep_warm = True  # whether to start a host before there is a run for it
        self._start_error: dict[str, Any] | None = None  # of a host that could not start
        self._wake, wake_end = os.pipe()
        os.set_blocking(wake_end, False)
        self._wake_end: int | None = wake_end
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: os.read(self._wake, 1 << 12))
        self._thread = threading.Thread(target=self._serve, name="run queue", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ for any thread

    def submit(self, spec: RunSpec) -> str:
        """Queue a run and return its id, which cannot be guessed. Raises `RequestError` if this machine cannot run it."""
        with self._changed:
            running = self._running
        limits.check(spec, running)
        id = secrets.token_urlsafe(16)
        with self._changed:
            if self._closing:
                raise RuntimeError("this queue is closed")
            self._states[id] = RunState(id, spec, ahead=len(self._waiting) + (self._running is not None))
            self._unfinished[id] = time.monotonic()
            self._waiting.append(id)
        self._wake_up()
        return id

    def state(self, id: str) -> RunState | None:
        """The state of a run. None if there is no such run. Does not count as watching it."""
        with self._changed:
            return self._states.get(id)

    def watch(self, id: str) -> RunState | None:
        """The same; counts as watching it."""
        with self._changed:
            if id in self._unfinished:
                self._unfinished[id] = time.monotonic()
            return self._states.get(id)

    def wait(self, id: str, seen: RunState | None, timeout: float | None = None) -> RunState | None:
        """Block until the state of a run is not `seen`, or for `timeout` seconds. Returns its state."""
        with self._changed:
            self._changed.wait_for(lambda: self._states.get(id) != seen, timeout)
            return self._states.get(id)

    def cancel(self, id: str) -> None:
        """Request that a run ends; `wait` returns when it has. Nothing happens if it is finished or unknown."""
        with self._changed:
            if id in self._unfinished:
                self._to_cancel.setdefault(id, sentence("cancelled"))
        self._wake_up()

    def close(self) -> None:
        """End the host and all ranks, and return when they are gone. Unfinished runs are cancelled."""
        with self._changed:
            self._closing = True
        self._wake_up()
        self._thread.join()
        atexit.unregister(self.close)

    def _wake_up(self) -> None:
        """Wake the thread, unless it has ended."""
        with self._changed:
            if self._wake_end is None:
                return
            with suppress(BlockingIOError):  # the pipe is full, so the thread is woken already
                os.write(self._wake_end, b"!")

    # ------------------------------------------------------------------------------------------------- for the thread

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._cancel_unwatched()
                self._do_cancels()
                self._start_next()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                if self._host:
                    self._host.kill_if_late()
        finally:  # also after an error in this class: nobody must wait forever for a run
            self._shut()

    def _shut(self) -> None:
        with self._changed:
            self._closing = True
        if self._host and self._warm:
            self._host.end()
        elif self._host:
            self._host.end(patience=0)  # it imports torch, and has no ranks yet
        if self._current:
            self._current.draft.discard()
        with self._changed:
            for id in list(self._unfinished):
                self._change(id, phase="cancelled", message=sentence("cancelled: the program that ran it was closed"))
            assert self._wake_end is not None
            os.close(self._wake_end)
            self._wake_end = None
        self._selector.close()
        os.close(self._wake)

    def _change(self, id: str, **changes: Any) -> None:
        with self._changed:
            self._states[id] = replace(self._states[id], **changes)
            if self._states[id].finished:
                del self._unfinished[id]
                self._to_cancel.pop(id, None)
                self._forget_oldest()
            self._changed.notify_all()

    def _finish(self, **changes: Any) -> None:
        """The current run is over."""
        assert self._current
        with self._changed:
            self._change(self._current.id, **changes)
            self._current = self._running = None
            self._update_positions()

    def _update_positions(self) -> None:
        for place, id in enumerate(self._waiting):
            self._change(id, ahead=place + (self._running is not None))

    def _forget_oldest(self) -> None:
        finished = [id for id, state in self._states.items() if state.finished]
        for id in finished[:-_REMEMBERED]:
            del self._states[id]

    # Ending runs early

    def _patience(self) -> float | None:
        """Seconds until there is something to do without an event; None: never."""
        due = self._host.patience() if self._host else None
        waits = [seconds for seconds in (due, self._until_unwatched()) if seconds is not None]
        return min(waits, default=None)

    def _until_unwatched(self) -> float | None:
        """Seconds until the next run was unwatched for too long. None: never."""
        with self._changed:
            seen = [when for id, when in self._unfinished.items() if id not in self._to_cancel]
            if self._unwatched_s is None or not seen:
                return None
            return max(0.0, min(seen) + self._unwatched_s - time.monotonic())

    def _cancel_unwatched(self) -> None:
        if self._unwatched_s is None:
            return
        with self._changed:
            for id, seen in self._unfinished.items():
                if time.monotonic() - seen >= self._unwatched_s:
                    why = sentence("cancelled: the page was closed for {seconds:g} s", seconds=self._unwatched_s)
                    self._to_cancel.setdefault(id, why)

    def _do_cancels(self) -> None:
        with self._changed:
            for id, message in list(self._to_cancel.items()):
                if id in self._waiting:
                    self._waiting.remove(id)
                    self._change(id, phase="cancelled", message=message)
                elif self._current and self._current.id == id:
                    self._cancel_current(self._current, message)
            self._update_positions()

    def _cancel_current(self, current: _Current, message: str) -> None:
        if not current.sent:  # no rank has been started
            self._finish(phase="cancelled", message=message)
        elif not current.ending:
            current.ending = True
            self._ask({"do": "cancel"}, _CANCELLED_S)  # the host says when it has ended

    # Starting runs

    def _start_next(self) -> None:
        with self._changed:
            if self._current is None and self._waiting:
                id = self._waiting.popleft()
                self._running = self._states[id].spec
                self._current = _Current(id, Draft.new(self._home), time.monotonic())
                self._change(id, phase="starting", ahead=0)
                self._update_positions()
        if self._host is None and (self._current or self._keep_warm):
            self._start_host()
        if self._current and self._warm and not self._current.sent:
            self._current.sent = True
            assert self._running
            where = {"home": str(self._home), "draft": self._current.draft.name}
            self._ask({"do": "run", "spec": self._running.model_dump(mode="json"), **where}, _TAKEN_S)

    def _start_host(self) -> None:
        self._warm = self._keep_warm = False
        try:
            self._host = WarmHost()
        except OSError as error:
            if self._current:
                why = sentence("this machine would not start a process: {reason}", reason=error.strerror)
                self._finish(phase="failed", message=why)
            return
        self._selector.register(self._host.events, selectors.EVENT_READ, self._on_host_events)

    def _ask(self, request: dict[str, Any], within_s: float) -> None:
        assert self._host
        self._host.request(request)
        self._host.must_answer(within_s)

    # Events of the host

    def _on_host_events(self) -> None:
        assert self._host
        events = self._host.read_events()
        if events is None:
            self._lose_host()
            return
        for event in events:
            if event["event"] == "warm":
                self._warm = True
                self._host.has_answered()
            elif event["event"] == "broken":
                self._start_error = event
            elif self._current:
                self._on_event(self._current, event)

    def _on_event(self, current: _Current, event: dict[str, Any]) -> None:
        """An event of the current run."""
        assert self._host
        kind = event["event"]
        if kind == "started":
            current.taken = True
            if not current.ending:
                self._host.must_end(self._states[current.id].spec.workload.time_limit, _LATE_S)
        elif kind == "ready":
            ready_s = time.monotonic() - current.since
            self._change(current.id, phase="running", backend=event["backend"], why=event["why"], ready_s=ready_s)
        elif kind == "step":
            losses = self._states[current.id].losses
            self._change(current.id, step=event["step"], losses=(*losses, event["loss"]))
        elif kind == "phase":
            self._change(current.id, phase=event["phase"])
        elif kind == "finished":
            self._host.has_answered()
            self._finish(**self._outcome(current, event))

    def _outcome(self, current: _Current, event: dict[str, Any]) -> dict[str, Any]:
        """The changes of the current run's state by a "finished" event."""
        if event["how"] == "done":
            return {"phase": "done", "folder": Path(event["folder"])}
        if event["how"] == "cancelled":
            by_signal = sentence("cancelled: the process that runs the ranks was told to end")
            return {"phase": "cancelled", "message": self._to_cancel.get(current.id, by_signal)}
        failure = {"message": unpacked(event["message"]), "traceback": event["traceback"], "failed_rank": event["rank"]}
        return {"phase": "failed", "wrong": event["how"] == "wrong", **failure}

    def _lose_host(self) -> None:
        """The host is gone, and the current run failed with it. If the host was warm, another one is started for the next run."""
        assert self._host
        self._selector.unregister(self._host.events)
        status = self._host.end()
        if status < 0:
            how = sentence(
                "the process that runs the ranks was killed by {signal}, and the ranks with it", signal=signal_named(-status)
            )
        else:
            how = sentence("the process that runs the ranks left with exit status {status}, and the ranks with it", status=status)
        overdue = self._host.overdue
        error = self._start_error or {"message": overdue or how, "traceback": ""}
        self._host, self._keep_warm, self._start_error = None, self._warm, None
        self._warm = False
        if self._current and self._current.sent and not (self._current.taken or overdue):
            self._current.sent = False  # the host ended before it got the request; the next host gets it
        elif self._current and self._current.ending:
            self._current.draft.discard()
            self._finish(phase="cancelled", message=self._to_cancel[self._current.id])
        elif self._current:
            self._current.draft.discard()
            self._finish(phase="failed", message=error["message"], traceback=error["traceback"])


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            sentence("cannot make the folder {home} for runs: {reason}", home=str(home), reason=error.strerror)
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise RequestError(sentence("the folder {home} for runs is not writable", home=str(home)))
