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
        own = {os.readlink(path) for path in Path(f"/proc/{rank.pid}/fd").iterdir()}
        for line in Path(f"/proc/{rank.pid}/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in own:
                address, port = local.split(":")
                found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def test_a_run_has_a_network_of_its_own_where_the_system_allows_it(bench: Bench) -> None:
    code = "from engine.launch.isolation import isolate_network; print(isolate_network())"
    allowed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    id = bench.queue.submit(small(steps=10_000))
    until(bench.queue, id, lambda state: state.step > 0)
    if allowed:
        ranks = bench.ranks()
        networks = {os.readlink(f"/proc/{rank.pid}/ns/net") for rank in (bench.host, *ranks)}
        assert len(networks) == 1
        assert os.readlink("/proc/self/ns/net") not in networks
        assert ports(ranks)
        for address in ports(ranks):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=PATIENCE_S)
    bench.queue.cancel(id)
    finished(bench.queue, id)


def test_connections_of_others_to_a_runs_ports_do_not_disturb_it(bench: Bench) -> None:
    quiet = finished(bench.queue, bench.queue.submit(small(steps=100)))
    id = bench.queue.submit(small(steps=100))
    until(bench.queue, id, lambda state: state.phase == "running")
    knocked = ports([bench.host, *bench.ranks()])
    for address in knocked:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)):
            with suppress(ConnectionRefusedError), socket.create_connection(address, timeout=PATIENCE_S) as stranger:
                stranger.sendall(said)
    assert {host for host, _ in knocked} <= {"127.0.0.1", "::1"}
    state = finished(bench.queue, id)
    assert (state.phase, state.losses) == ("done", quiet.losses)


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
