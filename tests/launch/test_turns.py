"""Whose run is next, which runs go on at once, how long one waits, and what a restarted server says of its runs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.launch.queue.journal import Journal
from engine.launch.queue.run_queue import RunQueue, RunState
from engine.launch.queue.slots import Slots
from engine.launch.queue.turns import Turns
from engine.spec import LayoutSpec, RunSpec
from tests.launch.bench import Bench, finished, gone, small, until
from tests.patience import PATIENCE_S

LONG = 10_000  # steps; such a run must be cancelled
ENDLESS = {"steps": LONG, "microbatches": 64}  # no test is so slow that it ends by itself
ONE, PAIR = "dp1.tp1.pp1", "dp2.tp1.pp1"


def test_sessions_take_turns_whatever_the_number_of_their_runs() -> None:
    turns = Turns()
    for id in ("a1", "a2", "a3", "b1", "b2", "c1"):
        turns.add(id, id[0])
    assert turns.order() == ["a1", "b1", "c1", "a2", "b2", "a3"]
    turns.take("a1")
    assert turns.order() == ["b1", "c1", "a2", "b2", "a3"]
    turns.add("d1", "d")  # it had no turn yet
    assert turns.order()[:3] == ["b1", "c1", "d1"]


def test_a_run_that_is_cancelled_while_it_waits_costs_its_session_no_turn() -> None:
    turns = Turns()
    for id in ("a1", "b1", "a2", "b2"):
        turns.add(id, id[0])
    turns.remove("a1")
    assert turns.order() == ["b1", "a2", "b2"]
    turns.take("b1")
    assert turns.order() == ["a2", "b2"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "take", "cancel"]), st.sampled_from("abcd"), st.integers(0, 30)), max_size=60))
def test_no_session_has_two_turns_while_another_waits(actions: list[tuple[str, str, int]]) -> None:
    turns, waits_since, number = Turns(), {}, 0
    overtaken: dict[str, list[str]] = {}  # session that waits → whose turns it has seen since
    for action, session, index in actions:
        order = turns.order()
        if action == "add":
            number += 1
            turns.add(f"{session}{number}", session)
            waits_since.setdefault(session, number)
            overtaken.setdefault(session, [])
        elif order and action == "take":
            turns.take(order[0])
            seen = overtaken.pop(order[0][0])
            assert len(seen) == len(set(seen))
            for others in overtaken.values():
                others.append(order[0][0])
        elif order:
            turns.remove(order[index % len(order)])
        left = {id[0] for id in turns.order()}
        overtaken = {session: overtaken.get(session, []) for session in left}
        for seen in overtaken.values():
            assert len(seen) == len(set(seen))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.launch.queue.slots.memory_for_runs", lambda: 1_000_000_000)


@pytest.mark.usefixtures("machine")
def test_runs_go_on_at_once_if_each_rank_has_a_core_and_all_have_memory() -> None:
    slots = Slots(cores=4)
    one, pair, eight = (RunSpec(layout=LayoutSpec(dp=dp)) for dp in (1, 2, 8))
    assert slots.has_room(eight, [])
    assert not slots.has_room(one, [eight])
    assert slots.has_room(pair, [pair])
    assert not slots.has_room(pair, [pair, one])
    wide = Slots(cores=64)
    assert wide.has_room(pair, [])
    assert wide.has_room(pair, [pair] * 6)
    assert not wide.has_room(pair, [pair] * 7)  # each takes about 0.13 GB of the 1 GB


@pytest.mark.usefixtures("machine")
def test_a_machine_with_a_gpu_has_one_run_at_a_time_unless_cores_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    one = RunSpec(layout=LayoutSpec(dp=1))
    monkeypatch.setattr("engine.launch.queue.slots.has_gpu", lambda: True)
    for slots, beside in ((Slots(), False), (Slots(cores=4), True)):
        assert slots.has_room(one, [])
        assert slots.has_room(one, [one]) == beside


def test_two_runs_at_once_each_with_its_own_result_and_its_own_cancel(tmp_path: Path) -> None:
    bench = Bench(tmp_path, cores=4)
    with bench.queue as queue:
        # Both with room come first: a submit may take seconds, in which the queue would start the other run of session a.
        first, third, second = (queue.submit(small(PAIR, **ENDLESS), by=by) for by in "aba")
        for id in (first, third):
            until(queue, id, lambda state: state.step > 0)
        assert [run.id for run in queue.unfinished()] == [first, third, second]
        assert len(bench.ranks()) == 4
        queue.cancel(first)
        assert finished(queue, first).phase == "cancelled"
        until(queue, second, lambda state: state.step > 0)
        queue.cancel(second)
        finished(queue, second)
        assert queue.state(third).phase == "running"  # type: ignore[union-attr]
        fourth = queue.submit(small(PAIR), by="a")
        assert finished(queue, fourth).phase == "done"
        queue.cancel(third)
        assert finished(queue, third).phase == "cancelled"
        assert bench.ranks() == []


def test_a_rank_that_fails_ends_its_own_run_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, cores=4)
    with bench.queue as queue:
        other = queue.submit(small(PAIR, **ENDLESS))
        until(queue, other, lambda state: state.step > 0)
        before = bench.ranks()
        state = finished(queue, queue.submit(small(PAIR, "kill:1@2")))
        assert (state.phase, state.failed_rank) == ("failed", 1)
        assert bench.ranks() == before
        step = queue.state(other).step  # type: ignore[union-attr]
        until(queue, other, lambda state: state.step > step)
        queue.cancel(other)
        finished(queue, other)


def test_a_slow_cancel_does_not_end_the_runs_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Alone, a run that is cancelled would end with its host.
    monkeypatch.setattr("engine.launch.queue.run_queue._CANCELLED_S", 0.0)
    bench = Bench(tmp_path, cores=4)
    with bench.queue as queue:
        other, first = (queue.submit(small(ONE, **ENDLESS)) for _ in range(2))
        for id in (other, first):
            until(queue, id, lambda state: state.step > 0)
        host = bench.host.pid
        queue.cancel(first)
        assert finished(queue, first).phase == "cancelled"
        step = queue.state(other).step  # type: ignore[union-attr]
        until(queue, other, lambda state: state.step > step)
        assert bench.host.pid == host


def test_a_host_that_is_killed_ends_all_its_runs_and_each_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, cores=2)
    with bench.queue as queue:
        ids = [queue.submit(small(ONE, steps=LONG)) for _ in range(2)]
        for id in ids:
            until(queue, id, lambda state: state.step > 0)
        ranks = bench.ranks()
        os.kill(bench.host.pid, signal.SIGKILL)
        for id in ids:
            assert finished(queue, id).message.startswith("the process that runs the ranks was killed by signal 9 (SIGKILL)")
        assert bench.saved() == []
        assert finished(queue, queue.submit(small(ONE))).phase == "done"
        assert gone(ranks)


def test_who_waits_is_told_how_long_once_a_run_is_done(tmp_path: Path) -> None:
    with Bench(tmp_path).queue as queue:
        long, first = queue.submit(small(ONE, steps=LONG)), queue.submit(small(ONE))
        assert queue.expected_wait(first) is None
        queue.cancel(long)
        assert finished(queue, first).phase == "done"
        active, second, third = (queue.submit(small(ONE, steps=LONG)) for _ in range(3))
        until(queue, active, lambda state: state.step > 0)
        shorter, longer = queue.expected_wait(second), queue.expected_wait(third)
        assert shorter is not None
        assert longer is not None
        assert 0 < shorter < longer
        assert queue.expected_wait(active) is None
        assert queue.expected_wait("nobody") is None


SERVER = """
import sys
from pathlib import Path
from engine.launch.queue.run_queue import RunQueue
from tests.launch.bench import finished, small, until

