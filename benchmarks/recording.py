"""The overhead of recording in timed steps: the same run with the recorder, and with one that records nothing.

    python -m benchmarks.recording [--model gpt-tiny] [--steps 60]

It runs in one process and thread, so that only the recorder differs. Steps with and without recording alternate. It prints
medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.catalog import model
from engine.measure.recorder import Recorder, Span, TrafficKey
from engine.parallel.backend import choose_backend
from engine.parallel.comm import Comm
from engine.schedule import Action
from engine.spec import RunSpec, WorkloadSpec
from engine.topology import Mesh
from engine.worker import Trainer

MOST = 3  # percent of a timed step


class SwitchableRecorder(Recorder):
    """A recorder that records nothing and reads no clock while `off`."""

    off = False

    @contextmanager
    def action(self, action: Action, phase: str) -> Iterator[None]:
        if self.off:
            yield
        else:
            with super().action(action, phase):
                yield

    def start_call(self, key: TrafficKey, payload_bytes: int, wire_bytes: int) -> Span:
        return Span("comm", "", 0, 0, 0) if self.off else super().start_call(key, payload_bytes, wire_bytes)


class NoReports:
    """Reports to nobody."""

    def report(self, event: dict[str, Any]) -> None: ...

    def set_status(self, status: str) -> None: ...


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="gpt-tiny")
    options.add_argument("--steps", type=int, default=60)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    spec = RunSpec(model=model(chosen.model), workload=WorkloadSpec(steps=1))
    recorder = SwitchableRecorder()
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        comm = Comm.connect(store, Mesh({}), 0, choose_backend(1, 0), 60.0, recorder)
        trainer = Trainer(spec, comm, NoReports())
        times: dict[bool, list[float]] = {False: [], True: []}
        for step in range(2 * chosen.steps + 6):
            recorder.off = step % 2 == 1
            began = time.perf_counter()
            trainer.run_step(step + 1)
            if step >= 6:  # the first steps warm up
                times[recorder.off].append(time.perf_counter() - began)
        comm.disconnect()
    recorded, without = (statistics.median(times[off]) for off in (False, True))
    print(f"{chosen.model}, one rank, median of {chosen.steps} steps each, taking turns")
    print(f"{'recording':20}{1e3 * recorded:8.2f} ms")
    print(f"{'not recording':20}{1e3 * without:8.2f} ms")
    print(f"{'overhead':20}{100 * (recorded / without - 1):8.1f} %   (asked: at most {MOST} %)")


if __name__ == "__main__":
    main()
