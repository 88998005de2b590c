"""Dry runs for tests, many from one process that imported torch once. Requests and answers are pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.launch.client import environment
from engine.spec import RunSpec


class Asked(NamedTuple):
    spec: RunSpec
    ranks: tuple[int, ...]
    device: Any = "none"


def rehearse(asked: Sequence[Asked]) -> list[dict[int, Any]]:
    """For each request: rank → its `Rehearsal`. They run in a process of their own, and each rank in one forked from that."""
    command = [sys.executable, "-m", "tests.launch.rehearsals"]
    done = subprocess.run(command, input=pickle.dumps(list(asked)), stdout=subprocess.PIPE, env=environment(), check=True)
    return pickle.loads(done.stdout)


def main() -> None:
    from engine.launch.dry import rehearse_all
    from engine.launch.warm import preload

    asked = pickle.loads(sys.stdin.buffer.read())
    preload()
    import engine.launch.rehearsal  # noqa: F401

    answers = [rehearse_all(one.spec, one.ranks, one.device, most=2) for one in asked]
    sys.stdout.buffer.write(pickle.dumps(answers))


if __name__ == "__main__":
    main()
