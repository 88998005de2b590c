"""The root cause of a failed run: the rank that failed first, in a sentence for the user.

When one rank fails, the others fail too, moments later, because their peer is gone. This module picks the rank that failed
first. Pure functions of what the launcher saw.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.spec import LayoutSpec, joined, sentence
from engine.spec.sentence import packed, unpacked

# A rank with this in its stack waits for other ranks, so it is not the one that delays the run.
_WAITING = re.compile(
    r'engine/parallel/comm\.py"|engine/launch/cluster/(?:agreement|liveness)\.py"|'
    r'engine/launch/(?:\w+/)?\w+\.py", line \d+,? in _connect'
)

_STEPS = ("step ", "the traced step")  # how the status of a rank begins during a step

_FORKED = re.compile(r"^ *File .*, line \d+,? in _be_rank$", re.MULTILINE)
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)


@dataclass(frozen=True)
class RaisedError:
    """The error that ended a rank."""

    sentence: str  # "ValueError: …", one line
    traceback: str
    secondary: bool = False  # it failed only because another rank was gone
    wrong: bool = False  # a RequestError: the request cannot be run, no rank is to blame


def as_json(raised: RaisedError) -> dict[str, Any]:
    """For a pipe to another process."""
    return {**vars(raised), "sentence": packed(raised.sentence)}


def raised_from(sent: dict[str, Any]) -> RaisedError:
    """The inverse of `as_json`."""
    return RaisedError(**sent | {"sentence": unpacked(sent["sentence"])})


@dataclass(frozen=True)
class RankExit:
    """How one rank ended. In a list of exits, the earliest comes first."""

    rank: int
    doing: str  # the last thing it was about to do, such as "step 2: B chunk 0 microbatch 3"; "" before its first
    status: int  # as subprocess has it: the exit status, or minus the number of the signal that killed it
    raised: RaisedError | None = None  # None: it ended without a message
    dump: str = ""  # faulthandler's stacks of all its threads; "" if it gave none


@dataclass(frozen=True)
class RankAtLimit:
    """Where one rank was when the time limit was reached."""

    rank: int
    doing: str
    seconds: float  # how long it had been at `doing`
    dump: str  # "" if the rank did not answer when asked for its stack


@dataclass(frozen=True)
class RootCause:
    """The rank that failed first (None if there is none), one sentence, and that rank's traceback."""

    rank: int | None
    sentence: str
    traceback: str
    wrong: bool = False


def cause_of_exits(layout: LayoutSpec, exits: Sequence[RankExit]) -> RootCause:
    """The root cause among ranks that ended too early. `exits` must not be empty.

    A rank that was killed or exited without a message comes before one that raised an error, because an error can be an
    unrecognised consequence. Errors known to be consequences come last.
    """
    wrong = next((d.raised for d in exits if d.raised and d.raised.wrong), None)
    if wrong:
        return RootCause(None, wrong.sentence, wrong.traceback, wrong=True)
    first = min(exits, key=_priority)  # the earliest of the highest priority
    said = {"who": named(layout, first.rank), "where": _where(first.doing)}
    stack = main_thread(first.dump)
    if first.raised:
        said["error"] = first.raised.sentence
        message = sentence("{who} failed {where}: {error}", **said)
        if first.raised.secondary:
            message = sentence("{who} lost the connection to the other ranks {where}: {error}", **said)
        return RootCause(first.rank, message, first.raised.traceback)
    if first.status < 0:
        message = sentence("{who} was killed by {signal} {where}", signal=signal_named(-first.status), **said)
        if first.status == -signal.SIGKILL:
            message = joined(message, sentence("the system does this when memory runs out"))
        return RootCause(first.rank, message, stack)
    message = sentence("{who} left with exit status {status} {where}, without saying why", status=first.status, **said)
    return RootCause(first.rank, message, stack)


def cause_of_time_limit(layout: LayoutSpec, limit: float, at_limit: Sequence[RankAtLimit]) -> RootCause:
    """The rank that delayed a run: of those that do not wait for others, the one with the oldest status.

    One that did not answer comes first: it is stopped, while a dump without a wait may be cut off on a busy machine.
    """
    busy = [h for h in at_limit if not is_waiting(h.dump)]
    if not busy:
        first = max(at_limit, key=lambda h: h.seconds)
        message = sentence(
            "the run reached its time limit of {limit:g} s with every rank waiting for another; {who} had waited longest, "
            "{where}",
            limit=limit,
            who=named(layout, first.rank),
            where=_where(first.doing),
        )
        return RootCause(first.rank, message, main_thread(first.dump))
    held = max(busy, key=lambda h: (not h.dump, h.seconds))
    message = sentence(
        "the run reached its time limit of {limit:g} s: {who} had been {doing} for {seconds:.1f} s",
        limit=limit,
        who=named(layout, held.rank),
        doing=_status(held.doing),
        seconds=held.seconds,
    )
    if not held.dump:
        message = sentence("{sentence}, and did not answer when asked where it was", sentence=message)
    return RootCause(held.rank, message, main_thread(held.dump))


def named(layout: LayoutSpec, rank: int) -> str:
    """A rank and its place: "rank 3 (dp 1, tp 1, pp 0)"."""
    at = layout.mesh.coordinate(rank)
    place, *others = (f"{axis} {at[axis]}" for axis in layout.mesh.written)
    for other in others:
        place = sentence("{first}, {second}", first=place, second=other)
    return sentence("rank {rank} ({place})", rank=rank, place=place)


def main_thread(dump: str) -> str:
    """The main thread's part of what faulthandler dumped, which lists threads newest first and calls innermost first.

    Without the calls that led to the rank, which are the host's that it was forked from.
    """
    starts = [match.start() for match in _THREAD.finditer(dump)]
    stack = dump[starts[-1] :] if starts else dump
    forked = _FORKED.search(stack)
    return stack[: forked.start()] if forked else stack


def is_waiting(dump: str) -> bool:
    """Whether the main thread of a dumped process waits for other ranks."""
    return bool(_WAITING.search(main_thread(dump)))


def _priority(ended: RankExit) -> int:
    if ended.raised is None:
        return 0
    return 2 if ended.raised.secondary else 1


def _where(doing: str) -> str:
    if not doing:
        return sentence("while starting")
    return sentence("in {doing}", doing=doing) if doing.startswith(_STEPS) else sentence("while {doing}", doing=doing)


def _status(doing: str) -> str:
    """The same, after "had been"."""
    if not doing:
        return sentence("starting")
    return sentence("in {doing}", doing=doing) if doing.startswith(_STEPS) else doing


def signal_named(number: int) -> str:
    """A signal in words: "signal 9 (SIGKILL)"."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
