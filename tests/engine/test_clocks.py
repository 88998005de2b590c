"""Clocks of several machines: how far each is ahead of rank 0's, and within which bound."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Barrier

import pandas as pd

from engine.parallel.clocks import Clock, clock_id, largest_error, measured
from engine.summary import wire_bytes_between_nodes
from tests.patience import PATIENCE_S


class AllMessages:
    """Messages between ranks that are threads."""

    def __init__(self, ranks: int) -> None:
        self.said: dict[tuple[int, int], Queue[int]] = {(a, b): Queue() for a in range(ranks) for b in range(ranks)}
        self.numbers: list[list[int]] = [[] for _ in range(ranks)]
        self.all_here = Barrier(ranks)


class MessagesOf:
    def __init__(self, rank: int, every: AllMessages) -> None:
        self.rank, self.every = rank, every

    def gathered(self, numbers: list[int]) -> list[list[int]]:
        self.every.numbers[self.rank] = numbers
        self.every.all_here.wait(PATIENCE_S)
        found = list(self.every.numbers)
        self.every.all_here.wait(PATIENCE_S)
        return found

    def tell(self, number: int, peer: int) -> None:
        self.every.said[self.rank, peer].put(number)

    def told_by(self, peer: int) -> int:
        return self.every.said[peer, self.rank].get(timeout=PATIENCE_S)


def clocks(ahead_s: list[int], ids: list[int]) -> list[Clock]:
    """The clock that each of so many ranks finds."""
    every = AllMessages(len(ids))

    def one(rank: int) -> Clock:
        return measured(MessagesOf(rank, every), rank, ids[rank], lambda: time.perf_counter_ns() + ahead_s[rank] * 10**9)

    with ThreadPoolExecutor(len(ids)) as ranks:
        return list(ranks.map(one, range(len(ids))))


def test_each_machine_finds_how_far_its_clock_is_ahead_within_the_bound() -> None:
    ahead_s = [7, 7, 4_000, 4_000, -90]
    found = clocks(ahead_s, ids=[1, 1, 5, 5, 3])
    assert found[0] == found[1] == Clock()
    assert found[2] == found[3]
    for clock, ahead in zip(found, ahead_s, strict=True):
        assert abs(clock.ahead_ns - (ahead - 7) * 10**9) <= clock.error_ns
        assert clock.error_ns < PATIENCE_S * 1e9


def test_on_one_machine_nobody_is_asked() -> None:
    assert clocks([0, 0, 0], ids=[clock_id()] * 3) == [Clock()] * 3


def test_the_error_between_two_machines_is_that_of_both_clocks() -> None:
    """The way from rank 1 takes longer than back, and the way to rank 2: one clock seems behind, the other ahead."""
    ids, ahead, delays = [1, 2, 3, 3], [0, 5_000, -900, -900], {(1, 0): 100, (0, 2): 60}
    every, time_ns = AllMessages(len(ids)), [0]  # of rank 0; two ranks talk at a time

    class Slow(MessagesOf):
        def tell(self, number: int, peer: int) -> None:
            time_ns[0] += delays.get((self.rank, peer), 0)
            super().tell(number, peer)

    def one(rank: int) -> Clock:
        return measured(Slow(rank, every), rank, ids[rank], lambda: time_ns[0] + ahead[rank])

    with ThreadPoolExecutor(len(ids)) as ranks:
        found = list(ranks.map(one, range(len(ids))))
    off = [clock.ahead_ns - by for clock, by in zip(found, ahead, strict=True)]
    assert off == [0, -50, 30, 30]
    bound = largest_error([(id, clock.error_ns) for id, clock in zip(ids, found, strict=True)])
    assert bound == max(off) - min(off) == 80


def test_bytes_between_nodes_are_those_that_a_ring_sends_from_one_to_the_other() -> None:
    sent = [
        (0, "all_reduce", "0,1,2,3", 1),  # to rank 1, in the same node
        (1, "all_reduce", "0,1,2,3", 10),  # to rank 2, in the other
        (3, "all_reduce", "0,1,2,3", 100),  # back to rank 0
        (2, "all_reduce", "2,3", 1_000),
        (3, "send", "1,3", 10_000),
    ]
    rows = pd.DataFrame(sent, columns=["rank", "collective", "group", "wire_bytes"])
    assert wire_bytes_between_nodes(rows, [0, 0, 1, 1]) == 10_110
    assert wire_bytes_between_nodes(rows, [0, 0, 0, 0]) == 0


def test_bytes_between_nodes_of_transfers_to_each_peer_are_the_shares_of_those_on_other_nodes() -> None:
    names = ("all_gather", "reduce_scatter", "all_to_all")
    sent = [(rank, name, "0,1,2,3", 3 * 10**power) for power, name in enumerate(names) for rank in range(4)]
    rows = pd.DataFrame(sent, columns=["rank", "collective", "group", "wire_bytes"])
    assert wire_bytes_between_nodes(rows, [0, 0, 1, 1]) == 4 * 2 * 111
    assert wire_bytes_between_nodes(rows, [0, 0, 1, 1], "nccl") == 2 * 3 * 11 + 4 * 2 * 100, "rings, but for the all-to-all"
