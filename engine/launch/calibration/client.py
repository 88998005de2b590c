"""Measures this machine as a device: `program.py` in a process of its own, and a small run. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine import store
from engine.devices import DeviceSpec
from engine.launch.host.client import environment, messages
from engine.launch.queue.following import follow, saved_folder
from engine.launch.queue.run_queue import RunQueue
from engine.launch.recording.client import with_ledgers
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.spec import ModelSpec, RequestError, RunSpec, WorkloadSpec, sentence
from engine.tables import RunResult

# A step of it is launches and nearly nothing else.
_SMALL = RunSpec(
    model=ModelSpec(layers=6, hidden=32, heads=4, seq=16),
    workload=WorkloadSpec(microbatches=4, microbatch_size=1, steps=20),
)
_NO_LINK = {"intra_latency": 4e-6, "intra_bandwidth": 32e9}  # of a single GPU: PCIe 4.0, which nobody has measured here


def calibrate(kind: str, name: str, progress: Callable[[str], None] = lambda text: None, least_s: float = 0.2) -> DeviceSpec:
    """Measure. `kind`: "cpu" or "cuda". `least_s`: seconds for each of some twenty measurements.

    Raises `RequestError` if there is no such device, and `RunError`.
    """
    progress("products, attention, memory, and the link between two ranks")
    found = measured(kind, least_s)
    made = device_of(kind, name, found)
    progress("launches, in a run of a small model")
    return made.model_copy(update={"launch_us": _launch_us(made, gpus=kind == "cuda")})


def measured(kind: str, least_s: float) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "engine.launch.calibration.program", "--device", kind, "--least", str(least_s)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=messages(), env=environment(gpus=kind == "cuda"), check=False)
    if answer.returncode:
        raise RequestError(sentence("{kind} could not be measured; what its process said stands above", kind=kind))
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def device_of(kind: str, name: str, found: dict[str, Any]) -> DeviceSpec:
    """The device of these figures. A processor has no context, and kernels that it works off itself."""
    figures = _NO_LINK | found
    beside: dict[str, Any] = {}
    if kind == "cpu":
        nothing = ("context_bytes", "pair_communicator_bytes", "communicator_bytes", "workspace_bytes")
        beside = dict.fromkeys(nothing, 0) | {"fragmentation": 0.0, "launches_ahead": False}
    return DeviceSpec(
        name=name,
        **figures,
        **beside,
        inter_bandwidth=figures["intra_bandwidth"],
        inter_latency=figures["intra_latency"],
        source=f"measured on this machine ({kind}) by engine calibrate; other nodes are taken to be as near as this one",
    )


def _launch_us(device: DeviceSpec, gpus: bool) -> float:
    """Microseconds of a launch, such that a step of the small run takes as long as it took. `gpus`: whether it may use a GPU."""
    with tempfile.TemporaryDirectory(prefix="shardscope-") as folder, RunQueue(Path(folder), None, gpus=gpus) as queue:
        took = step_seconds(store.load(saved_folder(follow(queue, queue.submit(_SMALL)))))
    without, each = (
        with_ledgers(partial(simulated, _SMALL, device.model_copy(update={"launch_us": us}), Assumptions()))[0]
        for us in (0.0, 1000.0)
    )
    return float(max(0.0, 1000 * (took - without) / (each - without)))


def step_seconds(result: RunResult) -> float:
    """Seconds of a run's step. Other programs on the machine must not count.

    Of one rank on a processor it is the CPU time of its actions in a steady step. Ranks that wait for each other need the clock:
    of their steps the fastest is taken.
    """
    if result.spec.layout.ranks == 1 and result.environment["device"] == "cpu":
        spans = result.tables["spans"]
        return float(spans[spans["lane"] == "compute"]["cpu_ns"].sum()) / 1e9
    return float(result.tables["steps"]["step_ns"].min()) / 1e9
