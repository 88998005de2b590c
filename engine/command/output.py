"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command import streams
from engine.head import finite
from engine.launch.root_cause import named
from engine.spec import LayoutSpec
from engine.summary import workspace

HOME = Path("runs")  # where saved runs are, unless told otherwise


def complain(text: str) -> None:
    """Print to standard error. If that takes nothing, there is nobody to tell."""
    streams.written(f"{text}\n", sys.stderr)


def print_json(value: Any) -> None:
    """As JSON proper, which knows no NaN: the loss of a run that blew up is null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Columns in line, numbers to the right. Nothing for no rows."""
    if not rows:
        return
    cells = [[name.replace("_", " ") for name in rows[0]], *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(value, (int, float)) for value in rows[0].values()]
    for line in cells:
        aligned = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        print("  ".join(aligned).rstrip())


def size(count: float) -> str:
    """Bytes in words, in binary units: 2.64 MiB."""
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def highest(summary: dict[str, Any], layout: LayoutSpec) -> str:
    """The fullest rank of a measured or dry step, in a line."""
    beside = workspace(summary["allocator"])
    more = f"; kernel workspace up to {size(beside)} more, on this processor" if beside else ""
    return f"{size(summary['peak_bytes'])} at the highest, on {named(layout, summary['peak_rank'])}{more}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
