"""What became of the runs of a queue, in a file: so that a server that is restarted can say it. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from engine import files
from engine.launch.queue.run_state import RunState
from engine.spec import RequestError, RunSpec, sentence
from engine.spec.sentence import packed, unpacked

_REMEMBERED = 200  # runs of earlier queues
_LINES = 2_000  # at most, before runs that are forgotten are removed from the file
_TRACEBACK = 4 << 10  # characters of a traceback that are kept: its end says what was raised
_LARGEST = 64 << 20  # bytes; lines are far shorter, so such a file is not a journal of this program


class Journal:
    """A line for each change that matters: submitted, started, finished. One queue at a time writes it.

    The file can be read and written by this user only: who knows a run's id can cancel it.
    """

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        """Use `open`. Raises `OSError` and `RequestError` if the file cannot be read or written."""
        self._path, self._lock = path, lock
        self.earlier: Mapping[str, RunState] = _read(path) if path.exists() else {}
        self._lines: list[bytes] = [_line(state) for state in self.earlier.values()]
        self._write_all()

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """None if another queue writes it, or if it cannot be written: then a restart cannot say what became of its runs."""
        try:
            lock = path.with_name(f"{path.name}.lock").open("ab")
            os.chmod(lock.name, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(path, lock)
            except BaseException:
                lock.close()
                raise
        except BlockingIOError:
            return None
        except (OSError, RequestError) as error:
            logging.getLogger(__name__).warning("the journal of runs cannot be kept: %s", error)
            return None

    def note(self, state: RunState) -> None:
        """Write the state of a run. A full disk costs the line, not the run."""
        self._lines.append(_line(state))
        try:
            if len(self._lines) > _LINES:
                newest = {json.loads(line)["id"]: line for line in self._lines}
                self._lines = list(newest.values())[-_REMEMBERED:]
                self._write_all()
            else:
                with self._path.open("ab") as file:
                    file.write(self._lines[-1])
        except OSError as error:
            logging.getLogger(__name__).warning("the journal of runs could not be written: %s", error)

    def close(self) -> None:
        self._lock.close()

    def _write_all(self) -> None:
        self._path.touch(0o600)  # first: the file that replaces it has its permissions
        self._path.chmod(0o600)
        files.write(self._path, b"".join(self._lines))


def _line(state: RunState) -> bytes:
    kept = {
        "id": state.id,
        "by": state.by,
        "spec": state.spec.model_dump(mode="json"),
        "phase": state.phase,
        "step": state.step,
        "message": packed(state.message),
        "traceback": state.traceback[-_TRACEBACK:],
        "failed_rank": state.failed_rank,
        "wrong": state.wrong,
        "folder": None if state.folder is None else str(state.folder),
    }
    return json.dumps(kept).encode() + b"\n"


def _read(path: Path) -> dict[str, RunState]:
    found: dict[str, RunState] = {}
    if path.stat().st_size > _LARGEST:
        logging.getLogger(__name__).warning("the journal of runs is begun anew: %s is larger than %d bytes", path, _LARGEST)
        return {}
    for line in files.read(path, _LARGEST).splitlines():
        try:
            state = _state(json.loads(line))
        except (ValueError, KeyError, TypeError, RequestError):  # the last line, if the server was killed while it wrote it
            continue
        found.pop(state.id, None)
        found[state.id] = state
    return {id: _ended(state) for id, state in list(found.items())[-_REMEMBERED:]}


def _state(kept: dict[str, Any]) -> RunState:
    folder = None if kept["folder"] is None else Path(kept["folder"])
    changed = {"spec": RunSpec.model_validate(kept["spec"]), "message": unpacked(kept["message"]), "folder": folder}
    return RunState(**{**kept, **changed})


def _ended(state: RunState) -> RunState:
    """A run that was not finished has ended with its server."""
    if state.finished:
        return state
    if state.phase == "queued":
        why = sentence("the server was restarted before this run began; run it again")
    else:
        why = sentence("the server was restarted while this run was active, and ended it; run it again")
    return replace(state, phase="cancelled", message=why)
