"""Which rank is lost: its connection shows it at once, unless the rank has announced its end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue

import pytest

from engine.launch.cluster.liveness import SILENCE_S, Liveness, LivenessError, PeerFailure, accept_ranks, connect, listener
from tests.patience import PATIENCE_S

SECRET = "swordfish"


class Ranks:
    """Rank 0 and others in this process."""

    def __init__(self, world: int) -> None:
        with listener("127.0.0.1") as listening:
            port = listening.getsockname()[1]
            self.sockets = {rank: connect("127.0.0.1", port, SECRET, rank, PATIENCE_S) for rank in range(1, world)}
            self.connections = accept_ranks(listening, SECRET, world, PATIENCE_S)
        self.lost: dict[int, SimpleQueue[PeerFailure]] = {rank: SimpleQueue() for rank in range(world)}
        self.ranks = {0: Liveness(self.connections, world, self.lost[0].put)}
        self.ranks |= {rank: Liveness({0: own}, world, self.lost[rank].put) for rank, own in self.sockets.items()}

    def cut(self, rank: int) -> None:
        """Close the connection, as the system does when a process ends."""
        self.sockets[rank].shutdown(socket.SHUT_RDWR)


@pytest.fixture
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    for rank in (1, 2):
        with suppress(OSError):  # either end can have closed it already
            ranks.cut(rank)


def test_all_ranks_get_the_name_of_a_lost_rank(three: Ranks) -> None:
    three.cut(1)
    gone = PeerFailure(1, "gone", "its connection was closed")
    assert three.lost[0].get(timeout=PATIENCE_S) == gone
    assert three.lost[2].get(timeout=PATIENCE_S) == gone
    assert three.ranks[2].failure(0) == gone


def test_a_rank_that_announced_its_end_is_not_lost(three: Ranks) -> None:
    three.ranks[1].announce_end("done")
    three.cut(1)
    three.cut(2)  # rank 0 has the message of rank 1 by now, and reported nothing
    assert three.lost[0].get(timeout=PATIENCE_S).rank == 2
    assert three.lost[0].empty()


def test_all_ranks_get_the_name_of_a_failed_rank_and_no_other_is_lost(three: Ranks) -> None:
    three.ranks[2].announce_end("failed")
    failed = PeerFailure(2, "failed")
    assert three.ranks[0].failure(PATIENCE_S) == failed
    assert three.ranks[1].failure(PATIENCE_S) == failed
    three.cut(2)
    assert three.lost[0].empty()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b'{"rank": 3, "how": "gone", "why": ""}\n', b"7\n", b"x" * 100_000])
def test_a_malformed_message_counts_as_the_ranks_end(three: Ranks, said: bytes) -> None:
    three.sockets[1].sendall(said)
    assert three.lost[0].get(timeout=PATIENCE_S) == PeerFailure(1, "gone", "it said what no rank says")


def test_a_machine_that_does_not_answer_is_lost_within_five_seconds(three: Ranks) -> None:
    """The system's socket options do it. A test cannot disconnect a machine."""
    for connection in (three.connections[1], three.sockets[1]):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = {name: getattr(socket, name) for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE") if hasattr(socket, name)}
        (idle,) = (connection.getsockopt(socket.IPPROTO_TCP, number) for number in options.values())
        each = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        times = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + each * times == SILENCE_S < 5


def test_a_connection_without_the_secret_is_refused() -> None:
    with ExitStack() as opened:
        listening = opened.enter_context(listener("127.0.0.1"))
        address = listening.getsockname()
        for said in (b"", b"hello\n", b"[" * 300, json.dumps({"rank": 1, "secret": "guess"}).encode() + b"\n"):
            opened.enter_context(socket.create_connection(address)).sendall(said + b"\n")
        strange = (0, 2, -1, "1", None, True)
        for rank in strange:
            stranger = opened.enter_context(socket.create_connection(address))
            stranger.sendall(json.dumps({"rank": rank, "secret": SECRET}).encode() + b"\n")
        real = opened.enter_context(connect(*address, SECRET, 1, PATIENCE_S))
        connections = accept_ranks(listening, SECRET, 2, PATIENCE_S)
        assert connections[1].getpeername() == real.getsockname()
        connections[1].close()


def test_silent_connections_block_nobody_and_a_slow_rank_is_accepted() -> None:
    greeting = json.dumps({"rank": 1, "secret": SECRET}).encode() + b"\n"
    with ExitStack() as opened:
        listening = opened.enter_context(listener("127.0.0.1"))
        silent, slow, stranger = (opened.enter_context(socket.create_connection(listening.getsockname())) for _ in range(3))
        slow.sendall(greeting[:9])
        stranger.sendall(b"guess\n")
        gathering = opened.enter_context(ThreadPoolExecutor(1)).submit(accept_ranks, listening, SECRET, 2, PATIENCE_S)
        assert stranger.recv(1) == b""  # it was refused while the two before it had not sent everything
        slow.sendall(greeting[9:])
        with gathering.result()[1] as found:
            assert found.getpeername() == slow.getsockname()
        assert silent.recv(1) == b""


def test_a_rank_that_never_connects_is_named() -> None:
    with listener("127.0.0.1") as listening:
        came = connect(*listening.getsockname(), SECRET, 1, PATIENCE_S)
        with came, pytest.raises(LivenessError, match=r"rank 2 did not come within 0\.5 s"):
            accept_ranks(listening, SECRET, 3, 0.5)
        address, port = listening.getsockname()
    with pytest.raises(LivenessError, match=r"rank 1 does not reach rank 0 at 127\.0\.0\.1: .*refused"):
        connect(address, port, SECRET, 1, PATIENCE_S)
