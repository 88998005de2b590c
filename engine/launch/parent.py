"""A process that must not outlive the one that started it, or must hear of its end."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even while it is stuck in native code.

    Linux only; elsewhere it does nothing, and an end-of-file on a pipe from the parent has to do. A parent that is gone
    already is not noticed.
    """
    _on_parents_end(signal.SIGKILL)


def wake_with_parents_end() -> None:
    """Instead of that, have the kernel continue this process then, if it was stopped, so that it can end in order."""
    _on_parents_end(signal.SIGCONT)


def _on_parents_end(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
