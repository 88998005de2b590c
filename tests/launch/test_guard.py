"""Memory: a run that outgrows its share is ended with a sentence, before the system ends a process of its own choice."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from engine.launch.host.free_memory import Group, free_memory, read_group, usual_reserve
from engine.launch.host.guard import Share, chosen, run_to_end
from engine.launch.queue.run_queue import RunQueue
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
    if found:
        assert found.why == (
            "this run was ended before the system would have done it: other programs took the memory, 0.20 GB is left on this "
            "machine, and this run was the largest; its processes use 5.00 GB of memory together"
        )


@pytest.mark.parametrize(
    ("killed", "ended"),
    [
        (Share(0, [os.getpid()], killed=99.5), None),  # the kernel still frees its memory
        (Share(0, [os.getpid()], killed=90.0), "next"),  # it has had its time
        (Share(0, [], killed=99.5), "next"),  # it is gone, and that was not enough
    ],
)
def test_no_second_run_is_ended_while_the_memory_of_the_first_is_freed(
    killed: Share, ended: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.launch.host.guard.free_memory", lambda: 0)
    found = run_to_end({"killed": killed, "next": Share(0, [os.getpid()])}, GB, now=100.0)
    assert (found and found.run) == ended


def test_a_run_for_which_there_is_no_memory_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    with RunQueue(tmp_path, None, 1, reserve=10**15) as queue:  # more than any machine has: there is never enough
        state = finished(queue, queue.submit(small(steps=10_000)))
    assert state.phase == "failed"
    assert state.failed_rank is None
    assert state.message.startswith("this run was ended before the system would have done it: ")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_keeps_a_part_of_its_memory_free() -> None:
    assert 256 << 20 <= usual_reserve() <= 1 << 30
    assert 0 < free_memory() <= psutil.virtual_memory().total


def test_the_limit_of_a_container_is_read_and_an_odd_one_is_no_limit(tmp_path: Path) -> None:
    assert read_group(tmp_path) is None
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 60\nactive_file 40\n")
    for limit, found in (("1000\n", Group(1000, 700)), ("max\n", None), ("many\n", None), ("", None)):
        (tmp_path / "memory.max").write_text(limit)
        assert read_group(tmp_path) == found
    (tmp_path / "memory.max").write_bytes(b"\xff")
    assert read_group(tmp_path) is None
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory.max").mkdir()  # reading it is an error, as of a file that this user may not read
    assert read_group(tmp_path) is None
