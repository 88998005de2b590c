"""The queue of runs on this machine: slots, turns, progress, cancelling, time limits. Imports no torch."""

from __future__ import annotations

import atexit
import os
import secrets
import selectors
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.launch import limits
from engine.launch.draft import Draft, make_home, note_owner
from engine.launch.host.client import WarmHost, how_ended
from engine.launch.queue.active import Active
from engine.launch.queue.journal import Journal
from engine.launch.queue.run_state import Phase, RunState
from engine.launch.queue.slots import Slots
from engine.launch.queue.turns import Turns
from engine.launch.queue.waits import Pace, expected_wait
from engine.spec import RequestError, RunSpec, sentence
from engine.spec.sentence import unpacked

__all__ = ["Phase", "RunQueue", "RunState"]

# How long the host may take to answer, in seconds. It needs milliseconds, and more on a busy machine.
_TAKEN_S = 30.0  # to begin a run
_LATE_S = 10.0  # after the run's time limit, at which it ends the run and reports why
_CANCELLED_S = 5.0  # to end a run that is cancelled
_CANCELLED_BESIDE_S = 30.0  # the same while others are active, which end too if the host is killed

_REMEMBERED = 200  # finished runs whose state is kept; saved runs are kept anyway


class RunQueue:
    """Runs specs in a warm host, which is started at once: several at a time where there is room for them. Any thread may call.

    Saved runs go to new folders in `home`, which is made if needed; `RequestError` if it cannot be made. A run that nobody
    watched for `unwatched_s` seconds is cancelled; None: never. `cores`: those that ranks may use; None: as `Slots` says.
    `journal`: a file that says after a restart what became of each run; None keeps none. `reserve`: runs are ended to keep so
    many bytes of memory free; None: as many as are not given to new runs. `gpus`: whether runs may use GPUs.
    """

    def __init__(
        self,
        home: Path,
        unwatched_s: float | None = 90.0,
        cores: int | None = None,
        journal: Path | None = None,
        reserve: int | None = None,
        gpus: bool = True,
    ) -> None:
        make_home(home)
        self._home, self._unwatched_s = home.absolute(), unwatched_s
        # This lock protects what callers read and request; the other fields belong to the thread.
        self._changed = threading.Condition()
        self._journal = Journal.open(journal) if journal else None
        self._states: dict[str, RunState] = dict(self._journal.earlier) if self._journal else {}
        self._unfinished: dict[str, float] = {}  # run → when it was last watched
        self._waiting = Turns()
        self._active: dict[str, Active] = {}  # by the name of its draft
        self._pace = Pace()
        self._to_cancel: dict[str, str] = {}  # run → the sentence that says why
        self._closing = False

        self._slots, self._reserve, self._gpus = Slots(cores), reserve, gpus
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

    def submit(self, spec: RunSpec, by: str = "") -> str:
        """Queue a run and return its id, which cannot be guessed. `by`: the session that asks; sessions take turns.

        Raises `RequestError` if this machine cannot run it.
        """
        with self._changed:
            active = [run.spec for run in self._active.values()]
        limits.check(spec, active)
        id = secrets.token_urlsafe(16)
        with self._changed:
            if self._closing:
                raise RuntimeError("this queue is closed")
            self._states[id] = RunState(id, spec, by)
            self._unfinished[id] = time.monotonic()
            self._waiting.add(id, by)
            self._note(id)
            self._update_positions()
        self._wake_up()
        return id

    def unfinished(self) -> tuple[RunState, ...]:
        """All runs that are active or wait: the active ones first, then in the order in which they will be started."""
        with self._changed:
            return tuple(self._states[id] for id in (*(run.id for run in self._active.values()), *self._waiting.order()))

    def expected_wait(self, id: str) -> float | None:
        """About how many seconds until a run that waits is started. None if it does not wait, or before any run is done."""
        with self._changed:
            if id not in self._waiting:
                return None
            order = self._waiting.order()
            before = [self._states[other].spec for other in order[: order.index(id)]]
            active, spec = list(self._active.values()), self._states[id].spec
            return expected_wait(spec, before, active, self._pace, self._slots.cores, time.monotonic())

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
        for run in self._active.values():
            run.draft.discard()
        with self._changed:
            for id in list(self._unfinished):
                self._change(id, phase="cancelled", message=sentence("cancelled: the program that ran it was closed"))
            if self._journal:
                self._journal.close()
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
                self._note(id)
                self._forget_oldest()
            self._changed.notify_all()

    def _note(self, id: str) -> None:
        if self._journal:
            self._journal.note(self._states[id])

    def _finish(self, run: Active, **changes: Any) -> None:
        """An active run is over."""
        with self._changed:
            del self._active[run.name]
            self._change(run.id, **changes)
            self._update_positions()

    def _update_positions(self) -> None:
        for place, id in enumerate(self._waiting.order(), len(self._active)):
            if self._states[id].ahead != place:
                self._change(id, ahead=place)

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
            active = {run.id: run for run in self._active.values()}
            for id, message in list(self._to_cancel.items()):
                if id in self._waiting:
                    self._waiting.remove(id)
                    self._change(id, phase="cancelled", message=message)
                elif id in active:
                    self._cancel_active(active[id], message)
            self._update_positions()

    def _cancel_active(self, run: Active, message: str) -> None:
        if not run.sent:  # no rank has been started
            self._finish(run, phase="cancelled", message=message)
        elif not run.ending:
            run.ending = True
            within = _CANCELLED_S if len(self._active) == 1 else _CANCELLED_BESIDE_S
            self._ask({"do": "cancel", "run": run.name}, within)  # the host says when it has ended

    # Starting runs

    def _start_next(self) -> None:
        with self._changed:
            while (order := self._waiting.order()) and self._has_room(self._states[order[0]].spec):
                self._start(order[0])
        if self._host is None and (self._active or self._keep_warm):
            self._start_host()
        if self._warm:
            for run in self._active.values():
                if not run.sent:
                    run.sent = True
                    spec, share = run.spec.model_dump(mode="json"), limits.need(run.spec).total
                    request = {"do": "run", "run": run.name, "spec": spec, "home": str(self._home), "share": share}
                    self._ask(request, _TAKEN_S)

    def _has_room(self, spec: RunSpec) -> bool:
        """No later run overtakes one that has no room yet: so a large run is not held up by small ones."""
        return self._slots.has_room(spec, [run.spec for run in self._active.values()])

    def _start(self, id: str) -> None:
        self._waiting.take(id)
        run = Active(id, self._states[id].spec, Draft.new(self._home))
        self._active[run.name] = run
        self._change(id, phase="starting", ahead=0)
        self._note(id)
        self._update_positions()
        if len(self._active) == 1:  # other programs may have taken memory since it was submitted
            try:
                limits.check_memory(run.spec)
            except RequestError as error:
                self._finish(run, phase="failed", message=error.sentence, wrong=True)

    def _start_host(self) -> None:
        self._warm = self._keep_warm = False
        try:
            self._host = WarmHost(self._reserve, self._gpus)
        except OSError as error:
            why = sentence("this machine would not start a process: {reason}", reason=error.strerror)
            for run in list(self._active.values()):
                self._finish(run, phase="failed", message=why)
            return
        self._selector.register(self._host.events, selectors.EVENT_READ, self._on_host_events)

    def _ask(self, request: dict[str, Any], within_s: float) -> None:
        assert self._host
        self._host.request(request)
        self._host.must_answer(within_s, request["run"])

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
            elif run := self._active.get(event["run"]):
                self._on_event(run, event)

    def _on_event(self, run: Active, event: dict[str, Any]) -> None:
        """An event of an active run."""
        assert self._host
        kind = event["event"]
        if kind == "started":
            run.taken = True
            if not run.ending:
                self._host.must_end(run.name, run.spec.workload.time_limit, _LATE_S)
        elif kind == "ready":
            run.ready = time.monotonic()
            ready_s = run.ready - run.since
            self._change(run.id, phase="running", backend=event["backend"], why=event["why"], ready_s=ready_s)
        elif kind == "step":
            run.step, run.stepped = event["step"], time.monotonic()
            losses = self._states[run.id].losses
            self._change(run.id, step=event["step"], losses=(*losses, event["loss"]))
        elif kind == "phase":
            phase = event["phase"]
            self._change(run.id, phase=phase, begun=(*self._states[run.id].begun, phase))
        elif kind == "finished":
            self._host.has_answered(run.name)
            self._finish(run, **self._outcome(run, event))

    def _outcome(self, run: Active, event: dict[str, Any]) -> dict[str, Any]:
        """The changes of an active run's state by a "finished" event."""
        if event["how"] == "done":
            self._pace.note(run, time.monotonic())
            note_owner(Path(event["folder"]), self._states[run.id].by)
            return {"phase": "done", "folder": Path(event["folder"])}
        if event["how"] == "cancelled":
            by_signal = sentence("cancelled: the process that runs the ranks was told to end")
            return {"phase": "cancelled", "message": self._to_cancel.get(run.id, by_signal)}
        failure = {"message": unpacked(event["message"]), "traceback": event["traceback"], "failed_rank": event["rank"]}
        return {"phase": "failed", "wrong": event["how"] == "wrong", **failure}

    def _lose_host(self) -> None:
        """The host is gone, and the active runs failed with it. If it was warm, another one is started for the next run."""
        assert self._host
        self._selector.unregister(self._host.events)
        how, overdue, broken = how_ended(self._host.end()), self._host.overdue, self._start_error
        self._host, self._keep_warm, self._start_error = None, self._warm, None
        self._warm = False
        for run in list(self._active.values()):
            if run.sent and not run.taken and not (overdue and overdue[0] == run.name):
                run.sent = False  # the host ended before it got the request; the next host gets it
                continue
            run.draft.discard()
            if run.ending:
                self._finish(run, phase="cancelled", message=self._to_cancel[run.id])
                continue
            error = broken or {"message": overdue[1] if overdue and overdue[0] in ("", run.name) else how, "traceback": ""}
            self._finish(run, phase="failed", message=error["message"], traceback=error["traceback"])
