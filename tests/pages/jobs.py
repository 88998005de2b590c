"""Functions that tests call in worker processes."""

from __future__ import annotations

import os
import time

JOBS = (
    "engine.devices.device",
    "engine.planner.candidates.candidates",
    "tests.pages.jobs.divide",
    "tests.pages.jobs.half_answer",
    "tests.pages.jobs.leave",
    "tests.pages.jobs.pid",
    "tests.pages.jobs.wait",
)


def pid() -> int:
    return os.getpid()


def divide(number: int, by: int) -> float:
    return number / by


def wait(seconds: float) -> None:
    time.sleep(seconds)


def leave(status: int) -> None:
    os._exit(status)


def half_answer(seconds: float) -> None:
    """Begin to send a message of 100 bytes, and do not complete it."""
    os.write(0, (100).to_bytes(8, "little") + b"half")
    time.sleep(seconds)
