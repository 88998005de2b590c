"""Time from the click to the finished result: the same run with a warm host and with torchrun.

    python -m benchmarks.first_result [--layout dp2.tp2.pp2] [--rounds 3]

The run is gpt-tiny, 3 steps and a traced step, saved. It prints medians. The two take turns, so that other load on the
machine affects both.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.running import ended
from engine.launch.queue.run_queue import RunQueue
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec

MOST_S = 1.5  # from the click to the finished result of 8 ranks


def warm(queue: RunQueue, spec: RunSpec) -> tuple[float, float]:
    """Seconds from the request to the saved folder, and until all ranks were ready to train."""
    began = time.perf_counter()
    run = ended(queue, spec)
    return time.perf_counter() - began, run.ready_s


def torchrun(spec: RunSpec, home: Path) -> float:
    """Seconds for the same with torchrun, which starts Python and imports torch in every rank."""
    path = home / "spec.json"
    path.write_text(spec.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(spec.layout.ranks),
        "--master-addr", "127.0.0.1", "--master-port", str(port),
        "-m", "engine.launch.cluster", "--spec", str(path), "--out", str(home / "cluster"),
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layout", default="dp2.tp2.pp2")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    layout = LayoutSpec.model_validate(LayoutSpec.degrees(chosen.layout))
    spec = RunSpec(layout=layout, workload=WorkloadSpec(steps=3))
    home = Path(tempfile.mkdtemp(prefix="shardscope-"))
    try:
        with RunQueue(home / "warm") as queue:
            warm(queue, spec)  # the host imports torch before its first run, which is not measured
            rounds = [(*warm(queue, spec), torchrun(spec, home)) for _ in range(chosen.rounds)]
    finally:
        shutil.rmtree(home)
    finished, ready, cold = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{layout.code}, {layout.ranks} ranks, 3 steps and trace, median of {chosen.rounds}")
    print(f"{'warm host, ranks ready to train':34}{ready:8.2f} s")
    print(f"{'warm host, result saved':34}{finished:8.2f} s   (asked: at most {MOST_S} s, on a quiet machine)")
    print(f"{'torchrun, result saved':34}{cold:8.2f} s{cold / finished:8.1f} times as long")


if __name__ == "__main__":
    main()
