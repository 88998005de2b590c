"""Has ledgers recorded that were never recorded here, in a process of its own. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from engine.launch.client import environment
from engine.launch.failure import RunError
from engine.predict.ledger.keep import Key
from engine.predict.ledger.store import NotRecordedError, ledger_store
from engine.spec import Sentence, sentence

_Answer = TypeVar("_Answer")


def with_ledgers(ask: Callable[[], _Answer], announce: Callable[[Sentence], None] = lambda what: None) -> _Answer:
    """What `ask` returns. If it raises `NotRecordedError`, what is missing is recorded, once and for all, and it is asked again.

    `announce` hears what is happening: a recording takes some seconds. Raises `RunError` where it fails.
    """
    done: set[Key] = set()
    while True:
        try:
            return ask()
        except NotRecordedError as error:
            missing = set(error.keys)
            if missing <= done:
                raise
        announce(sentence("a model like this is new here: what its layers do is being recorded, once; that takes a few seconds"))
        _record(missing - done)
        done |= missing


def _record(keys: Iterable[Key]) -> None:
    folder = ledger_store().recorded.folder
    command = [sys.executable, "-P", "-m", "engine.launch.recordings", "--out", str(folder), "--keys"]
    ended = subprocess.run(command, input=json.dumps([*keys]), capture_output=True, text=True, env=environment(), check=False)
    if ended.returncode:
        raise RunError("what the model's layers do could not be recorded", ended.stderr)
