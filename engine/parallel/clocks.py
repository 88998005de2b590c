"""The clocks of the machines of a run. Each machine's monotonic clock started at another time: how far is it ahead of rank 0's?

A rank asks rank 0 for the time, and takes it for the time in the middle between its question and the answer. The error is at most
half of that time (Cristian 1989, Distributed Computing 3). Of several questions the one that was answered soonest counts.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_QUESTIONS = 20  # the first ones open connections


@dataclass(frozen=True)
class Clock:
    """A rank's monotonic clock: nanoseconds that it is ahead of rank 0's, and the largest error of that."""

    ahead_ns: int = 0
    error_ns: int = 0


class Messages(Protocol):
    """What is needed of a transport. All calls wait."""

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every rank, (ranks, len(numbers)). All ranks call it."""
        ...

    def tell(self, number: int, peer: int) -> None: ...

    def told_by(self, peer: int) -> int: ...


def measured(messages: Messages, rank: int, id: int, now: Callable[[], int] = time.perf_counter_ns) -> Clock:
    """This rank's clock. All ranks call it. `id`: of the clock that `now` reads. Ranks with the same id get equal ones."""
    ids = [id for (id,) in messages.gathered([id])]
    if len(set(ids)) == 1:
        return Clock()
    found = Clock()
    for other in sorted({ids.index(id) for id in ids} - {0}):  # the first rank of each machine but rank 0's
        if rank == other:
            found = _asked(messages, now)
        elif rank == 0:
            _answer(messages, other, now)
    of_all = messages.gathered([found.ahead_ns, found.error_ns])
    return Clock(*of_all[ids.index(ids[rank])])


def largest_error(clocks: Sequence[Sequence[int]]) -> int:
    """Bound of the error between instants of any two machines. `clocks`: of each rank, the id of its clock and the clock's error.

    Errors of two clocks may have opposite signs, so those of the two worst are added. That of rank 0's clock counts too.
    """
    errors: dict[int, int] = {}
    for id, error in clocks:
        errors[id] = max(error, errors.get(id, 0))
    return sum(sorted(errors.values())[-2:])


def _asked(messages: Messages, now: Callable[[], int]) -> Clock:
    answers = []
    for question in range(_QUESTIONS):
        before = now()
        messages.tell(question, 0)
        there = messages.told_by(0)
        after = now()
        answers.append(Clock((before + after) // 2 - there, (after - before + 1) // 2))
    return min(answers, key=lambda answer: answer.error_ns)


def _answer(messages: Messages, other: int, now: Callable[[], int]) -> None:
    for _ in range(_QUESTIONS):
        messages.told_by(other)
        messages.tell(now(), other)


def clock_id() -> int:
    """A number for the monotonic clock that this process reads: of this boot of this machine, and of this time namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/time")
    name = boot.read_text(encoding="ascii") if boot.exists() else platform.node()
    if namespace.exists():  # containers may have their own
        name += str(namespace.stat().st_ino)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
