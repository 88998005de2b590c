"""Starts dry runs, each in a process of its own. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.launch.draft import Draft
from engine.launch.failure import RunError
from engine.launch.host.client import environment, messages
from engine.spec import RequestError, RunSpec


class DryRun:
    """One dry run. A context manager: leaving it ends the process, and with it a run that is not finished."""

    def __init__(self, spec: RunSpec, home: Path, rank: int | None = None, device: str = "none") -> None:
        """Its result will be a new folder in `home`. `rank` None: one rank of each stage."""
        home.mkdir(parents=True, exist_ok=True)
        self._cancelled = False
        self._spec, self._draft = spec, Draft.new(home.absolute())
        command = [sys.executable, "-P", "-m", "engine.launch.dry_run.program", "--out", str(self._draft.folder)]
        command += ["--device", device]
        if rank is not None:
            command += ["--rank", str(rank)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages(),
            env=environment(),
            start_new_session=True,  # so that Ctrl-C in a terminal reaches the command alone
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended already; `wait` will report it
            self._process.stdin.write(spec.model_dump_json().encode())
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._draft.discard()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """End it, and its processes with it. Any thread may call; `wait` then raises `RunError`."""
        self._cancelled = True
        self._process.kill()

    def wait(
        self,
        rank_done: Callable[[int, int], None] = lambda done, of: None,
        progress: Callable[[int, int], None] = lambda actions, of: None,
    ) -> Path:
        """Wait for its end, and return the folder of its result.

        `rank_done(done, of)` is called with how many of how many ranks are done. `progress(actions, of)` is called a few times a
        second with how many of how many actions are finished, of all these ranks together.

        Raises `RequestError` if it cannot be done as asked, and `RunError`.
        """
        assert self._process.stdout is not None
        end: dict[str, Any] = {"how": "failed", "traceback": ""}
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "rank_done":
                rank_done(event["done"], event["of"])
            elif event["event"] == "progress":
                progress(event["actions"], event["of"])
            elif event["event"] == "finished":
                end = event
        if end["how"] == "wrong":
            raise RequestError(end["message"])
        if end["how"] != "done":
            silent = "cancelled" if self._cancelled else "the process of the dry run ended without saying why"
            raise RunError(end.get("message", silent), end["traceback"])
        return self._draft.keep(self._spec)


def dry_run(
    spec: RunSpec,
    home: Path,
    rank: int | None = None,
    device: str = "none",
    rank_done: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Do a dry run from start to end: the folder of its result, in `home`. Raises `RequestError` and `RunError`."""
    with DryRun(spec, home, rank, device) as running:
        return running.wait(rank_done)
