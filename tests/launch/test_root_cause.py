"""The rank that is the root cause, and the message. No process is started."""

from __future__ import annotations

import pytest

from engine.launch.root_cause import (
    RaisedError,
    RankAtLimit,
    RankExit,
    cause_of_exits,
    cause_of_time_limit,
    is_waiting,
    main_thread,
    named,
)
from engine.spec import LayoutSpec

LAYOUT = LayoutSpec(dp=2, tp=2, pp=2)
LOST = RaisedError("CommError: connection closed by peer", "trace of the loss", secondary=True)
OWN = RaisedError("ValueError: no such thing", "trace of the error")

WAITS = """\
Thread 0x00007f01 (most recent call first):
  File "/somewhere/engine/launch/ranks.py", line 210 in watch
  File "/usr/lib/python3/threading.py", line 100 in run

Current thread 0x00007f00 (most recent call first):
  File "/somewhere/engine/parallel/comm.py", line 77 in wait
  File "/somewhere/engine/worker.py", line 50 in work
  File "/somewhere/engine/launch/ranks.py", line 180 in _be_rank
  File "/somewhere/engine/launch/ranks.py", line 140 in fork
"""
WORKS = WAITS.replace("parallel/comm.py", "model/layers.py")
JOINS = WAITS.replace('engine/parallel/comm.py", line 77 in wait', 'engine/launch/ranks.py", line 190 in _connect')


def test_a_rank_has_a_number_and_a_place() -> None:
    assert named(LAYOUT, 6) == "rank 6 (dp 1, tp 0, pp 1)"


def test_a_killed_rank_is_the_cause_before_all_errors() -> None:
    exits = [
        RankExit(0, "step 2: F", 1, LOST),
        RankExit(1, "step 2: F", 1, OWN),
        RankExit(5, "step 2: B chunk 1 microbatch 0", -9),
    ]
    cause = cause_of_exits(LAYOUT, exits)
    assert cause.rank == 5
    assert cause.sentence.startswith(
        "rank 5 (dp 0, tp 1, pp 1) was killed by signal 9 (SIGKILL) in step 2: B chunk 1 microbatch 0; the system does this when"
    )


def test_a_rank_that_ended_without_an_error_is_the_cause_before_all_errors() -> None:
    cause = cause_of_exits(LAYOUT, [RankExit(1, "", 1, OWN), RankExit(2, "", 3)])
    assert cause.sentence == "rank 2 (dp 1, tp 0, pp 0) left with exit status 3 while starting, without saying why"


def test_an_error_is_the_cause_before_lost_connections() -> None:
    cause = cause_of_exits(
        LAYOUT, [RankExit(0, "tracing", 1, LOST), RankExit(3, "tracing", 1, OWN), RankExit(2, "tracing", 1, OWN)]
    )
    assert cause.rank == 3  # the earlier error
    assert cause.sentence == "rank 3 (dp 1, tp 1, pp 0) failed while tracing: ValueError: no such thing"
    assert cause.traceback == "trace of the error"


def test_of_lost_connections_alone_the_earliest_is_the_cause() -> None:
    cause = cause_of_exits(LAYOUT, [RankExit(4, "step 1", 1, LOST), RankExit(0, "step 1", 1, LOST)])
    assert (
        cause.sentence
        == "rank 4 (dp 0, tp 0, pp 1) lost the connection to the other ranks in step 1: CommError: connection closed by peer"
    )


def test_a_wrong_request_blames_no_rank() -> None:
    wrong = RaisedError("there is no file x", "", wrong=True)
    cause = cause_of_exits(LAYOUT, [RankExit(0, "", -9), RankExit(1, "", 1, wrong)])
    assert (cause.rank, cause.wrong, cause.sentence) == (None, True, "there is no file x")


def test_a_crash_shows_the_stack_that_it_left() -> None:
    cause = cause_of_exits(LAYOUT, [RankExit(0, "step 1", -11, dump=WORKS)])
    assert cause.sentence == "rank 0 (dp 0, tp 0, pp 0) was killed by signal 11 (SIGSEGV) in step 1"
    assert "model/layers.py" in cause.traceback


def test_a_stack_is_that_of_the_main_thread_without_the_hosts_frames() -> None:
    stack = main_thread(WAITS)
    assert stack.startswith("Current thread")
    assert "comm.py" in stack
    assert "ranks.py" not in stack
    assert main_thread("") == ""
    assert main_thread("no threads in this") == "no threads in this"


def test_a_stack_shows_whether_a_rank_waits() -> None:
    assert is_waiting(WAITS)
    assert is_waiting(JOINS)
    assert not is_waiting(WORKS)
    assert not is_waiting("")


def test_at_the_time_limit_the_rank_that_does_not_wait_is_the_cause() -> None:
    at_limit = [
        RankAtLimit(0, "step 1: F", 9.0, WAITS),
        RankAtLimit(1, "step 1: B", 3.0, WORKS),
        RankAtLimit(2, "step 1: B", 4.0, WORKS),
    ]
    cause = cause_of_time_limit(LAYOUT, 10, at_limit)
    assert cause.rank == 2
    assert cause.sentence == "the run reached its time limit of 10 s: rank 2 (dp 1, tp 0, pp 0) had been in step 1: B for 4.0 s"
    assert "model/layers.py" in cause.traceback


@pytest.mark.parametrize(
    ("doing", "told"),
    [
        ("the traced step: F chunk 0 microbatch 1", "in the traced step: F chunk 0 microbatch 1"),
        ("generating new token 1 (prefill)", "generating new token 1 (prefill)"),
    ],
)
def test_a_ranks_last_action_is_written_in_words(doing: str, told: str) -> None:
    cause = cause_of_time_limit(LAYOUT, 10, [RankAtLimit(0, doing, 9.0, WORKS)])
    assert cause.sentence.endswith(f" had been {told} for 9.0 s")


def test_at_the_time_limit_a_rank_that_does_not_answer_is_the_cause() -> None:
    cause = cause_of_time_limit(LAYOUT, 10, [RankAtLimit(0, "step 1: F", 9.0, WAITS), RankAtLimit(1, "tracing", 3.0, "")])
    assert cause.rank == 1
    assert cause.sentence.endswith("had been tracing for 3.0 s, and did not answer when asked where it was")


def test_a_rank_that_does_not_answer_comes_before_one_whose_answer_is_cut_off() -> None:
    cut_off = WAITS.splitlines()[0]
    cause = cause_of_time_limit(LAYOUT, 10, [RankAtLimit(0, "step 1: F", 9.0, cut_off), RankAtLimit(1, "step 1: F", 8.0, "")])
    assert cause.rank == 1


def test_ranks_that_all_wait_are_reported_as_a_deadlock() -> None:
    cause = cause_of_time_limit(LAYOUT, 0.5, [RankAtLimit(0, "step 1: F", 0.1, WAITS), RankAtLimit(1, "step 1: B", 0.4, WAITS)])
    assert cause.rank == 1
    assert cause.sentence.startswith("the run reached its time limit of 0.5 s with every rank waiting for another; rank 1 ")
