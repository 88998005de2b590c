"""A run on two hosts, each with a network and a clock of its own, equals a run on one. What goes wrong is told in a sentence."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest

from engine import store
from engine.export import settings
from engine.spec import RunSpec
from engine.tables import RunResult
from tests.launch.bench import Bench, finished, small
from tests.launch.two_hosts import Host, TwoHosts
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.two_hosts

PORT = 29500
LIMIT_S = 240.0  # of a run that is cut off: it ends long before


@pytest.fixture
def two() -> Iterator[TwoHosts]:
    with TwoHosts() as two:
        yield two
        assert [host.processes() for host in two.hosts] == [[], []], "something of the run is left"


def started(two: TwoHosts, specs: Sequence[Path], out: Path, setting: str = "") -> list[subprocess.Popen[str]]:
    """torchrun on each host, as the script for Slurm starts it. `setting`: an environment variable, NAME=VALUE."""
    first, *_ = two.hosts
    agents = []
    for number, (host, spec) in enumerate(zip(two.hosts, specs, strict=True)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
        command += ["--node-rank", str(number), "--master-addr", first.address, "--master-port", str(PORT)]
        command += ["-m", "engine.launch.cluster", "--spec", str(spec), "--out", str(out)]
        whole = host.command("env", *([setting] if setting else []), *command)
        agents.append(subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return agents


def ended(agents: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status of each, and what it still had to say."""
    return [(agent.returncode, said) for agent in agents for said in [agent.communicate(timeout=PATIENCE_S)[0]]]


def file_of(spec: RunSpec, path: Path) -> Path:
    path.write_text(spec.model_dump_json(), encoding="utf-8")
    return path


def slurm(two: TwoHosts, folder: Path) -> dict[str, str]:
    """An environment in which `scontrol` and `srun` do on two hosts what Slurm's do on two nodes of a job."""
    tasks = [
        f'SLURM_NODEID={number} {shlex.join(host.command(folder=folder.parent))} "$@" &' for number, host in enumerate(two.hosts)
    ]
    programs = {
        "scontrol": ["for host in " + " ".join(host.address for host in two.hosts) + "; do echo $host; done"],
        "srun": [
            '[ "$1" = --kill-on-bad-exit=1 ] || exit 2',
            "shift",
            *tasks,
            "status=0",
            *["wait -n || status=1"] * 2,
            "exit $status",
        ],
    }
    for name, lines in programs.items():
        path = folder / name
        path.write_text("\n".join(["#!/bin/bash", *lines, ""]), encoding="ascii")
        path.chmod(0o755)
    own = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host-[a-b]", "VENV": sys.prefix}
    return {**os.environ, **own, "PATH": f"{folder}:{os.environ['PATH']}"}


def the_run(out: Path) -> RunResult:
    (folder,) = out.iterdir()
    return store.load(folder)


def hidden(host: Host, folder: Path) -> None:
    """The host gets a folder of its own in place of a shared one."""
    host.do("mount", "-t", "tmpfs", "tmpfs", str(folder))


