"""In a rank that a test's host has forked: break where the test says. See `tests.launch.faults`."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import time
from io import FileIO
from pathlib import Path

from engine.launch import ranks


def break_links() -> None:
    """Replace the link of this rank by one that breaks."""
    places = Path(os.environ["SHARDSCOPE_FAULT"])
    order = json.loads((places / "order.json").read_text())
    if order:
        setattr(ranks, "PipeLink", breaking_link(order, places))  # noqa: B010  mypy does not let a class be replaced


def breaking_link(order: dict[str, object], places: Path) -> type[ranks.PipeLink]:
    class BreakingLink(ranks.PipeLink):
        def __init__(self, rank: int, events: FileIO, board: ranks.StatusBoard) -> None:
            super().__init__(rank, events, board)
            self.waits = rank == order["rank"]
            if self.waits and not order["pattern"]:
                self.happen()

        def set_status(self, status: str) -> None:
            super().set_status(status)
            if self.waits and re.match(str(order["pattern"]), status):
                self.happen()

        def happen(self) -> None:
            self.waits = False
            (places / "reached").write_text(str(time.monotonic()))
            do(str(order["kind"]), Path(str(order["home"])))

    return BreakingLink


def do(kind: str, home: Path) -> None:
    if kind == "raise":
        raise RuntimeError("drill")
    if kind == "exit":
        os._exit(3)
    if kind == "closed sockets":
        close_sockets()
    elif kind == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file takes another byte
    elif kind == "read-only folder":
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write everywhere, so this rank is root no longer
        else:
            home.chmod(0o555)
    else:
        os.kill(os.getpid(), signal.Signals[kind])


def close_sockets() -> None:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the folder's own
            continue
        if target.startswith("socket:"):
            line = socket.socket(fileno=int(entry))
            if not line.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # it is connected, and not the one that listens
                line.shutdown(socket.SHUT_RDWR)
            line.detach()
