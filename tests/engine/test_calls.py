"""A call to other ranks: whose error it is, and how long its rank is busy with it alone."""

from __future__ import annotations

import time
from typing import cast

import pytest
import torch
import torch.distributed as dist

from engine.measure.recorder import Recorder, TrafficKey
from engine.parallel.pending import CommError, Pending
from engine.summary import exposed
from engine.tables import table
from engine.topology import Mesh

MS = 1_000_000


class Work:
    """A transfer that takes some time, or fails because its peer is gone."""

    def __init__(self, seconds: float = 0.0, fails: bool = False) -> None:
        self.seconds, self.fails = seconds, fails

    def wait(self) -> None:
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("Connection closed by peer")


def pending(recorder: Recorder, work: Work) -> Pending:
    span = recorder.start_call(TrafficKey("dp", "all_reduce", "reduce", (0, 1)), 4, 4)
    return Pending([cast(dist.Work, work)], (torch.zeros(1),), span, recorder)


def test_a_peer_that_is_gone_is_an_error_of_communication() -> None:
    with pytest.raises(CommError, match="Connection closed by peer"):
        pending(Recorder(), Work(fails=True)).wait()


def test_what_fails_on_this_rank_after_a_call_is_its_own_error() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    call = pending(Recorder(), Work())
    call.afterwards = fail
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        call.wait()
    assert not isinstance(raised.value, CommError)


def test_only_the_time_in_which_a_rank_waits_is_exposed() -> None:
    """The call is under way during 20 ms of other work, and then the rank waits 10 ms for it."""
    recorder = Recorder()
    recorder.begin_step(1, time.perf_counter_ns())
    call = pending(recorder, Work(seconds=0.01))
    time.sleep(0.02)
    call.wait()
    (row,) = recorder.span_rows(0)
    took = row["end_ns"] - row["start_ns"]
    assert row["axis"] == "dp"
    assert row["exposed_ns"] >= 10 * MS
    assert took - row["exposed_ns"] >= 20 * MS


def test_exposed_communication_is_a_share_of_the_step_by_axis() -> None:
    whole = {"chunk": 0, "microbatch": 0, "step": 1, "cpu_ns": 0}
    rows = [
        whole | {"rank": rank, "lane": lane, "kind": kind, "start_ns": 0, "end_ns": 100, "axis": axis, "exposed_ns": waited}
        for rank in (0, 1)
        for lane, kind, axis, waited in (
            ("compute", "F", "none", 0),
            ("comm", "all_reduce", "tp", 30),
            ("comm", "all_gather", "dp", 10),
        )
    ]
    assert exposed(table("spans", rows, "measured"), Mesh({"dp": 2})) == pytest.approx({"dp": 0.1, "tp": 0.3})
    unknown = [row | {"exposed_ns": -1} for row in rows]
    assert exposed(table("spans", unknown, "measured"), Mesh({"dp": 2})) == {}
