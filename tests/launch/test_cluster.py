"""A cluster of several nodes, simulated by two torchrun agents on this machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from select import select
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from engine import store
from engine.launch.cluster.agreement import (
    RankConfig,
    Rendezvous,
    Route,
    agree,
    check_reached,
    common_address,
    difference,
    interface,
)
from engine.launch.cluster.torchrun import check_world_size
from engine.spec import RequestError, RunSpec
from engine.wire import WireError
from tests.launch.bench import Bench, all_end, finished, small
from tests.patience import PATIENCE_S

# The environment variables that torchrun sets.
PLACE = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


def started(specs: list[RunSpec], tmp_path: Path, ranks_each: int) -> list[subprocess.Popen[str]]:
    """Start an agent for each node, each with its own spec."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    agents = []
    for node, spec in enumerate(specs):
        file = tmp_path / f"spec-{node}.json"
        file.write_text(spec.model_dump_json())
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(specs)}", f"--nproc-per-node={ranks_each}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", "-m", "engine.launch.cluster"]
        command += ["--spec", str(file), "--out", str(tmp_path / "runs")]
        agents.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    return agents


def ended(agents: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and the unread standard error of each."""
    try:
        said = [agent.communicate(timeout=PATIENCE_S)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    return [(agent.returncode, text) for agent, text in zip(agents, said, strict=True)]


def torchrun(spec: RunSpec, tmp_path: Path, nodes: int, ranks_each: int) -> list[tuple[int, str]]:
    """Run `spec` with an agent for each node. Returns exit status and standard error of each."""
    return ended(started([spec] * nodes, tmp_path, ranks_each))


def test_a_run_on_two_nodes_equals_a_run_of_the_warm_host(bench: Bench, tmp_path: Path) -> None:
    spec = small("dp1.tp2.pp2", parity=True)
    here = finished(bench.queue, bench.queue.submit(spec))
    assert here.folder is not None
    agents = torchrun(spec, tmp_path, nodes=2, ranks_each=2)
    assert [status for status, _ in agents] == [0, 0], agents
    said = "".join(text for _, text in agents)
    assert "step 3 of 3, loss " in said
    for phase in ("tracing one more step", "comparing with the unsharded model", "saving the run"):
        assert f"\n{phase}\n" in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"saved {folder}" in said
    one, two = store.load(here.folder), store.load(folder)
    assert two.spec == spec
    assert two.tables.keys() == one.tables.keys()
    for name in ("traffic", "memory_peak", "parity"):
        assert two.tables[name].equals(one.tables[name]), name
    assert list(two.tables["steps"]["loss"]) == list(one.tables["steps"]["loss"])
    assert sorted(two.tables["process"]["rank"]) == [0, 1, 2, 3]


def test_a_rank_that_fails_on_a_cluster_prints_its_own_error(tmp_path: Path) -> None:
    ((status, said),) = torchrun(small("dp1.tp2.pp1", "raise:1@2"), tmp_path, nodes=1, ranks_each=2)
    assert status == 1
    assert "rank 1 (dp 0, tp 1, pp 0) failed in step " in said
    assert "in _inject_fault" in said
    assert list((tmp_path / "runs").glob("*")) == []


def test_without_torchrun_the_error_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine.launch.cluster", "--spec", "spec.json", "--out", str(tmp_path)]
    bare = {name: value for name, value in os.environ.items() if name not in PLACE}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=bare, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr == "RANK is not set: this is one rank of a run, to be started by torchrun\n"


def test_another_number_of_processes_than_ranks_is_refused() -> None:
    assert check_world_size(small("dp2.tp2.pp1"), 4) == small("dp2.tp2.pp1")
    with pytest.raises(RequestError, match=r"dp2\.tp2\.pp1 is 4 ranks and torchrun started 6; nnodes × nproc-per-node must be 4"):
        check_world_size(small("dp2.tp2.pp1"), 6)


def test_nodes_with_different_specs_report_it_and_run_nothing(tmp_path: Path) -> None:
    ours, theirs = small("dp1.tp1.pp2"), small("dp1.tp1.pp2", seed=1)
    agents = ended(started([ours, theirs], tmp_path, ranks_each=1))
    assert [status for status, _ in agents] == [1, 1]
    for _, said in agents:  # torchrun chooses which of the two nodes is the first
        assert said.count(": another spec than that of rank 0; workload.seed is ") == 1
        assert "rank 1 on " in said
        assert "loss" not in said
    assert not (tmp_path / "runs").exists()


def test_ranks_of_a_killed_agent_end_and_are_named_at_once(tmp_path: Path) -> None:
    spec = small("dp1.tp1.pp2", steps=10_000)
    agents = started([spec, spec], tmp_path, ranks_each=1)
    tells = first_to_say("loss", agents)
    (other,) = [agent for agent in agents if agent is not tells]
    orphans = psutil.Process(other.pid).children(recursive=True)
    other.kill()
    (status, said), _ = ended([tells, other])
    assert status == 1
    assert re.search(r"lost the connection to rank \d \(dp 0, tp 0, pp \d\) on .*: its connection (was closed|broke)", said)
    assert "time limit" not in said
    assert all_end(orphans)


def first_to_say(what: str, agents: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """The first agent that prints `what`. The output of all until then is read."""
    said = {agent.stderr.fileno(): b"" for agent in agents if agent.stderr}
    of = {agent.stderr.fileno(): agent for agent in agents if agent.stderr}
    while readable := select(list(said), [], [], PATIENCE_S)[0]:
        for fd in readable:
            said[fd] += os.read(fd, 1 << 16)
            if what.encode() in said[fd]:
                return of[fd]
    raise AssertionError(said)


# ------------------------------------------------------------------------------------------------ agreement of ranks


CONFIG = RankConfig({"model": {"layers": 2}, "workload": {"steps": 3, "seed": 0}}, text="a", engine="b", torch="2.13.0")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"spec": {"model": {"layers": 4}, "workload": CONFIG.spec["workload"]}},
            "another spec than that of rank 0; model.layers is 4 there and 2",
        ),
        ({"spec": {"model": {"layers": 4}, "workload": {}}}, r"model.layers is 4 there and 2 on rank 0 \(and 2 more\)"),
        ({"text": "x"}, "another text to train on"),
        ({"torch": "2.12.0"}, "torch 2.12.0, where rank 0 has torch 2.13.0"),
        ({"engine": "x"}, "another version of this program's engine"),
        ({"spec": {}, "refused": "cannot read the spec"}, "rank 1 on b: cannot read the spec"),
    ],
)
def test_differences_between_ranks_are_named_with_the_ranks(changes: dict[str, Any], says: str) -> None:
    other = replace(CONFIG, **changes)
    told = difference([CONFIG, other, CONFIG, other], ["a", "b", "a", "b"])
    assert told is not None
    assert re.search(says, told)
    assert told.startswith("rank 1 on b: " if "refused" in changes else "ranks 1, 3 on b: ")
    assert difference([CONFIG] * 3, ["a"] * 3) is None


@dataclass(frozen=True)
class OtherTerms(RankConfig):
    """Terms of another version of this program."""

    compiler: str = ""


HERE = Route("a", "127.0.0.1", "127.0.0.1")


def nowhere(address: str) -> int:
    raise OSError(f"no port is free at {address}")


@pytest.mark.parametrize(
    ("config", "route", "first", "says"),
    [
        (OtherTerms(**asdict(CONFIG)), HERE, RequestError, "rank 1 on a: another version of this program's engine"),
        (
            replace(CONFIG, engine=3),
            HERE,
            WireError,
            "rank 0 on .*: what rank 1 sent cannot be read: fields of its configuration",
        ),
        (CONFIG, replace(HERE, own="gateway"), WireError, "rank 0 on .*: what rank 1 sent cannot be read: 'gateway'"),
        (CONFIG, HERE, OSError, r"rank 0 on .*: no port is free at 127\.0\.0\.1"),
    ],
)
def test_all_ranks_report_why_rank_0_cannot_answer(config: RankConfig, route: Route, first: type[Exception], says: str) -> None:
    store = dist.HashStore()
    own = [(CONFIG, HERE), (config, route), (CONFIG, HERE)]
    with ThreadPoolExecutor(len(own)) as ranks:
        ends = [
            ranks.submit(agree, store, rank, len(own), *of, listen=nowhere, set_status=lambda status: None)
            for rank, of in enumerate(own)
        ]
    assert type(ends[0].exception()) is first
    for end in ends[1:]:
        with pytest.raises(RequestError, match=says):
            end.result()


def test_rank_0_is_reached_by_the_address_that_other_ranks_know() -> None:
    """Its own host name can resolve to 127.0.0.1."""
    at_home, away = Route("a", "127.0.0.1", "127.0.1.1"), Route("b", "10.0.0.2", "10.0.0.1")
    assert common_address([at_home, at_home, away]) == "10.0.0.1"
    assert common_address([Route("a", "10.0.0.1", "10.0.0.1"), away]) == "10.0.0.1"
    assert common_address([at_home, at_home]) == "127.0.0.1"


def test_the_interface_is_that_of_the_route_to_the_address() -> None:
    name = next(name for name, entries in psutil.net_if_addrs().items() if any(e.address == "127.0.0.1" for e in entries))
    route = Route.to("127.0.0.1", 1)
    assert (route.own, route.other) == ("127.0.0.1", "127.0.0.1")
    assert interface(route, Rendezvous("127.0.0.1", 1, "", ("a",))) == name
    assert interface(replace(route, own="192.0.2.1"), Rendezvous("127.0.0.1", 1, "", ("a",))) is None


def test_a_store_that_does_not_exist_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = there.getsockname()
        check_reached(*address, PATIENCE_S)
    with pytest.raises(
        RequestError, match=rf"torchrun's store at 127\.0\.0\.1:{address[1]}: Connection refused; .* --local-addr"
    ):
        check_reached(*address, PATIENCE_S)
