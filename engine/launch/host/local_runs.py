"""The warm host: its loop and the runs that it serves. `program.py` starts it, and documents the protocol."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from engine.launch import ranks, root_cause
from engine.launch.draft import Draft
from engine.launch.host import guard
from engine.spec import RequestError, RunSpec, Sentence, sentence
from engine.spec.sentence import packed

_GRACE_S = 1.0  # how long the other ranks may take to end by themselves, or to send their stacks
_READ = selectors.EVENT_READ


class LocalRun:
    """One run: its ranks and their state. `send` is called with every event, "finished" last.

    It has three stages. *working*: until a rank fails, the time limit is reached or it is cancelled. *ending*: the other ranks
    may still report why they fail, or send their stacks. *killed*: all ranks were killed, until the last of them is gone.
    """

    def __init__(
        self,
        spec: RunSpec,
        draft: Draft,
        fork: Callable[[RunSpec, Draft, ranks.StatusBoard], list[ranks.Rank]],
        selector: selectors.BaseSelector,
        send: Callable[[dict[str, Any]], None],
    ) -> None:
        self._spec, self._draft, self._selector, self._send = spec, draft, selector, send
        self._deadline = time.monotonic() + spec.workload.time_limit  # in the last stage: when the ranks left are killed
        self._stage = "working"
        self._late = self._cancelled = self._saved = False
        self.killed: float | None = None  # when, by the monotonic clock
        self._ended_for: Sentence | None = None  # why it was ended, if not by the user, a rank or the time limit
        self._exits: list[root_cause.RankExit] = []
        self._at_limit: list[root_cause.RankAtLimit] = []
        self._board = ranks.StatusBoard(spec.layout.ranks)
        self._ranks = fork(spec, draft, self._board)
        self._open = 0  # pipes of ranks not yet at end-of-file
        for rank in self._ranks:
            self._watch(rank.events, partial(self._read_events, rank))
            self._watch(rank.dumps, rank.read_dump)

    @property
    def finished(self) -> bool:
        """Every rank is gone, and its pipes have been read."""
        return self._open == 0

    def timeout(self) -> float | None:
        """Seconds until `tick` has something to do. None if only an event can bring that."""
        return None if self._stage == "killed" else max(0.0, self._deadline - time.monotonic())

    def tick(self) -> None:
        """Do what is due at this time."""
        if self._stage == "killed" or time.monotonic() < self._deadline:
            return
        alive = [rank for rank in self._ranks if rank.status is None]
        if self._stage == "ending":
            self.kill()
        elif alive:
            self._late = True
            self._end_within(_GRACE_S)
            self._at_limit = [root_cause.RankAtLimit(rank.rank, *self._board.read(rank.rank), dump="") for rank in alive]
            for rank in alive:
                rank.ask_for_stack()

    def cancel(self) -> None:
        self._cancelled = True
        self.kill()

    def end(self, why: Sentence) -> None:
        self._ended_for = why
        self.kill()

    @property
    def pids(self) -> list[int]:
        """The processes of its ranks that have not been seen to end."""
        return [rank.pid for rank in self._ranks if rank.status is None]

    def kill(self) -> None:
        """Kill all ranks. The run is finished a moment later, when their pipes are at end-of-file."""
        self._stage = "killed"
        self.killed = self.killed or time.monotonic()
        for rank in self._ranks:
            rank.kill()

    def close(self) -> None:
        """Send "finished", and remove what is not saved. Call once, when finished."""
        self._board.close()
        self._draft.remove_rendezvous()
        how, why = self._outcome()
        folder = None
        if how == "done":
            try:
                folder = str(self._draft.keep(self._spec))
            except OSError as error:
                message = sentence("the run could not be saved: {reason}", reason=error.strerror)
                how, why = "failed", root_cause.RootCause(None, message, traceback.format_exc())
        if how != "done":
            self._draft.discard()
        failure = {"rank": why.rank, "message": packed(why.sentence), "traceback": why.traceback}
        self._send({"event": "finished", "how": how, "folder": folder, **failure})

    # ------------------------------------------------------------------------------------------------ messages of ranks

    def _watch(self, pipe: FileIO, read: Callable[[], bool]) -> None:
        """Call `read` whenever there is something to read, until it returns False."""

        def read_on() -> None:
            if not read():
                self._selector.unregister(pipe)
                pipe.close()
                self._open -= 1

        self._open += 1
        self._selector.register(pipe, _READ, read_on)

    def _read_events(self, rank: ranks.Rank) -> bool:
        """Handle the events of a rank, or its end. False when it has ended."""
        events = rank.read_events()
        if events is None:
            self._on_exit(rank)
            return False
        for event in events:
            if event["event"] == "end":
                rank.ended = True
            elif event["event"] == "failed":
                del event["event"]
                rank.raised = root_cause.raised_from(event)
            else:
                self._saved |= event["event"] == "saved"
                self._send(event)
        return True

    def _on_exit(self, rank: ranks.Rank) -> None:
        rank.reap()
        if self._stage == "killed" or self._late or (rank.ended and rank.status == 0):
            return  # as expected
        doing, _ = self._board.read(rank.rank)
        assert rank.status is not None
        # Its dump may not have been read yet; `_outcome` adds it.
        self._exits.append(root_cause.RankExit(rank.rank, doing, rank.status, rank.raised))
        self._end_within(_GRACE_S)

    def _end_within(self, seconds: float) -> None:
        if self._stage == "working":
            self._stage = "ending"
            self._deadline = time.monotonic() + seconds

    # -------------------------------------------------------------------------------------------------- how it ended

    def _outcome(self) -> tuple[str, root_cause.RootCause]:
        dumps = {rank.rank: rank.dump.decode(errors="replace") for rank in self._ranks}
        layout = self._spec.layout
        if self._cancelled:
            return "cancelled", root_cause.RootCause(None, "", "")
        if self._ended_for is not None:
            return "failed", root_cause.RootCause(None, self._ended_for, "")
        if self._exits:  # they came before the time limit, if that was reached too
            exits = [root_cause.RankExit(d.rank, d.doing, d.status, d.raised, dumps[d.rank]) for d in self._exits]
            why = root_cause.cause_of_exits(layout, exits)
            return ("wrong" if why.wrong else "failed"), why
        if self._late:
            at_limit = [root_cause.RankAtLimit(h.rank, h.doing, h.seconds, dumps[h.rank]) for h in self._at_limit]
            return "failed", root_cause.cause_of_time_limit(layout, self._spec.workload.time_limit, at_limit)
        if not self._saved:
            return "failed", root_cause.RootCause(None, sentence("every rank ended well, but none saved the run"), "")
        return "done", root_cause.RootCause(None, "", "")


def _not_started(spec: RunSpec, error: OSError) -> Sentence:
    ranks = spec.layout.ranks
    return sentence("this machine would not start {ranks} processes: {reason}", ranks=ranks, reason=error.strerror)


class Host:
    """Serves runs from one thread: a forked process must not inherit a lock of another thread."""

    def __init__(self, requests: int, events: int, reserve: int) -> None:
        """`reserve`: bytes of memory that are kept free, by ending runs."""
        self._requests, self._events, self._reserve = requests, events, reserve
        self._unread = bytearray()
        self._open_for_requests = True  # whether requests may still come
        self._runs: dict[str, LocalRun] = {}
        self._shares: dict[str, int] = {}  # bytes that each run was expected to take
        self._look_at_memory = 0.0  # when
        self._life, self._life_end = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, _READ, self._on_requests)
        self._signals, self._signals_end = os.pipe()
        self._selector.register(self._signals, _READ, self._on_signal)
        os.set_blocking(self._signals_end, False)
        signal.set_wakeup_fd(self._signals_end)
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # it is handled through the pipe, between two events

    def serve(self) -> None:
        """Serve until the requests end."""
        self._send({"event": "warm"})
        while self._open_for_requests or self._runs:
            waits = [wait for run in self._runs.values() if (wait := run.timeout()) is not None]
            for key, _ in self._selector.select(min([*waits, guard.EVERY_S]) if self._runs else None):
                key.data()
            if time.monotonic() >= self._look_at_memory:
                self._look_at_memory = time.monotonic() + guard.EVERY_S
                self._guard_memory()
            for name, run in list(self._runs.items()):
                run.tick()
                if run.finished:
                    del self._runs[name], self._shares[name]
                    run.close()

    def _guard_memory(self) -> None:
        shares = {name: guard.Share(self._shares[name], run.pids, run.killed) for name, run in self._runs.items()}
        if found := guard.run_to_end(shares, self._reserve, time.monotonic()):
            self._runs[found.run].end(found.why)

    def _on_requests(self) -> None:
        data = os.read(self._requests, 1 << 16)
        if not data:
            self._stop()
            return
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        for line in lines:
            self._handle(json.loads(line))

    def _on_signal(self) -> None:
        """SIGTERM: for example, all processes of the server are ended one by one, and this one came first."""
        os.read(self._signals, 1)
        self._stop()

    def _stop(self) -> None:
        """Cancel the runs, and take no more requests."""
        if self._open_for_requests:
            self._open_for_requests = False
            self._selector.unregister(self._requests)
        for run in self._runs.values():
            run.cancel()

    def _handle(self, request: dict[str, Any]) -> None:
        name = request["run"]
        if request["do"] == "cancel":
            if name in self._runs:  # otherwise it finished while the request was on its way
                self._runs[name].cancel()
            return

        def send(event: dict[str, Any]) -> None:
            self._send({**event, "run": name})

        send({"event": "started"})
        spec, draft = RunSpec.model_validate(request["spec"]), Draft(Path(request["home"]), name)
        try:
            self._runs[name] = LocalRun(spec, draft, self._fork, self._selector, send)
            self._shares[name] = request["share"]
        except (OSError, RequestError) as error:
            message = error.sentence if isinstance(error, RequestError) else _not_started(spec, error)
            failure = {"rank": None, "message": packed(message), "traceback": traceback.format_exc()}
            send({"event": "finished", "how": "failed", "folder": None, **failure})

    def _send(self, event: dict[str, Any]) -> None:
        try:
            line = memoryview(json.dumps(event).encode() + b"\n")
            while line:
                line = line[os.write(self._events, line) :]
        except BrokenPipeError:
            pass  # the client is gone; the end of the requests, which is read next, ends the host

    def _fork(self, spec: RunSpec, draft: Draft, board: ranks.StatusBoard) -> list[ranks.Rank]:
        rendezvous = draft.make_rendezvous()
        try:
            return ranks.fork(spec, draft.folder, rendezvous, board, self._life, self._close_in_rank)
        except OSError:
            draft.remove_rendezvous()
            raise

    def _close_in_rank(self) -> None:
        """In a forked rank: close what belongs to the host alone, the pipes of other runs included.

        `events` stays open, though a rank never writes to it. So it is at end-of-file when the host and every rank are gone.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pipes = [key.fileobj for key in self._selector.get_map().values() if isinstance(key.fileobj, FileIO)]
        self._selector.close()
        for pipe in pipes:
            pipe.close()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, self._requests)
        for fd in (nowhere, self._life_end, self._signals, self._signals_end):
            os.close(fd)
