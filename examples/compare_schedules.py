"""Run one layout under several schedules, and print each stage's peak memory, measured beside predicted.

    python -m examples.compare_schedules [gpipe 1f1b …] [--layout dp1.tp1.pp4] [--microbatches 8]

A stage's memory is that of its fullest rank. The model is gpt-tiny, so that it runs anywhere.
"""

from __future__ import annotations

import argparse
import sys

from engine import LayoutSpec, RequestError, RunResult, RunSpec, WorkloadSpec, predict, run_each


def stages(result: RunResult) -> list[int]:
    """Bytes at the peak of each stage's fullest rank."""
    ranks = result.tables["memory_peak"].groupby(["pp", "rank"])["bytes"].sum()
    return [int(size) for size in ranks.groupby("pp").max()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("schedules", nargs="*", default=["gpipe", "1f1b", "zb-h1"])
    options.add_argument("--layout", default="dp1.tp1.pp4")
    options.add_argument("--microbatches", type=int, default=8)
    chosen = options.parse_args()
    layouts = [LayoutSpec.model_validate(LayoutSpec.degrees(chosen.layout) | {"schedule": name}) for name in chosen.schedules]
    specs = [RunSpec(layout=layout, workload=WorkloadSpec(steps=2, microbatches=chosen.microbatches)) for layout in layouts]
    print(f"{'schedule':12}{'stage':>5}{'measured':>14}{'predicted':>14}  bytes at the peak")
    for spec, measured in zip(specs, run_each(specs), strict=True):
        for stage, both in enumerate(zip(stages(measured), stages(predict(spec)), strict=True)):
            print(f"{spec.layout.schedule:12}{stage:>5}{both[0]:>14,}{both[1]:>14,}")


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        sys.exit(str(error))
