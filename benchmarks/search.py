"""The time of a search: GPT-3 175B on 1,024 H100, all layouts by formula, and then the best of them simulated.

    python -m benchmarks.search [--model gpt3-175b] [--ranks 1024] [--global-batch 1536] [--times 5]

The first search runs in a new process, as on the command line. Later searches use what the process has cached of the model and
its schedules. It prints medians of CPU time and of wall-clock time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from engine.catalog import model
from engine.devices import DeviceSpec, device
from engine.papers.accounting import accounting
from engine.planner.candidates import candidates
from engine.planner.search import MIXED, search
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import estimate
from engine.spec import ModelSpec


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="gpt3-175b")
    options.add_argument("--device", default="h100-80gb")
    options.add_argument("--ranks", type=int, default=1024)
    options.add_argument("--global-batch", type=int, default=1536)
    options.add_argument("--times", type=int, default=5)
    chosen = options.parse_args()
    shape, gpu, ranks, batch = model(chosen.model), device(chosen.device), chosen.ranks, chosen.global_batch
    grid = candidates(shape, ranks, batch)
    print(f"{len(grid):,} layouts of {chosen.model} on {ranks:,} × {gpu.name}, median of {chosen.times}")
    print(f"{'':42}{'CPU s':>8}{'wall s':>8}")
    _print("the first search of a process", [_first(shape, ranks, gpu, batch) for _ in range(chosen.times)])
    parts: dict[str, Callable[[], object]] = {
        "layouts that fit the rules": lambda: candidates(shape, ranks, batch),
        "time of a step, in closed form": lambda: estimate(Cost(shape, MIXED, grid, gpu, Assumptions())),
        "memory, later": lambda: accounting("engine")(shape, MIXED, grid),
        "traffic": lambda: bulk_traffic(shape, MIXED, grid),
        "all layouts weighed, as one table, later": lambda: search(shape, ranks, gpu, batch, simulate_best=0),
        "a later search: the best 20 simulated too": lambda: search(shape, ranks, gpu, batch),
    }
    search(shape, ranks, gpu, batch)
    for name, part in parts.items():
        _print(name, [_timed(part) for _ in range(chosen.times)])


def _print(name: str, times: list[tuple[float, float]]) -> None:
    user, wall = zip(*times, strict=True)
    print(f"{name:42}{statistics.median(user):8.3f}{statistics.median(wall):8.3f}")


def _first(shape: ModelSpec, ranks: int, gpu: DeviceSpec, batch: int) -> tuple[float, float]:
    """The times of a search in a new process, without the start of the process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_searched, shape, ranks, gpu, batch).result()


def _searched(shape: ModelSpec, ranks: int, gpu: DeviceSpec, batch: int) -> tuple[float, float]:
    return _timed(lambda: search(shape, ranks, gpu, batch))


def _timed(part: Callable[[], object]) -> tuple[float, float]:
    user, wall = time.process_time(), time.perf_counter()
    part()
    return time.process_time() - user, time.perf_counter() - wall


if __name__ == "__main__":
    main()
