"""The way to a dry run from a program that has no torch: a process of its own, its progress, its end. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.launch.client import environment, messages
from engine.launch.draft import Draft
from engine.launch.failure import RunError
from engine.spec import RequestError, RunSpec


class DryRun:
    """One dry run under way. A context manager: leaving it ends the process, and with it the run if that was not finished."""

    def __init__(self, spec: RunSpec, home: Path, rank: int | None = None, device: str = "none") -> None:
        """Its result will be a new folder in `home`. `rank` None: one rank of each stage."""
        home.mkdir(parents=True, exist_ok=True)
        self._cancelled = False
        self._spec, self._draft = spec, Draft.new(home.absolute())
        command = [sys.executable, "-P", "-m", "engine.launch.dry", "--out", str(self._draft.folder), "--device", device]
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
        with suppress(BrokenPipeError):  # it is gone already, which `wait` will tell
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
        told: Callable[[int, int], None] = lambda done, of: None,
        acted: Callable[[int, int], None] = lambda actions, of: None,
    ) -> Path:
        """The folder of its result. `told(done, of)` hears how many of how many ranks have been rehearsed.

        `acted(actions, of)` hears a few times a second how many of how many actions are over, of all these ranks together.

        Raises `RequestError` if it cannot be done as asked, and `RunError`.
        """
        assert self._process.stdout is not None
        end: dict[str, Any] = {"how": "failed", "traceback": ""}
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "rehearsed":
                told(event["done"], event["of"])
            elif event["event"] == "acted":
                acted(event["actions"], event["of"])
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
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Do a dry run from start to end: the folder of its result, in `home`. Raises `RequestError` and `RunError`."""
    with DryRun(spec, home, rank, device) as running:
        return running.wait(told)
