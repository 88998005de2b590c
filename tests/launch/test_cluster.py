"""Several machines, played by two torchrun agents on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine import store
from engine.spec import RequestError, RunSpec
from tests.launch.bench import Bench, finished, small
from tests.patience import PATIENCE_S

# Where a process is, as torchrun tells it.
PLACE = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


def torchrun(spec: RunSpec, tmp_path: Path, nodes: int, ranks_each: int) -> list[tuple[int, str]]:
    """Run `spec` with an agent a node. Returns exit status and standard error of each."""
    file = tmp_path / "spec.json"
    file.write_text(spec.model_dump_json())
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks_each}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "-m", "engine.launch.cluster"]
    command += ["--spec", str(file), "--out", str(tmp_path / "runs")]
    agents = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(nodes)]
    try:
        said = [agent.communicate(timeout=PATIENCE_S)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    return [(agent.returncode, text) for agent, text in zip(agents, said, strict=True)]


def test_two_agents_measure_what_the_warm_host_measures(bench: Bench, tmp_path: Path) -> None:
    spec = small("dp1.tp2.pp2", parity=True)
    here = finished(bench.queue, bench.queue.submit(spec))
    assert here.folder is not None
    agents = torchrun(spec, tmp_path, nodes=2, ranks_each=2)
    assert [status for status, _ in agents] == [0, 0], agents
    said = "".join(text for _, text in agents)
    assert "step 3 of 3, loss " in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"saved {folder}" in said
    one, two = store.load(here.folder), store.load(folder)
    assert two.spec == spec
    assert two.tables.keys() == one.tables.keys()
    for name in ("traffic", "memory_peak", "parity"):
        assert two.tables[name].equals(one.tables[name]), name
    assert list(two.tables["steps"]["loss"]) == list(one.tables["steps"]["loss"])
    assert sorted(two.tables["process"]["rank"]) == [0, 1, 2, 3]


def test_a_rank_that_fails_on_a_cluster_says_so_itself(tmp_path: Path) -> None:
    ((status, said),) = torchrun(small("dp1.tp2.pp1", "raise:1@2"), tmp_path, nodes=1, ranks_each=2)
    assert status == 1
    assert "rank 1 (dp 0, tp 1, pp 0) failed in step " in said
    assert "in _act_out" in said
    assert list((tmp_path / "runs").glob("*")) == []


def test_without_torchrun_it_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine.launch.cluster", "--spec", "spec.json", "--out", str(tmp_path)]
    bare = {name: value for name, value in os.environ.items() if name not in PLACE}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=bare, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr == "RANK is not set: this is one rank of a run, to be started by torchrun\n"


def test_as_many_processes_as_ranks_are_needed() -> None:
    from engine.launch import cluster  # here, since it imports torch

    assert cluster.fitting(small("dp2.tp2.pp1"), 4) == small("dp2.tp2.pp1")
    with pytest.raises(RequestError, match=r"dp2\.tp2\.pp1 is 4 ranks and torchrun started 6; nnodes × nproc-per-node must be 4"):
        cluster.fitting(small("dp2.tp2.pp1"), 6)
