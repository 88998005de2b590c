"""Published figures beside the planner's: results of formulas, and measured results with the prediction's error.

    python -m benchmarks.published [--assume matmul_efficiency=0.7 …]

Nothing is fitted to a row: all tables use the planner's default assumptions. The figures with their sources, and this program's
numbers, are in `engine.papers.figures`. The Plan page shows the same rows.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import groupby
from typing import Any

from engine.command.output import print_table
from engine.command.search import assumptions
from engine.launch.recording.client import with_ledgers
from engine.papers.figures import references
from engine.papers.reference import UNITS, Reference


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE")
    assumed = assumptions(options.parse_args().assume)
    for source, group in groupby(with_ledgers(lambda: references(assumed)), key=lambda r: r.source):
        found = list(group)
        print(f"\n{source}")
        print_table([_row(r) for r in found])
        for quantity in dict.fromkeys(r.quantity for r in found):
            errors = [abs(100 * r.error) for r in found if r.quantity == quantity]
            print(f"{quantity}: median error {statistics.median(errors):.1f} %, largest {max(errors):.1f} %")
    print(f"\nassumed: {', '.join(f'{name}={value}' for name, value in assumed.model_dump().items())}")


def _row(r: Reference) -> dict[str, Any]:
    return {
        "model": r.model, "device": r.device or "–", "layout": r.layout, "what": f"{r.quantity} ({UNITS[r.quantity]})",
        "published": f"{r.published:.4g}", "ours": f"{r.ours:.4g}", "error %": f"{100 * r.error:+.1f}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
