"""Communication: counts, results, and errors when another rank has ended."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.measure.recorder import Count, Recorder, TrafficKey
from engine.parallel.backend import choose_backend
from engine.parallel.comm import Comm
from engine.parallel.pending import CommError
from engine.topology import AXES, Mesh
from tests.engine.forked import RaisedInProcess, together
from tests.patience import PATIENCE_S, time_limits

GLOO = choose_backend(ranks_here=10_000, local_rank=0)  # more ranks than any machine has GPUs


def connect(rank: int, store: dist.Store, mesh: Mesh, seconds: float = PATIENCE_S) -> Comm:
    return Comm.connect(store, mesh, rank, GLOO, seconds, Recorder())


def test_the_backend_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (GLOO.name, GLOO.device.type) == ("gloo", "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    some, enough = choose_backend(4, 1), choose_backend(2, 1)
    assert (some.name, some.why) == ("gloo", "2 GPUs for 4 ranks, so gloo on the CPU")
    assert ("nccl" in enough.name, enough.device, enough.why) == (True, torch.device("cuda", 1), "2 GPUs for 2 ranks, so NCCL")


def test_a_collective_of_one_rank_does_nothing_and_counts_nothing() -> None:
    comm = Comm.alone(torch.device("cpu"))
    tensor = torch.arange(3.0)
    for group in AXES:
        assert comm.all_reduce(tensor, group) is tensor
    assert tensor.tolist() == [0, 1, 2]
    assert not comm.recorder.traffic
    assert not comm.recorder.spans


# ------------------------------------------------------------------------------------------------- three ranks together


def every_call(rank: int, store: dist.Store) -> dict[str, Any]:
    """One call of each collective on three ranks along tp. Another test has transfers."""
    comm = connect(rank, store, Mesh({"tp": 3}))
    mine = torch.full((2, 2), float(rank + 1))
    parts = torch.arange(6.0).view(3, 2) * (rank + 1)
    sums = torch.ones(2, dtype=torch.float64)
    out = {
        "sum": comm.all_reduce(mine.clone(), "tp").tolist(),
        "max": comm.all_reduce(mine.clone(), "tp", "max").tolist(),
        "gather": comm.all_gather(mine, "tp").tolist(),
        "scatter": comm.reduce_scatter(parts, "tp").tolist(),
        "added": (comm.start_reduce_scatter(parts, "tp", sums, accumulate=True).wait(), sums.tolist())[1],
        "in place": (comm.start_reduce_scatter(parts, "tp").wait(), parts.tolist())[1],
        "counts": dict(comm.recorder.traffic),
        "spans": [(span.lane, span.kind, span.end_ns >= span.start_ns) for span in comm.recorder.spans],
    }
    comm.disconnect()
    return out


def test_results_and_counts_on_three_ranks() -> None:
    """Wire bytes in a ring: all-reduce 2(n−1)/n of the tensor, reduce-scatter (n−1)/n of it, all-gather n−1 shards."""
    answers = together(3, every_call)
    for rank, answer in enumerate(answers):
        assert not isinstance(answer, RaisedInProcess), answer.text
        assert answer["sum"] == [[6.0, 6.0], [6.0, 6.0]]
        assert answer["max"] == [[3.0, 3.0], [3.0, 3.0]]
        assert answer["gather"] == [[[r + 1.0] * 2] * 2 for r in range(3)]
        assert answer["scatter"] == [6.0 * 2 * rank, 6.0 * (2 * rank + 1)]
        assert answer["added"] == [1 + number for number in answer["scatter"]]
        own_parts = [[float(rank + 1) * (2 * part + column) for column in (0, 1)] for part in range(3)]
        own_parts[rank] = answer["scatter"]
        assert answer["in place"] == own_parts, "the other parts are sent, and stay"

        def key(collective: str) -> TrafficKey:
            return TrafficKey("tp", collective, "", (0, 1, 2))

        assert answer["counts"] == {
            key("all_reduce"): Count(2, 2 * 16, 2 * (2 * 2 * 16 // 3)),
            key("all_gather"): Count(1, 16, 2 * 16),
            key("reduce_scatter"): Count(3, 3 * 24, 3 * (2 * 24 // 3)),
        }
        kinds = ["all_reduce", "all_reduce", "all_gather", *["reduce_scatter"] * 3]
        assert answer["spans"] == [("comm", kind, True) for kind in kinds]


def sums_of_five(rank: int, store: dist.Store) -> list[list[float]]:
    """Of numbers whose sum depends on the order, in several calls."""
    comm = connect(rank, store, Mesh({"dp": 5}))
    parts = torch.randn(5, 1000, generator=torch.Generator().manual_seed(rank))
    found = [comm.reduce_scatter(parts, "dp").tolist() for _ in range(3)]
    comm.disconnect()
    return found


def test_a_sum_is_made_in_the_same_order_every_time() -> None:
    """Its own part first, then from the rank before it, and so on."""
    drawn = [torch.randn(5, 1000, generator=torch.Generator().manual_seed(rank)) for rank in range(5)]
    for rank, sums in enumerate(together(5, sums_of_five)):
        expected = drawn[rank][rank].clone()
        for step in range(1, 5):
            expected += drawn[rank - step][rank]
        assert sums == [expected.tolist()] * 3


def one_instant(rank: int, store: dist.Store) -> tuple[int, int, int]:
    comm = connect(rank, store, Mesh({"pp": 3}))
    if rank == 1:
        store.wait(["go"])  # comes last
    before = time.perf_counter_ns()
    if rank == 0:
        store.set("go", "")
    instant = comm.common_instant()
    after = time.perf_counter_ns()
    comm.disconnect()
    return before, instant, after


def test_all_ranks_agree_on_one_instant() -> None:
    """It is the time at which the last rank arrives, so no rank's step begins before time 0."""
    answers = together(3, one_instant)
    assert len({instant for _, instant, _ in answers}) == 1
    came_last = max(before for before, _, _ in answers)
    for _, instant, after in answers:
        assert came_last <= instant <= after


