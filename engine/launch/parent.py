"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(on: bool = True) -> None:
    """Have the kernel kill this process when the thread that started it ends, even while it is stuck in native code.

    Linux only; elsewhere it does nothing, and an end-of-file on a pipe from the parent has to do. A parent that is gone
    already is not noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if on else 0)
