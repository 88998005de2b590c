"""Detects within seconds that a rank is gone, by an idle connection from every rank to rank 0.

The state of the connection says so, never a clock of this program:

- When a process ends, its operating system closes its connections. The other end notices at once.
- When a machine or its network is gone, it does not answer. With TCP keepalive, systems probe an idle connection once a second,
  and give it up after four seconds without an answer.

The operating system answers, not the process. So a rank that computes for minutes, a stopped rank and a machine that is ten times
too slow are not considered gone. For those there is the run's time limit.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

# Seconds. A shorter outage of the network is not noticed. A longer one is noticed within five.
SILENCE_S = 4
_MOST = 1 << 16  # bytes of a line
_LONGEST = 256  # bytes of a greeting
_OPTIONS = {
    "TCP_KEEPIDLE": 1,  # seconds of quiet before the first question
    "TCP_KEEPALIVE": 1,  # the same on macOS
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": SILENCE_S - 1,
    "TCP_USER_TIMEOUT": 1000 * SILENCE_S,  # also while sent data is not acknowledged
}


class LivenessError(Exception):
    """A rank could not be reached, or did not connect."""


@dataclass(frozen=True)
class PeerFailure:
    """The end of a rank. `how`: "failed", which it announced, or "gone", without an announcement. `why`: the reason."""

    rank: int
    how: str
    why: str = ""


def listener(address: str) -> socket.socket:
    """A socket that listens at a free port of that address."""
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((address, 0), family=family, backlog=128)


def accept_ranks(listening: socket.socket, secret: str, world: int, seconds: float) -> dict[int, socket.socket]:
    """On rank 0: the connection of each other rank, which must know `secret`. Raises `LivenessError`."""
    found: dict[int, socket.socket] = {}
    with closing(_greetings(listening, time.monotonic() + seconds)) as greetings:
        while len(found) < world - 1:
            connection, line = next(greetings, (None, b""))
            if connection is None:
                missing = next(rank for rank in range(1, world) if rank not in found)
                raise LivenessError(f"rank {missing} did not come within {seconds:g} s")
            rank = _greeting(line, secret)
            if rank is None or not 0 < rank < world or rank in found:
                connection.close()
                continue
            found[rank] = connection
    return found


def _greetings(listening: socket.socket, deadline: float) -> Generator[tuple[socket.socket, bytes]]:
    """Each new connection with the first line that it sends, until the deadline. Connections that sent none are closed then.

    All connections are read at once, so that a silent one does not delay others; and byte by byte, since bytes after the line
    are for another reader.
    """
    lines: dict[socket.socket, bytes] = {}
    listening.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ, None)
        try:
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    connection = key.data
                    if connection is None:
                        _accept(listening, selector, lines)
                        continue
                    byte = _byte(connection)
                    lines[connection] += byte
                    if byte in (b"", b"\n") or len(lines[connection]) == _LONGEST:
                        selector.unregister(connection)
                        yield connection, lines.pop(connection)
        finally:
            for connection in lines:
                connection.close()


def _accept(listening: socket.socket, selector: selectors.BaseSelector, lines: dict[socket.socket, bytes]) -> None:
    try:
        connection, _ = listening.accept()
    except (BlockingIOError, ConnectionError):
        return  # it was closed again
    lines[connection] = b""
    selector.register(connection, selectors.EVENT_READ, connection)


def _byte(connection: socket.socket) -> bytes:
    """The next byte. Empty if the connection is closed."""
    try:
        return connection.recv(1)
    except OSError:
        return b""


def _greeting(line: bytes, secret: str) -> int | None:
    """The rank in a first line with the right secret, else None."""
    try:
        said = json.loads(line)
        return said["rank"] if said["secret"] == secret and type(said["rank"]) is int else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def connect(address: str, port: int, secret: str, rank: int, seconds: float) -> socket.socket:
    """On another rank: its connection to rank 0. Raises `LivenessError`."""
    try:
        connection = socket.create_connection((address, port), timeout=seconds)
        connection.sendall(json.dumps({"rank": rank, "secret": secret}).encode() + b"\n")
    except OSError as error:
        raise LivenessError(f"rank {rank} does not reach rank 0 at {address}: {error}") from error
    return connection


class Liveness:
    """Watches connections in a thread of its own, which calls `lost` once, with the first rank that is gone."""

    def __init__(self, connections: dict[int, socket.socket], world: int, lost: Callable[[PeerFailure], None]) -> None:
        """`connections`: on rank 0 to each other rank, on the others to rank 0."""
        self._connections, self._world, self._lost = dict(connections), world, lost
        self._unread = dict.fromkeys(connections, b"")
        self._ended: set[int] = set()  # ranks that announced their end
        self._heard = threading.Event()
        self._failure: PeerFailure | None = None
        self._sending = threading.Lock()
        self._selector = selectors.DefaultSelector()
        for rank, connection in connections.items():
            connection.setblocking(True)
            _keep_alive(connection)
            self._selector.register(connection, selectors.EVENT_READ, rank)
        threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def failure(self, seconds: float) -> PeerFailure | None:
        """The first failure. Waits up to `seconds` for one."""
        self._heard.wait(seconds)
        return self._failure

    def announce_end(self, how: str) -> None:
        """Announce that this rank ends, "done" or "failed". That its connection closes then is no failure."""
        self._broadcast({"ends": how})

    def _watch(self) -> None:
        while self._connections:
            for key, _ in self._selector.select():
                rank = key.data
                why = self._read(rank)
                if why is not None:
                    self._close(rank)
                    if rank not in self._ended:
                        self._record(PeerFailure(rank, "gone", why))

    def _read(self, rank: int) -> str | None:
        """Read messages of a rank. Returns the reason if its connection is closed, else None."""
        try:
            data = self._connections[rank].recv(_MOST)
        except OSError as error:
            return "its machine does not answer" if isinstance(error, TimeoutError) else f"its connection broke: {error.strerror}"
        if not data:
            return "its connection was closed"
        *lines, rest = (self._unread[rank] + data).split(b"\n")
        if len(rest) > _MOST:
            return "it said what no rank says"
        self._unread[rank] = rest
        for line in lines:
            try:
                self._handle(rank, json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                return "it said what no rank says"
        return None

    def _handle(self, rank: int, said: dict[str, Any]) -> None:
        if "ends" in said:
            self._ended.add(rank)
            if said["ends"] == "failed":
                self._record(PeerFailure(rank, "failed"))
        elif said["rank"] in range(self._world):
            self._record(PeerFailure(said["rank"], str(said["how"]), str(said["why"])))
        else:
            raise ValueError("there is no such rank")

    def _record(self, failure: PeerFailure) -> None:
        """Keep the first failure: others are consequences. Rank 0 sends it to the other ranks."""
        if self._failure is None:
            self._failure = failure
            self._heard.set()
            self._broadcast(vars(failure))
            if failure.how == "gone":
                self._lost(failure)

    def _broadcast(self, said: dict[str, Any]) -> None:
        line = json.dumps(said).encode() + b"\n"
        with self._sending:
            for connection in list(self._connections.values()):
                try:
                    connection.sendall(line)
                except OSError:  # it is gone; the thread reads that from the same connection
                    continue

    def _close(self, rank: int) -> None:
        with self._sending:
            connection = self._connections.pop(rank)
        self._selector.unregister(connection)
        connection.close()


def _keep_alive(connection: socket.socket) -> None:
    """Have the operating systems probe the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):  # each system has its own
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
