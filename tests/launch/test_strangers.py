"""Other users of the machine cannot reach a run: its network is its own, or what they connect to takes no notice."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.launch.bench import Bench, finished, small, until
from tests.patience import PATIENCE_S

LISTENS = "0A"  # the state of a socket in /proc/net/tcp


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the host's temporary files."""
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, places: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TMPDIR", str(places))
        bench = Bench(tmp_path_factory.mktemp("runs"))
        finished(bench.queue, bench.queue.submit(small(steps=1)))  # its host has started with that environment
    yield bench
    bench.queue.close()


def ports(ranks: list[psutil.Process]) -> list[tuple[str, int]]:
    """The ports on which they listen, in their own network. psutil sees this process's network only."""
    found = []
    for rank in ranks:
        own = set()
        for path in Path(f"/proc/{rank.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed since it was listed
                own.add(os.readlink(path))
        for line in Path(f"/proc/{rank.pid}/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in own:
                address, port = local.split(":")
                found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def test_a_run_has_a_network_of_its_own_where_the_system_allows_it(bench: Bench) -> None:
    code = "from engine.launch.host.isolation import isolate_network; print(isolate_network())"
    allowed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    networks = {network_of(process.pid) for process in (bench.host, *bench.ranks())}
    assert len(networks) == 1
    assert (network_of("self") not in networks) == allowed
    bench.queue.cancel(id)
    finished(bench.queue, id)


def network_of(process: int | str) -> str:
    return os.readlink(f"/proc/{process}/ns/net")


STRANGER = """
import ctypes, os, socket, sys

process, *told = sys.argv[1:]
differ = [kind for kind in ("user", "net") if os.readlink(f"/proc/{process}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")]
for place in [os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY) for kind in differ]:
    assert ctypes.CDLL(None).setns(place, 0) == 0, differ
for host, port in zip(told[::2], told[1::2]):
    for said in (b"", b"GET / HTTP/1.1\\r\\n\\r\\n", os.urandom(4096)):
        with socket.create_connection((host, int(port)), timeout=60) as stranger:
            stranger.sendall(said)
        print("connected")
"""


def connected(addresses: list[tuple[str, int]], to: int) -> int:
    """How many connections a stranger made to these ports, in the network of process `to`."""
    told = [f"{part}" for address in addresses for part in address]
    command = [sys.executable, "-c", STRANGER, f"{to}", *told]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.count("connected")


def test_connections_of_others_to_a_runs_ports_do_not_disturb_it(bench: Bench) -> None:
    spec = small(steps=10_000, microbatches=8)
    id = bench.queue.submit(spec)
    until(bench.queue, id, lambda state: state.step > 0)
    found = ports(bench.ranks())
    assert {host for host, _ in found} == {"127.0.0.1"}
    assert connected(found, bench.host.pid) == 3 * len(found)
    now = bench.queue.state(id)
    assert now is not None
    disturbed = until(bench.queue, id, lambda state: state.step > now.step + 20)
    bench.queue.cancel(id)
    finished(bench.queue, id)
    quiet = bench.queue.submit(spec)
    alone = until(bench.queue, quiet, lambda state: state.step >= disturbed.step)
    assert alone.losses[: disturbed.step] == disturbed.losses
    bench.queue.cancel(quiet)
    finished(bench.queue, quiet)


def test_the_store_of_a_run_is_a_private_file_and_is_removed_with_it(bench: Bench, places: Path) -> None:
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    (folder,) = places.glob("shardscope-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [file.name for file in folder.iterdir()] == ["store"]
    bench.queue.cancel(id)
    finished(bench.queue, id)
    assert not folder.exists()


def test_a_missing_folder_for_temporary_files_is_named_and_runs_work_once_it_exists(bench: Bench, places: Path) -> None:
    away = places.rename(places.with_name("away"))
    state = finished(bench.queue, bench.queue.submit(small()))
    away.rename(places)
    assert state.phase == "failed"
    assert state.message.startswith(f"no folder for temporary files can be made: {places}/shardscope-")
    assert finished(bench.queue, bench.queue.submit(small())).phase == "done"
