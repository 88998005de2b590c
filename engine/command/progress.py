"""The progress of a run on standard error."""

from __future__ import annotations

import shutil
from typing import TextIO

from engine.command import streams
from engine.launch.queue.run_queue import RunState
from engine.phases import PHASES

_CLEAR = "\r\x1b[K"


class Progress:
    """Writes the progress of a run: on a terminal one line that is overwritten, elsewhere one line for each step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._rewrite = stream.isatty()
        self._shown: RunState | None = None

    def show(self, state: RunState) -> None:
        """Write what is new since the state that was shown before."""
        before, self._shown = self._shown, state
        spec = state.spec
        if before is None:
            self._print(f"starting {spec.layout.ranks} rank{'' if spec.layout.ranks == 1 else 's'}")
        if state.ready_s is not None and (before is None or before.ready_s is None):
            self._print(f"ready after {state.ready_s:.2f} s: {state.why}")
        for step in range(before.step if before else 0, state.step):
            self._print(f"step {step + 1} of {spec.workload.steps}, loss {state.losses[step]:.4f}")
        for phase in state.begun[len(before.begun) if before else 0 :]:
            self._print(PHASES[phase])

    def end(self) -> None:
        """Clear the line on the terminal, for the output that follows."""
        if self._rewrite:
            self._write(_CLEAR)

    def _print(self, text: str) -> None:
        if self._rewrite:
            self._write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        if streams.written(text, self._stream):  # the stream is closed or full; the run goes on without progress
            self._stream = None
