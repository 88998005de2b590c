"""Has ledgers recorded that were never recorded here, in a process of its own. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from threading import Lock
from typing import TypeVar

from engine.launch.host.client import environment
from engine.ledger.keep import Key
from engine.ledger.store import NotRecordedError, ledger_store
from engine.spec import RequestError, Sentence, sentence

_Answer = TypeVar("_Answer")
_AT_ONCE = 48  # recordings between two announcements


def with_ledgers(ask: Callable[[], _Answer], announce: Callable[[Sentence], None] = lambda what: None) -> _Answer:
    """What `ask` returns. If it raises `NotRecordedError`, what is missing is recorded, once and for all, and it is asked again.

    `announce` hears what is happening: a recording takes some seconds. Raises `RequestError` if it fails.
    """
    done: set[Key] = set()
    while True:
        try:
            return ask()
        except NotRecordedError as error:
            missing = set(error.keys) - done
            if not missing:
                raise
        left = sorted(missing)
        while left:
            announce(
                sentence(
                    "this model has parts that were not recorded before; each is recorded once; parts left: {count}",
                    count=len(left),
                )
            )
            _record(left[:_AT_ONCE])
            left = left[_AT_ONCE:]
        done |= missing


def _record(keys: Iterable[Key]) -> None:
    """One recording at a time: who waits may find that another has recorded the same."""
    with _one_at_a_time():
        recorded = ledger_store().recorded
        missing = [key for key in keys if key not in recorded]
        if not missing:
            return
        command = [sys.executable, "-P", "-m", "engine.launch.recording.recordings", "--out", str(recorded.folder), "--keys"]
        ended = subprocess.run(command, input=json.dumps(missing), capture_output=True, text=True, env=environment(), check=False)
    if ended.returncode:
        why = ended.stderr.strip().rpartition("\n")[2]
        raise RequestError(sentence("the layers of this model could not be recorded: {why}", why=why))


@cache
def _one_at_a_time() -> Lock:
    return Lock()
