"""For a process that must end, or be woken, when its parent ends."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even while it is stuck in native code.

    Linux only. Elsewhere it does nothing, and an end-of-file on a pipe from the parent must suffice. A parent that has already
    ended is not noticed.
    """
    _on_parents_end(signal.SIGKILL)


def wake_with_parents_end() -> None:
    """Instead, have the kernel continue this process then if it was stopped, so that it can end in order."""
    _on_parents_end(signal.SIGCONT)


def _on_parents_end(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
