"""A class at once, many runs through one host, and writers that are killed: `make soak` has them whole, `make test` a few."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from select import select

import psutil
import pytest

from engine import store
from engine.launch.queue.run_queue import RunQueue
from tests.launch.bench import Bench, finished, host_of, hosts, small
from tests.pages.stand_in import PAIR, result_of

PAIR_LAYOUT = "dp2.tp1.pp1"


def a_class_at_once(home: Path, sessions: int, steps: int) -> tuple[float, float]:
    """Each session presses Run. Returns after how many seconds the last has its result, and the CPU seconds of all ranks."""
    others = {host.pid for host in hosts()}
    with RunQueue(home, None, 2) as queue:
        began = time.monotonic()
        ids = [queue.submit(small(PAIR_LAYOUT, steps=steps), by=str(session)) for session in range(sessions)]
        states = [finished(queue, id) for id in ids]
        took = time.monotonic() - began
        used = host_of(psutil.Process(), others).cpu_times()
    assert [state.phase for state in states] == ["done"] * sessions
    folders = {state.folder for state in states}
    assert len(folders) == sessions  # none is lost, none is there twice
    assert {path.name for path in home.iterdir()} == {folder.name for folder in folders if folder}
    return took, used.children_user + used.children_system


def test_each_of_a_class_gets_a_result_of_its_own(tmp_path: Path) -> None:
    a_class_at_once(tmp_path, 5, 3)


@pytest.mark.nightly
def test_thirty_sessions_press_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    took, used = a_class_at_once(tmp_path, 30, 200)
    with capsys.disabled():
        print(
            f"\nthirty sessions at once, 2 ranks and 200 steps each: 30 answered, the last after {took:.0f} s at a load of "
            f"{os.getloadavg()[0]:.0f}; {used:.0f} CPU seconds of ranks"
        )


@pytest.mark.nightly
def test_five_hundred_runs_through_one_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, sizes = Bench(tmp_path), []
    with bench.queue as queue:
        for number in range(500):
            state = finished(queue, queue.submit(small("dp1.tp1.pp1", steps=1)))
            assert state.phase == "done"
            assert state.folder
            store.remove_deleted(store.delete(state.folder))
            sizes.append((bench.host.memory_info().rss, bench.host.num_fds()))
            if number == 50:
                host = bench.host.pid
        assert bench.host.pid == host
    (first, opened), (last, left) = sizes[50], sizes[-1]
    with capsys.disabled():
        print(
            f"\n500 runs through one host: {first / 1e6:.1f} MB after 50 runs, {last / 1e6:.1f} MB at the end; "
            f"{opened} and {left} descriptors"
        )
    assert last <= 1.05 * first
    assert left == opened


def killed_writers(home: Path, times: int) -> int:
    """Kill processes that save runs, each at a random moment after its first. Returns how many whole runs there are."""
    result, draw = result_of(PAIR), random.Random(0)
    began = time.monotonic()
    store.save(result, home / "first")
    took = time.monotonic() - began
    for number in range(times):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                store.save(result, home / f"run-{number}")
                os.write(writing, b"!")
                for turn in range(1_000):
                    store.save(result, home / f"run-{number}-{turn}")
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 1) == b"!"
        select([reading], [], [], draw.uniform(0, 4 * took))  # the moment is the point; the pipe ends if the child does
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
    whole = store.listing(home)
    assert {"first", *(f"run-{number}" for number in range(times))} <= {folder.name for folder in whole}
    for folder in whole:
        assert store.load(folder).spec == PAIR
    return len(whole)


def test_every_run_that_is_listed_opens_after_its_writer_was_killed(tmp_path: Path) -> None:
    assert killed_writers(tmp_path, 15) > 16  # some of them saved more than their first


@pytest.mark.nightly
def test_two_hundred_writers_are_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = killed_writers(tmp_path, 200)
    partial = sum(path.name.startswith(".partial-") for path in tmp_path.iterdir())
    with capsys.disabled():
        print(f"\nwriters killed: 200; {whole} runs are listed and every one opens; {partial} unfinished ones are not listed")
