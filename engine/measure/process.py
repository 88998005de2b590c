"""Memory of this process, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from typing import Any

import psutil


def resident_bytes() -> int:
    """This process's resident memory now."""
    return psutil.Process().memory_info().rss


def process_row(rank: int, baseline_bytes: int) -> dict[str, Any]:
    """A row of the process table. `baseline_bytes` is `resident_bytes()` from before the model was built."""
    memory = psutil.Process().memory_full_info()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "rank": rank,
        "rss_bytes": memory.rss,
        "uss_bytes": memory.uss,
        "baseline_bytes": baseline_bytes,
        "peak_rss_bytes": max(peak, memory.rss),
    }
