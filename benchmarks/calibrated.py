"""Predicted step times on a calibrated processor against runs, on random specs of one and two ranks.

    python -m benchmarks.calibrated --device mine.json [--seed 0] [--specs 40]

The time of one rank is the CPU time of its actions, and that of two is their fastest step, since other programs on the machine
make them slower. `python -m engine calibrate` writes the device's file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.draw import specs
from benchmarks.running import ended
from engine import store
from engine.devices import device
from engine.launch.calibration.client import step_seconds
from engine.launch.queue.run_queue import RunQueue
from engine.launch.recording.client import with_ledgers
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.spec import RunSpec

_STEPS = 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", required=True, metavar="NAME|FILE.json")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--specs", type=int, default=40)
    chosen = options.parse_args()
    here, errors = device(chosen.device), list[float]()
    with tempfile.TemporaryDirectory() as home, RunQueue(Path(home), unwatched_s=None) as queue:
        small = (spec for spec in specs(chosen.seed) if spec.layout.ranks <= 2 and not spec.generate.skip_training)
        for spec in map(_with_steps, islice(small, chosen.specs)):
            ours, _ = with_ledgers(partial(simulated, spec, here, Assumptions()))
            took = step_seconds(store.load(ended(queue, spec).folder))
            layout, error = spec.layout, 100 * (ours / took - 1)
            print(
                f"{spec.model.family:12} {layout.code:12} {layout.schedule:12} hidden {spec.model.hidden:4} "
                f"{spec.workload.precision} {1e3 * took:9.1f} ms, predicted {1e3 * ours:9.1f}: {error:+.0f} %",
                flush=True,
            )
            errors.append(abs(error))
    print(f"\nmedian error {statistics.median(errors):.0f} %, largest {max(errors):.0f} %")


def _with_steps(spec: RunSpec) -> RunSpec:
    workload = spec.workload.model_copy(update={"steps": _STEPS})
    return spec.model_copy(update={"workload": workload, "parity": False})


if __name__ == "__main__":
    main()
