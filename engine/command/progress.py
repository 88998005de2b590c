"""What a user at a terminal sees of a run under way, on standard error."""

from __future__ import annotations

import shutil
from typing import TextIO

from engine.command import streams
from engine.launch.queue import RunState
from engine.phases import PHASES

_CLEAR = "\r\x1b[K"


class Progress:
    """One line that is written over again on a terminal, a line a step elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._rewrite = stream.isatty()
        self._shown: RunState | None = None

    def show(self, state: RunState) -> None:
        """Say what is new since the last state shown."""
        before, self._shown = self._shown, state
        spec = state.spec
        if before is None:
            self._say(f"starting {spec.layout.ranks} rank{'' if spec.layout.ranks == 1 else 's'}")
        if state.ready_s is not None and (before is None or before.ready_s is None):
            self._say(f"ready after {state.ready_s:.2f} s: {state.why}")
        for step in range(before.step if before else 0, state.step):
            self._say(f"step {step + 1} of {spec.workload.steps}, loss {state.losses[step]:.4f}")
        if state.phase in PHASES and (before is None or before.phase != state.phase):
            self._say(PHASES[state.phase])

    def end(self) -> None:
        """Leave the terminal's line to what comes next."""
        if self._rewrite:
            self._write(_CLEAR)

    def _say(self, text: str) -> None:
        if self._rewrite:
            self._write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        if streams.written(text, self._stream):  # it takes nothing any more, which is no reason to end the run
            self._stream = None
