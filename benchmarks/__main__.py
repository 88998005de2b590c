"""A set of benchmarks that takes about five minutes: `python -m benchmarks`, or `make bench`.

It prints their tables, and writes them to benchmarks/results.md with the machine and the commit. Longer ones are run by name.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import instruction_set

RESULTS = Path(__file__).with_name("results.md")
SET = (
    "torch_stack --models tiny --rows dp2 tp2 pp2:1f1b dp2.tp2.pp2 dp2:zero3",
    "torch_stack --models small --rows dp2 tp2 pp2:1f1b --rounds 3",
    "limit --models small --rounds 2",
    "first_result",
    "recording",
    "growth --most 8 --steps 4",
)


def _commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "no commit"


def main() -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores; {instruction_set()}"
    parts = ["# Results", f"Commit {_commit()}. {machine}. Load before: {os.getloadavg()[0]:.1f}."]
    for command in SET:
        name, *options = command.split()
        print(f"== {command}", flush=True)
        ran = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options], stdout=subprocess.PIPE, text=True, check=True
        )
        print(ran.stdout, flush=True)
        parts += [f"`python -m benchmarks.{command}`", f"```\n{ran.stdout.strip()}\n```"]
    RESULTS.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
