"""Ends a run before the kernel does: when memory runs out, the run that has outgrown its share. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import psutil

from engine.launch.host.free_memory import free_memory
from engine.spec import Sentence, sentence

EVERY_S = 0.1  # how often memory is looked at while a run is active; it takes 0.1 ms. In that time a core fills about 0.1 GB
_FREED_S = 2.0  # for a run that was killed to give its memory back; the kernel needs less
_LAST = 4  # at this part of what is kept free, the largest run is ended, though all are within their shares


@dataclass(frozen=True)
class Share:
    """What a run was expected to take, and its processes."""

    bytes: int
    pids: Collection[int]
    killed: float | None = None  # when it was killed, by the monotonic clock


@dataclass(frozen=True)
class Ended:
    """The run to end, and why."""

    run: str
    why: Sentence


def run_to_end(runs: Mapping[str, Share], reserve: int, now: float) -> Ended | None:
    """The run to end now, so that `reserve` bytes stay free. None as long as they are, or if they are about to be.

    The memory of a process that was killed reads 0 while the kernel still frees it. No other run is ended for that.
    """
    free = free_memory()
    present = {run: share for run, share in runs.items() if share.pids}
    shares = {run: share for run, share in present.items() if share.killed is None}
    leaving = [share.killed for share in present.values() if share.killed is not None]
    if free >= reserve or not shares or any(now - killed < _FREED_S for killed in leaving):
        return None
    own = _private(os.getpid())  # ranks were forked from this process, and share these pages until they write to them
    used = {run: sum(max(0, _private(pid) - own) for pid in share.pids) for run, share in shares.items()}
    return chosen({run: (used[run], shares[run].bytes) for run in shares}, free, reserve)


def chosen(runs: Mapping[str, tuple[int, int]], free: int, reserve: int) -> Ended | None:
    """`runs`: what each uses, and its share. The one most above its share; or the largest, where hardly any memory is left."""
    name = max(runs, key=lambda run: runs[run][0] - runs[run][1])
    used, share = runs[name]
    if used <= share:
        if free >= reserve // _LAST:
            return None
        name = max(runs, key=lambda run: runs[run][0])
        why = sentence(
            "this run was ended before the system would have done it: other programs took the memory, {free} is left on this "
            "machine, and this run was the largest; its processes use {used} of memory together",
            free=_gb(free), used=_gb(runs[name][0]),
        )  # fmt: skip
        return Ended(name, why)
    why = sentence(
        "this run was ended before the system would have done it: its processes use {used} of memory together, {share} was "
        "expected, and {free} is left on this machine",
        used=_gb(used), share=_gb(share), free=_gb(free),
    )  # fmt: skip
    return Ended(name, why)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _private(pid: int) -> int:
    """Resident bytes of a process that no file has. 0 if it has ended."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))