home = Path(sys.argv[1])
queue = RunQueue(home, None, 1, home / ".queue.jsonl")
done, active, waits = queue.submit(small("dp1.tp1.pp1")), *(queue.submit(small("dp1.tp1.pp1", steps=10_000)) for _ in range(2))
until(queue, active, lambda state: state.step > 0)
print(done, active, waits, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["SIGKILL", "leaves"])
def test_a_restarted_server_says_what_became_of_each_run(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            done, active, waits = server.stdout.readline().split()
            if end == "leaves":
                server.communicate("leave\n", timeout=PATIENCE_S)
        finally:
            server.kill()
    journal = tmp_path / ".queue.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"id": "half a li')  # a server that is killed while it writes
    with RunQueue(tmp_path, None, 1, journal) as queue:
        state = queue.watch(done)
        assert state is not None
        assert state.phase == "done"
        assert state.folder is not None
        assert state.folder.is_dir()
        for id, spec, why in (
            (active, small(ONE, steps=LONG), "the server was restarted while this run was active, and ended it; run it again"),
            (waits, small(ONE, steps=LONG), "the server was restarted before this run began; run it again"),
        ):
            state = queue.watch(id)
            assert state is not None
            assert (state.phase, state.spec) == ("cancelled", spec)
            assert state.message == (why if end == "SIGKILL" else "cancelled: the program that ran it was closed")
        assert queue.watch("nobody") is None
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600


def test_a_journal_keeps_the_ends_of_tracebacks_and_is_begun_anew_if_it_is_too_large(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".queue.jsonl"
    for length, kept in ((10, "x" * 6 + "last"), (1 << 20, "x" * 4092 + "last")):
        with closing(opened(path)) as journal:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            journal.note(RunState("id", small(ONE), phase="failed", traceback="last".rjust(length, "x")))
        with closing(opened(path)) as journal:
            assert journal.earlier["id"].traceback == kept
    with path.open("ab") as file:
        file.truncate(65 << 20)
    with closing(opened(path)) as journal:
        assert journal.earlier == {}
        assert path.stat().st_size == 0
    assert "the journal of runs is begun anew" in caplog.text


def opened(path: Path) -> Journal:
    journal = Journal.open(path)
    assert journal is not None
    return journal


def test_a_second_server_of_the_same_folder_leaves_the_journal_to_the_first(tmp_path: Path) -> None:
    journal = tmp_path / ".queue.jsonl"
    with RunQueue(tmp_path, None, 1, journal) as first, RunQueue(tmp_path, None, 1, journal) as second:
        id = first.submit(small(ONE, steps=LONG))
        second.cancel(second.submit(small(ONE, steps=LONG)))
        assert second.watch(id) is None
        until(first, id, lambda state: state.step > 0)
