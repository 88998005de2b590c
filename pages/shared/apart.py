"""Work that is done in processes beside the server, because of what it would leave behind in it or of the time it would take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

from engine.spec import RequestError
from pages.shared.kept import kept
from pages.shared.workers import ROOT, Workers, too_long

_MOST_AT_ONCE = 4  # processes, of mostly 200 to 300 MB each, and 512 at the most: see `workers`
_PATIENCE_S = 120.0
# Libraries prepare for large work when they are imported or first used: a thread for each CPU, with 40 MB each, and a gigabyte
# for Arrow to share out. Nothing that is done here gains by it, and where memory is bounded it counts.
_SPARING = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "ARROW_DEFAULT_MEMORY_POOL": "system"
}
P = ParamSpec("P")
T = TypeVar("T")


def made_apart(module: str, *arguments: str, given: bytes = b"") -> bytes:
    """What `python -m MODULE ARGUMENTS` prints, with `given` on its standard input.

    Drawing a file takes 200 MB, which a server would never give back; a process that ends does. A class that asks all at once
    takes turns. Raises `RuntimeError` with what it said if it failed, and `RequestError` if it takes too long.
    """
    command, environment = [sys.executable, "-m", module, *arguments], os.environ | _SPARING
    with turns():
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, input=given, capture_output=True, check=False, timeout=_PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise RequestError(too_long(_PATIENCE_S)) from None
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout


def at_once() -> int:
    """How many processes work at a time: as many as there are CPUs, since more would only take each other's time, and memory."""
    return min(_MOST_AT_ONCE, os.cpu_count() or 1)


@kept(1)
def turns() -> BoundedSemaphore:
    return BoundedSemaphore(at_once())


@kept(1)
def workers() -> Workers:
    """One set for all sessions. They end with the server, whatever its end."""
    return Workers(turns(), _PATIENCE_S)


def done_apart(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`function(…)`, called in a warm process: a search takes hundreds of MB for a moment, and a second to import what it needs.

    The function is one of `pages.shared.jobs`, with arguments and an answer of types that `pages.shared.codec` knows; its module
    should import little, for it is imported there. Two different questions may be worked out at once, by different processes;
    what a function keeps is known to the process that answered last, which answers the next too, as long as nobody else asks.
    Raises what the function raises if that is a `RequestError`, and that it takes too long as another; else as `made_apart`.
    """
    answer: T = workers().do(function, arguments, named)
    return answer
