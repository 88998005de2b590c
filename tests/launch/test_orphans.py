"""However the program that started a run ends, no rank and no host outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.launch.bench import all_end, hang_instead_of_torch, host_of
from tests.patience import PATIENCE_S

SERVER = """
import sys
from pathlib import Path
from engine.launch.queue.run_queue import RunQueue
from engine.spec import ModelSpec, LayoutSpec, RunSpec, WorkloadSpec

queue = RunQueue(Path(sys.argv[1]))
model = ModelSpec(layers=2, hidden=16, heads=2, seq=16)
id = queue.submit(RunSpec(model=model, layout=LayoutSpec(dp=2, tp=2), workload=WorkloadSpec(steps=10000)))
state = queue.state(id)
while not (state.step > 0 if sys.argv[2] == "running" else state.phase == "starting"):
    state = queue.wait(id, state)
print(state.phase, flush=True)
sys.stdin.readline()
"""


ENDS = [("running", "SIGKILL"), ("running", "leaves"), ("starting", "SIGKILL"), ("stopped", "SIGKILL"), ("stopped", "leaves")]


@pytest.mark.parametrize(("stage", "end"), ENDS)
def test_nothing_outlives_the_server(tmp_path: Path, stage: str, end: str) -> None:
    """Stage "stopped": the run is active, and its host has been stopped."""
    runs, path = tmp_path / "runs", tmp_path / "path"
    path.mkdir()
    environment = os.environ | ({"PYTHONPATH": hang_instead_of_torch(path)} if stage == "starting" else {})
    command = [sys.executable, "-c", SERVER, str(runs), "starting" if stage == "starting" else "running"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == command[-1]
            host = host_of(psutil.Process(server.pid))
            left = [host, *host.children()]
            assert len(left) == (1 if stage == "starting" else 5)
            if stage == "stopped":
                host.suspend()
            if end == "leaves":
                server.communicate("leave\n", timeout=PATIENCE_S)
            else:
                server.send_signal(getattr(signal, end))
            assert all_end(left)
            assert list(runs.iterdir()) == []
        finally:
            server.kill()
