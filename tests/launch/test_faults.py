"""Every kind of failure of a rank: the run ends at once, names the rank and the reason, and leaves no files or processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine.launch.queue.run_queue import RunState
from engine.spec import RunSpec
from tests.launch.bench import Bench, all_end, finished, gone, small, until
from tests.patience import time_limits

FOUR, EIGHT = "dp2.tp2.pp1", "dp2.tp2.pp2"  # ranks; test_faults_everywhere.py has other kinds, phases and ranks
RANK_3 = "rank 3 (dp 1, tp 1, pp 0)"


def failed(bench: Bench, spec: RunSpec) -> RunState:
    """The last state of a run that fails and leaves no files or processes."""
    before = bench.saved()
    state = finished(bench.queue, bench.queue.submit(spec))
    assert bench.ranks() == []
    assert bench.saved() == before
    assert state.phase == "failed"
    assert not state.wrong
    assert state.folder is None
    return state


def test_a_rank_that_raises(bench: Bench) -> None:
    state = failed(bench, small(EIGHT, "raise:3@2"))
    assert state.failed_rank == 3
    assert state.message.startswith(f"{RANK_3} failed in step ")
    assert "RuntimeError: drill" in state.message
    assert "raise RuntimeError(" in state.traceback
    assert "in _inject_fault" in state.traceback


def test_a_rank_that_exits(bench: Bench) -> None:
    state = failed(bench, small(FOUR, "exit:3@2"))
    assert state.failed_rank == 3
    assert state.message.startswith(f"{RANK_3} left with exit status 3 in step ")


def test_a_rank_that_is_killed(bench: Bench) -> None:
    state = failed(bench, small(EIGHT, "kill:3@2"))
    assert state.failed_rank == 3
    assert state.message.startswith(f"{RANK_3} was killed by signal 9 (SIGKILL) in step ")


def test_a_rank_that_hangs(bench: Bench) -> None:
    for limit in time_limits():
        state = failed(bench, small(FOUR, "hang:3@2", time_limit=limit))
        if state.failed_rank == 3 and " in step 2" in state.message:
            break
    assert state.failed_rank == 3
    assert state.message.startswith(f"the run reached its time limit of {limit:g} s: {RANK_3} had been in step 2")
    assert "in _inject_fault" in state.traceback
    assert "engine/launch" not in state.traceback


def test_a_rank_that_crashes_in_native_code_shows_where(bench: Bench) -> None:
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    ranks = bench.ranks()
    ranks[1].send_signal(signal.SIGSEGV)
    state = finished(bench.queue, id)
    assert state.message.startswith("rank 1 (dp 0, tp 1, pp 0) was killed by signal 11 (SIGSEGV) in step ")
    assert "engine/worker.py" in state.traceback
    assert gone(ranks)


def test_a_rank_that_is_stopped_does_not_answer(bench: Bench) -> None:
    for limit in time_limits():
        id = bench.queue.submit(small(steps=10_000, time_limit=limit))
        state = until(bench.queue, id, lambda state: state.step > 0 or state.finished)
        ranks = bench.ranks()
        if not state.finished:
            ranks[2].suspend()
            state = finished(bench.queue, id)
        if state.failed_rank == 2:
            break
    assert state.failed_rank == 2
    assert state.message.endswith("did not answer when asked where it was")
    assert gone(ranks)


def test_a_request_found_wrong_by_a_rank_blames_no_rank(bench: Bench, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 20)
    first = bench.queue.submit(small(steps=10_000))
    second = bench.queue.submit(small(text=str(text)))
    until(bench.queue, first, lambda state: state.phase == "running")
    text.unlink()
    bench.queue.cancel(first)
    state = finished(bench.queue, second)
    assert state.phase == "failed"
    assert state.wrong
    assert state.failed_rank is None
    assert str(text) in state.message


def test_a_host_that_gets_a_termination_signal_ends_cleanly_and_the_next_run_has_another(bench: Bench) -> None:
    before = bench.saved()
    first, second = bench.queue.submit(small(steps=10_000)), bench.queue.submit(small())
    until(bench.queue, first, lambda state: state.step > 0)
    host, ranks = bench.host, bench.ranks()
    host.terminate()
    state = finished(bench.queue, first)
    assert (state.phase, state.message) == ("cancelled", "cancelled: the process that runs the ranks was told to end")
    assert all_end([host, *ranks])
    assert bench.saved() == before
    assert finished(bench.queue, second).phase == "done"


def test_a_host_that_is_killed_takes_its_ranks_with_it_and_the_next_run_works(bench: Bench) -> None:
    before = bench.saved()
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    host, ranks = bench.host, bench.ranks()
    os.kill(host.pid, signal.SIGKILL)
    state = finished(bench.queue, id)
    assert state.phase == "failed"
    assert state.failed_rank is None
    assert state.message == "the process that runs the ranks was killed by signal 9 (SIGKILL), and the ranks with it"
    assert all_end([host, *ranks])
    assert bench.saved() == before
    state = finished(bench.queue, bench.queue.submit(small()))
    assert state.phase == "done"
    assert state.folder
    assert state.folder.name in bench.saved()


def test_a_host_that_is_stopped_does_not_keep_a_run_from_its_time_limit(bench: Bench) -> None:
    before = bench.saved()
    for limit in time_limits():
        id = bench.queue.submit(small(steps=10_000, time_limit=limit))
        state = until(bench.queue, id, lambda state: state.phase == "running" or state.finished)
        host, ranks = bench.host, bench.ranks()
        if not state.finished:
            host.suspend()
            state = finished(bench.queue, id)
        if "did not answer" in state.message:
            break
    assert state.phase == "failed"
    assert state.message == (
        f"the run reached its time limit of {limit:g} s; the process that runs the ranks did not answer and was ended"
    )
    assert all_end([host, *ranks])
    assert bench.saved() == before
    assert finished(bench.queue, bench.queue.submit(small())).phase == "done"


def test_a_run_of_a_host_that_is_stopped_can_be_cancelled(bench: Bench) -> None:
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    host, ranks = bench.host, bench.ranks()
    host.suspend()
    bench.queue.cancel(id)
    state = finished(bench.queue, id)
    assert (state.phase, state.message) == ("cancelled", "cancelled")
    assert all_end([host, *ranks])


def test_if_rank_0_ends_while_others_connect_no_torch_stack_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = Bench(tmp_path)  # its host writes to the stream that this test reads
    try:
        finished(own.queue, own.queue.submit(small(steps=1)))  # the host is warm
        id, host = own.queue.submit(small("dp2.tp2.pp2", steps=10_000)), own.host
        ranks = next(ranks for ranks in iter(host.children, None) if len(ranks) == 8)
        min(ranks, key=lambda rank: rank.pid).kill()
        state = finished(own.queue, id)
    finally:
        own.queue.close()
    assert state.failed_rank == 0
    assert state.message.startswith("rank 0 (dp 0, tp 0, pp 0) was killed by signal 9 (SIGKILL) while ")
    assert "frame #" not in capfd.readouterr().err + state.traceback