def swap(rank: int, store: dist.Store) -> tuple[list[float], list[float], dict[TrafficKey, Count]]:
    """Both of two stages send two messages before they receive. They receive the second first."""
    comm = connect(rank, store, Mesh({"pp": 2}))
    other = 1 - rank
    under_way = [comm.send(torch.full((3,), 10.0 * rank + tag), "activation", other, tag) for tag in (0, 1)]
    second, first = (comm.receive(torch.empty(3), "activation", other, tag) for tag in (1, 0))
    for pending in under_way:
        pending.wait()
    answer = first.tolist(), second.tolist(), dict(comm.recorder.traffic)
    comm.disconnect()
    return answer


def test_messages_are_matched_by_tag_and_sends_do_not_block() -> None:
    for rank, (first, second, counts) in enumerate(together(2, swap)):
        other = 1 - rank
        assert (first, second) == ([10.0 * other] * 3, [10.0 * other + 1] * 3)
        assert counts == {
            TrafficKey("pp", "send", "", (0, 1)): Count(2, 24, 24),
            TrafficKey("pp", "recv", "", (0, 1)): Count(2, 24, 0),
        }


# ---------------------------------------------------------------------------------------------------- when one is gone


def left_alone(rank: int, store: dist.Store, call: str) -> str:
    """Rank 1 ends. Rank 0 makes the call, and returns the error."""
    comm = connect(rank, store, Mesh({"pp": 2}))
    comm.common_instant()
    if rank == 1:
        return "left"
    try:
        if call == "all_reduce":
            comm.all_reduce(torch.ones(4), "pp")
        elif call == "recv":
            comm.receive(torch.empty(4), "activation", 1, 0)
        elif call == "send":
            for tag in range(100):  # the first can still be buffered by the connection
                comm.send(torch.ones(1 << 18), "activation", 1, tag).wait()
        else:
            comm.common_instant()
    except CommError:
        return "CommError"
    return "nothing"


@pytest.mark.parametrize("call", ["all_reduce", "recv", "send", "common_instant"])
def test_a_peer_that_ended_is_a_comm_error(call: str) -> None:
    answers = together(2, left_alone, call)
    assert [a.text if isinstance(a, RaisedInProcess) else a for a in answers] == ["CommError", "left"]


TOO_SHORT = "the limit was too short to meet in"


def not_coming(rank: int, store: dist.Store, limit: float) -> str:
    """Rank 1 makes no call until rank 0 has given up."""
    try:
        comm = connect(rank, store, Mesh({"pp": 2}), limit)
        comm.common_instant()
        if rank == 1:
            store.wait(["gave up"])
            return "stayed away"
    except CommError:
        return TOO_SHORT
    else:
        return _alone(comm)
    finally:
        store.set("gave up", "")


def _alone(comm: Comm) -> str:
    try:
        comm.all_reduce(torch.ones(4), "pp")
    except CommError:
        return "CommError"
    return "nothing"


def test_a_peer_that_does_not_answer_is_a_comm_error_after_the_time_limit() -> None:
    for limit in time_limits():
        answers = together(2, not_coming, limit)
        if TOO_SHORT not in answers:
            break
    assert answers == ["CommError", "stayed away"]
