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

HOME = Path("runs")  # the default folder of saved runs


def complain(text: str) -> None:
    """Print to standard error. An error of that stream is ignored: there is no other place to report it."""
    streams.written(f"{text}\n", sys.stderr)


def print_json(value: Any) -> None:
    """Print as valid JSON, which has no NaN: a number that is not finite, such as a diverged loss, is null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as aligned columns, numbers right-aligned. Print nothing if there are no rows."""
    if not rows:
        return
    cells = [[name.replace("_", " ") for name in rows[0]], *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(value, (int, float)) for value in rows[0].values()]
    for line in cells:
        aligned = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        print("  ".join(aligned).rstrip())


def size(count: float) -> str:
    """Bytes as text in binary units: 2.64 MiB."""
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def highest(summary: dict[str, Any], layout: LayoutSpec) -> str:
    """One line on the fullest rank of a run or a dry run."""
    workspaces = workspace(summary["allocator"])
    more = f"; kernel workspace up to {size(workspaces)} more, on this processor" if workspaces else ""
    return f"{size(summary['peak_bytes'])} at the highest, on {named(layout, summary['peak_rank'])}{more}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
