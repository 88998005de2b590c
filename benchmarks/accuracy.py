"""Errors of predictions and dry runs against real runs, on random valid specs.

    python -m benchmarks.accuracy [--seed 0] [--specs 60] [--no-dry-run] [--ranks]

Memory: the error of each rank's total at its peak. Traffic: whether every row is equal, to the byte and to the call. There is a
line for each spec, with its worst rank, or with --ranks for each rank. The first line names the CPU instructions in use: with
ONEDNN_MAX_CPU_ISA=AVX2 in the environment, oneDNN uses no later ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from benchmarks.draw import specs
from benchmarks.machine import instruction_set
from benchmarks.running import ended
from engine import store
from engine.api import predict
from engine.command.output import print_table
from engine.launch.dry_run.client import dry_run
from engine.launch.queue.run_queue import RunQueue
from engine.launch.recording.client import with_ledgers
from engine.spec import RunSpec
from engine.tables import RunResult, memory_errors, traffic_differences

_LIMIT, _MEDIAN_LIMIT, _DRY_LIMIT = 0.01, 0.003, 0.001  # relative errors of totals: formula, its median, dry run


@dataclass(frozen=True)
class Outcome:
    """Relative errors of one spec: rank → predicted ÷ measured − 1."""

    spec: RunSpec
    formula: pd.Series[float]
    dry: pd.Series[float] | None
    traffic: bool  # whether predictions equal the measured traffic in every row
    action: bool  # whether the formula predicts the action at the peak of the fullest rank


def measure(spec: RunSpec, queue: RunQueue, home: Path, with_dry_run: bool) -> Outcome:
    formula = with_ledgers(lambda: predict(spec))
    measured = store.load(ended(queue, spec).folder)
    answers = [formula]
    dry = None
    if with_dry_run:
        dry_result = store.load(dry_run(spec, home / "dry"))
        answers.append(dry_result)
        dry = memory_errors(measured, dry_result)
    equal = all(traffic_differences(measured, answer).empty for answer in answers)
    return Outcome(spec, memory_errors(measured, formula), dry, equal, _same_peak_action(measured, formula))


def _same_peak_action(measured: RunResult, predicted: RunResult) -> bool:
    """Whether the measured curve of the fullest rank has its maximum in the predicted action."""
    rank = measured.summary["peak_rank"]
    curve = measured.tables["memory_curve"]
    totals = curve[curve["rank"] == rank].groupby(["t_ns", "action"])["bytes"].sum()
    highest = {action for (_, action), total in totals.items() if total == totals.max()}
    return predicted.summary["peak_action"] in highest


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--specs", type=int, default=60)
    options.add_argument("--no-dry-run", action="store_true", help="leave the dry runs out")
    options.add_argument("--ranks", action="store_true", help="a line for every rank")
    chosen = options.parse_args()
    print(instruction_set(), end="\n\n", flush=True)  # kernel workspace depends on it
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, RunQueue(Path(home), unwatched_s=None) as queue:
        drawn = islice(specs(chosen.seed), chosen.specs)
        outcomes = [measure(spec, queue, Path(home), not chosen.no_dry_run) for spec in drawn]
    print_table([row for outcome in outcomes for row in _rows(outcome, chosen.ranks)])
    _sum_up(outcomes)
    print(f"  {time.perf_counter() - began:.0f} s")


def _rows(outcome: Outcome, every_rank: bool) -> list[dict[str, str]]:
    errors = outcome.formula.abs().to_numpy()
    ranks = range(len(errors)) if every_rank else [int(errors.argmax())]
    return [_row(outcome, rank) for rank in ranks]


def _row(outcome: Outcome, rank: int) -> dict[str, str]:
    layout, workload = outcome.spec.layout, outcome.spec.workload
    levers = f"zero{layout.zero}{' sp' if layout.sequence_parallel else ''} {layout.recompute} {outcome.spec.attention}"
    return {
        "model": outcome.spec.model.family,
        "layout": layout.code,
        "schedule": layout.schedule,
        "levers": levers,
        "numbers": f"{workload.precision}/{workload.accumulate} {workload.optimizer}",
        "rank": str(rank),
        "formula": f"{outcome.formula[rank]:+.3%}",
        "dry_run": "" if outcome.dry is None else f"{outcome.dry[rank]:+.3%}",
        "traffic": "equal" if outcome.traffic else "DIFFERS",
        "peak_at": "right" if outcome.action else "elsewhere",
    }


def _sum_up(outcomes: list[Outcome]) -> None:
    formula = [abs(error) for outcome in outcomes for error in outcome.formula]
    print(f"\n{len(outcomes)} specs, {len(formula)} ranks")
    print(f"  formula   worst {max(formula):.3%} (limit {_LIMIT:.1%}), median {statistics.median(formula):.3%} "
          f"(limit {_MEDIAN_LIMIT:.1%}), exact on {sum(e == 0 for e in formula)} ranks")  # fmt: skip
    dry = [abs(error) for outcome in outcomes if outcome.dry is not None for error in outcome.dry]
    if dry:
        print(f"  dry run   worst {max(dry):.3%} (limit {_DRY_LIMIT:.1%}), exact on {sum(e == 0 for e in dry)} ranks")
    print(f"  traffic   equal in {sum(outcome.traffic for outcome in outcomes)} specs")
    print(f"  peak at   the action predicted in {sum(outcome.action for outcome in outcomes)} specs")


if __name__ == "__main__":
    main()
