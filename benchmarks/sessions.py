"""The latency for thirty concurrent users: each moves a control of the Lab once a second, until the page is redrawn.

    python -m benchmarks.sessions [--sessions 30] [--seconds 20]

It starts a server, and clients with Streamlit's protocol, so that no browser is measured. It prints the median and the 95th
percentile over all moves, the time of the first page, and the server's CPU time and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).parents[1]
MOVED = {"dp": (1, 2), "tp": (1, 2, 4), "pp": (1, 2, 4)}  # the end of a number field's label → its values
STARTED_S = 60.0


class Session:
    """One session: the fields of its page, and the times of its redraws."""

    def __init__(self, socket: ClientConnection, seed: int) -> None:
        self._socket, self._draw = socket, random.Random(seed)
        self._fields: dict[str, str] = {}  # axis → id of its widget
        self._states: dict[str, WidgetState] = {}
        self.took: list[float] = []

    async def open(self) -> float:
        """Seconds to the first page."""
        return await self._run(BackMsg(rerun_script=ClientState()))

    async def move(self) -> None:
        """Set one axis to another value."""
        axis = self._draw.choice(list(MOVED))
        state = WidgetState(id=self._fields[axis], int_value=self._draw.choice(MOVED[axis]))
        self._states[state.id] = state
        message = BackMsg(rerun_script=ClientState())
        message.rerun_script.widget_states.widgets.extend(self._states.values())
        self.took.append(await self._run(message))

    async def _run(self, message: BackMsg) -> float:
        began = time.perf_counter()
        await self._socket.send(message.SerializeToString())
        while True:
            said = ForwardMsg.FromString(await self._socket.recv(decode=False))
            kind = said.WhichOneof("type")
            if kind == "delta" and said.delta.new_element.WhichOneof("type") == "number_input":
                field = said.delta.new_element.number_input
                for axis in MOVED:
                    if field.label.endswith(f"({axis})"):
                        self._fields[axis] = field.id
            elif kind == "script_finished" and said.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                return time.perf_counter() - began


async def use(url: str, seed: int, seconds: float) -> tuple[float, list[float]]:
    """One user: the first page, then a move a second, each after the page was redrawn."""
    async with connect(f"{url}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=None) as socket:
        session = Session(socket, seed)
        first = await session.open()
        ends = time.perf_counter() + seconds
        await asyncio.sleep(random.Random(seed).random())  # users do not move at the same instant
        while time.perf_counter() < ends:
            began = time.perf_counter()
            await session.move()
            await asyncio.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
        return first, session.took


async def crowd(url: str, sessions: int, seconds: float) -> list[tuple[float, list[float]]]:
    return await asyncio.gather(*(use(url, seed, seconds) for seed in range(sessions)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", type=int, default=30)
    options.add_argument("--seconds", type=float, default=20.0)
    chosen = options.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--server.port", str(port), "--server.headless", "true", "--server.fileWatcherType", "none"]
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app.py", *flags, "--", "--runs", home],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        try:
            cold = _await(f"http://127.0.0.1:{port}/_stcore/health")
            ((alone, _),) = asyncio.run(crowd(f"ws://127.0.0.1:{port}", 1, 0.0))
            process = psutil.Process(server.pid)
            idle, spent = process.memory_info().rss, sum(process.cpu_times()[:2])
            answers = asyncio.run(crowd(f"ws://127.0.0.1:{port}", chosen.sessions, chosen.seconds))
            busy, spent = process.memory_info().rss, sum(process.cpu_times()[:2]) - spent
        finally:
            server.terminate()
            server.wait(20)
    moves = sorted(took for _, all_took in answers for took in all_took)
    print(f"{chosen.sessions} sessions, a move a second each for {chosen.seconds:g} s: {len(moves)} moves")
    print(f"  redrawn after, median          {1e3 * statistics.median(moves):8.0f} ms")
    print(f"  redrawn after, 95th percentile {1e3 * moves[int(0.95 * len(moves))]:8.0f} ms")
    print(f"  server's CPU time, per move    {1e3 * spent / len(moves):8.0f} ms")
    print(f"  server answers after           {cold:8.2f} s")
    print(f"  first page, cold, one session  {alone:8.2f} s")
    print(f"  server's memory, one session   {idle / 2**20:8.0f} MiB")
    print(f"  server's memory, all sessions  {busy / 2**20:8.0f} MiB")


def _await(url: str) -> float:
    """Seconds until the server answers."""
    began = time.perf_counter()
    while time.perf_counter() - began < STARTED_S:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.read() == b"ok":
                    return time.perf_counter() - began
        except OSError:
            time.sleep(0.05)  # it does not listen yet
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
