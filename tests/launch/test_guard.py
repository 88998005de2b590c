"""Memory: a run that outgrows its share is ended with a sentence, before the system ends a process of its own choice."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from engine.launch.free_memory import free_memory
from engine.launch.guard import chosen, usual_reserve
from engine.launch.queue import RunQueue
from tests.launch.bench import finished, small

GB = 10**9


def test_the_run_that_is_most_above_its_share_is_ended() -> None:
    found = chosen({"large": (5 * GB, 6 * GB), "grew": (3 * GB, 1 * GB), "grew less": (2 * GB, 1 * GB)}, GB // 2, GB)
    assert found is not None
    assert found.run == "grew"
    assert found.why == (
        "this run was ended before the system would have done it: its processes use 3.00 GB of memory together, 1.00 GB was "
        "expected, and 0.50 GB is left on this machine"
    )


@pytest.mark.parametrize(("free", "ended"), [(GB // 2, None), (GB // 5, "large")])
def test_runs_within_their_shares_go_on_until_hardly_any_memory_is_left(free: int, ended: str | None) -> None:
    found = chosen({"large": (5 * GB, 6 * GB), "small": (1 * GB, 1 * GB)}, free, GB)
    assert (found and found.run) == ended


def test_a_run_for_which_there_is_no_memory_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    with RunQueue(tmp_path, None, 1, reserve=10**15) as queue:  # more than any machine has: there is never enough
        state = finished(queue, queue.submit(small(steps=10_000)))
    assert state.phase == "failed"
    assert state.failed_rank is None
    assert state.message.startswith("this run was ended before the system would have done it: its processes use ")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_keeps_a_part_of_its_memory_free() -> None:
    assert 256 << 20 <= usual_reserve() <= 1 << 30
    assert 0 < free_memory() <= psutil.virtual_memory().total
