"""How long the planner takes: GPT-3 175B on 1,024 H100, all layouts weighed, and then the best of them replayed.

    python -m benchmarks.search [--model gpt3-175b] [--ranks 1024] [--global-batch 1536] [--times 5]

User time of this process, which others on the machine do not lengthen, beside the wall clock; the median of some times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from engine.catalog import model
from engine.devices import device
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.papers.accounting import accounting
from engine.predict.planner.candidates import candidates
from engine.predict.planner.search import MIXED, search
from engine.predict.speed.cost import Cost
from engine.predict.speed.pace import estimate
from engine.predict.speed.rates import Assumptions


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
    print(f"{'':42}{'user s':>8}{'wall s':>8}")
    parts: dict[str, Callable[[], object]] = {
        "layouts that fit the rules": lambda: candidates(shape, ranks, batch),
        "time of a step, in closed form": lambda: estimate(Cost(shape, MIXED, grid, gpu, Assumptions())),
        "memory": lambda: accounting("engine")(shape, MIXED, grid),
        "traffic": lambda: bulk_traffic(shape, MIXED, grid),
        "all layouts weighed, as one table": lambda: search(shape, ranks, gpu, batch, replayed=0),
        "the same, and the best 20 replayed": lambda: search(shape, ranks, gpu, batch),
    }
    for name, part in parts.items():
        user, wall = zip(*(_timed(part) for _ in range(chosen.times)), strict=True)
        print(f"{name:42}{statistics.median(user):8.3f}{statistics.median(wall):8.3f}")


def _timed(part: Callable[[], object]) -> tuple[float, float]:
    user, wall = time.process_time(), time.perf_counter()
    part()
    return time.process_time() - user, time.perf_counter() - wall


if __name__ == "__main__":
    main()