def test_a_run_on_two_hosts_equals_a_run_on_one(
    two: TwoHosts, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small("dp1.tp2.pp2", parity=True)
    here = finished(bench.queue, bench.queue.submit(spec))
    assert here.folder is not None
    file, out = file_of(spec, tmp_path / "spec.json"), tmp_path / "runs"
    (first, said), (second, _) = ended(started(two, [file, file], out))
    assert (first, second) == (0, 0), said
    one, run = store.load(here.folder), the_run(out)
    assert run.spec == spec
    assert run.tables.keys() == one.tables.keys()
    for name in ("traffic", "memory_peak", "parity"):
        assert run.tables[name].equals(one.tables[name]), name
    assert list(run.tables["steps"]["loss"]) == list(one.tables["steps"]["loss"])
    # Stages 0 and 1 are on different hosts: what pp sends goes between them, what tp sends does not.
    traffic = run.tables["traffic"]
    assert run.environment["nodes"] == [0, 0, 1, 1]
    assert run.summary["wire_bytes_between_nodes"] == traffic.loc[traffic["axis"] == "pp", "wire_bytes"].sum() > 0
    assert "nodes" not in one.environment
    error_ns = run.environment["clock_error_ns"]
    assert f"their clocks are aligned within {error_ns / 1e6:.3f} ms" in said
    messages = too_early(run.tables["spans"], error_ns)
    with capsys.disabled():
        print(
            f"\ntwo hosts ({two.link}): 1 run equals that on one; clocks {two.apart_s:,} s apart agree within "
            f"{error_ns / 1e6:.2f} ms, {messages} messages, 0 received before they were sent"
        )


def too_early(spans: pd.DataFrame, error_ns: int) -> int:
    """Assert that no message from rank 0 to rank 2, or back, ended before it began. Returns how many there were."""
    count = 0
    for sender, receiver in ((0, 2), (2, 0)):
        sent, received = (
            spans[(spans["rank"] == rank) & (spans["kind"] == kind) & (spans["axis"] == "pp")].set_index(["chunk", "microbatch"])
            for rank, kind in ((sender, "send"), (receiver, "recv"))
        )
        pairs = list(zip(sorted(sent["start_ns"]), sorted(received["end_ns"]), strict=True))
        assert all(end >= start - error_ns for start, end in pairs), (pairs, error_ns)
        count += len(pairs)
    assert count
    return count


@pytest.mark.nightly
def test_what_two_hosts_do_not_share_is_told_in_a_sentence(
    two: TwoHosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of runs, folders of specs, a spec that is another, an interface that one of them has not."""
    _, other = two.hosts
    spec, out, told = small("dp1.tp2.pp2"), tmp_path / "runs", 0
    file, changed = file_of(spec, tmp_path / "spec.json"), file_of(small("dp1.tp2.pp2", seed=1), tmp_path / "other.json")
    out.mkdir()

    for status, said in ended(started(two, [file, changed], out)):
        assert status == 1
        assert "ranks 2, 3 on host-b: another spec than that of rank 0; workload.seed is 1 there and 0 on rank 0" in said
        told += 1

    for status, said in ended(started(two, [file, file], out, "GLOO_SOCKET_IFNAME=eth9")):
        assert status == 1
        assert re.search(r"GLOO_SOCKET_IFNAME is eth9, and host-[ab] has lo, to-[ab]", said), said
        told += 1

    private = tmp_path / "private"
    private.mkdir()
    mine = file_of(spec, private / "spec.json")
    hidden(other, private)
    for status, said in ended(started(two, [mine, mine], out)):
        assert status == 1
        assert f"rank 2 on host-b: cannot read the spec {mine}: No such file or directory" in said
        told += 1
    assert list(out.iterdir()) == []

    hidden(other, out)
    (first, _), (second, said) = ended(started(two, [file, file], out))
    assert (first, second) == (0, 0), said
    assert f"the run is saved on host-a alone: host-a and host-b do not share {out}" in said
    assert the_run(out).spec == spec
    told += 1
    with capsys.disabled():
        print(f"\nwhat two hosts do not share: {told} of 7 told in a sentence")


@pytest.mark.nightly
def test_a_host_that_is_cut_off_is_told_of_and_nothing_is_left(
    two: TwoHosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = file_of(small("dp1.tp2.pp2", steps=10_000, time_limit=LIMIT_S), tmp_path / "spec.json"), tmp_path / "runs"
    agents = started(two, [file, file], out)
    _, last = agents
    assert last.stdout
    assert any(line.startswith("step 9 of") for line in last.stdout)
    two.cut()
    cut = time.monotonic()
    for (status, said), gone in zip(ended(agents), ("host-b", "host-a"), strict=True):
        assert status == 1
        assert re.search(rf"lost the connection to rank \d \(.*\) on {gone}: its machine does not answer", said), said
        assert "time limit" not in said
    took = time.monotonic() - cut
    assert took < LIMIT_S
    assert not list(out.glob("*"))
    with capsys.disabled():
        print(f"\na cable is pulled in step 9: 2 hosts, 2 say which host does not answer, both ended after {took:.1f} s")


@pytest.mark.nightly
def test_the_script_for_slurm_runs_on_two_hosts(two: TwoHosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the engine's folder, of which the script makes a copy here. Two nodes of two ranks are enough."""
    spec = small("dp2.tp2.pp1")
    script = settings(spec, "slurm")
    assert script.count("--nnodes 1 --nproc-per-node 4") == 2
    script = script.replace("--nnodes 1 --nproc-per-node 4", "--nnodes 2 --nproc-per-node 2")
    (tmp_path / "engine").symlink_to(Path("engine").absolute())
    programs = tmp_path / "programs"
    programs.mkdir()
    done = subprocess.run(
        ["bash"], input=script, cwd=tmp_path, env=slurm(two, programs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path / "runs")
    assert run.spec == spec
    assert run.environment["nodes"] == [0, 0, 1, 1]
    assert (tmp_path / "shardscope-7.json").exists()
    with capsys.disabled():
        print("\nthe script for Slurm, on two hosts: 1 run saved")
