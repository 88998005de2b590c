"""Runs work in other processes than the server, to save its memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

from engine.spec import RequestError
from pages.shared.cache import cached
from pages.shared.workers import ROOT, Workers, too_long

_MOST_AT_ONCE = 4  # processes, usually with 200 to 300 MB each, and at most 512 MB: see `workers`
_TIMEOUT_S = 120.0
# When imported or first used, libraries start a thread for each CPU, with 40 MB each, and Arrow reserves a gigabyte. The work
# here does not become faster by it, and the memory may be limited.
_FEW_THREADS = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "ARROW_DEFAULT_MEMORY_POOL": "system"
}
P = ParamSpec("P")
T = TypeVar("T")


def run_module(module: str, *arguments: str, given: bytes = b"") -> bytes:
    """The output of `python -m MODULE ARGUMENTS`, with `given` on its standard input.

    Drawing a file takes 200 MB, which the server would not free. A process frees it when it ends. At most `max_processes()`
    run at a time. Raises `RuntimeError` with its standard error if it failed, and `RequestError` if it takes too long.
    """
    command, environment = [sys.executable, "-m", module, *arguments], os.environ | _FEW_THREADS
    with turns():
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, input=given, capture_output=True, check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise RequestError(too_long(_TIMEOUT_S)) from None
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout


def max_processes() -> int:
    """The number of processes at a time: one for each CPU, up to a limit. More would only share the same CPUs."""
    return min(_MOST_AT_ONCE, os.cpu_count() or 1)


@cached(1)
def turns() -> BoundedSemaphore:
    return BoundedSemaphore(max_processes())


@cached(1)
def workers() -> Workers:
    """The workers of all sessions. They end with the server."""
    return Workers(turns(), _TIMEOUT_S)


def run_in_worker(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of `function(…)`, called in a warm process. A search takes hundreds of MB, and its imports take a second.

    The function must be one of `pages.shared.jobs`. Arguments and result must be of types that `pages.shared.codec` knows.
    Its module should import little, since the process imports it. Calls may run at once in different processes. The process that
    answered last gets the next call if it is free, so that it can use what a function caches.
    Raises `RequestError` if the function does or if it takes too long; other errors as `run_module`.
    """
    answer: T = workers().call(function, arguments, named)
    return answer
