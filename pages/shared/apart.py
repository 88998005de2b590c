"""Work that is done in a process of its own, because of what it would leave behind in the server."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

from engine.spec import RequestError
from pages.shared.kept import kept

_MOST_AT_ONCE = 4  # processes, of up to 300 MB each
ROOT = Path(__file__).parents[2]
P = ParamSpec("P")
T = TypeVar("T")


def made_apart(module: str, *arguments: str, given: bytes = b"") -> bytes:
    """What `python -m MODULE ARGUMENTS` prints, with `given` on its standard input.

    Drawing a file takes 200 MB, which a server would never give back; a process that ends does. A class that asks all at once
    takes turns. Raises `RuntimeError` with what it said if it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    with _turns():
        done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout


@kept(1)
def _turns() -> BoundedSemaphore:
    """As many as there are CPUs, since more would only take each other's time, and memory."""
    return BoundedSemaphore(min(_MOST_AT_ONCE, os.cpu_count() or 1))


def done_apart(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`function(…)`, called there: a search takes hundreds of MB for a moment.

    The function is one that a module names, or a method of what can be pickled; its module should import little, for it is
    imported anew. Raises what the function raises if that is a `RequestError`; else as `made_apart`.
    """
    answer: T | RequestError = pickle.loads(made_apart(__spec__.name, given=pickle.dumps((function, arguments, named))))
    if isinstance(answer, RequestError):
        raise answer
    return answer


def _main() -> None:
    function, arguments, named = pickle.load(sys.stdin.buffer)
    try:
        answer = function(*arguments, **named)
    except RequestError as error:
        answer = error
    sys.stdout.buffer.write(pickle.dumps(answer))


if __name__ == "__main__":
    _main()
