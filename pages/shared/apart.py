"""Work that is done in a process of its own, because of what it would leave behind in the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def made_apart(module: str, *arguments: str, given: bytes = b"") -> bytes:
    """What `python -m MODULE ARGUMENTS` prints, with `given` on its standard input.

    Drawing a file takes 200 MB, which a server would never give back; a process that ends does. Raises `RuntimeError` with what
    it said if it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout
