"""Predicted step times beside measured ones: Megatron-DeepSpeed on A100, inside a node and on up to 64 of them.

    python -m benchmarks.steps_on_gpus FILE.csv … [--assume launch_us=60 …] [--worst 10]

A file has the columns devices, global_batch, microbatch, hidden, heads, layers, seq, tp, dp, pp, step_ms, as in the data of
vTrain (Bang et al. 2024, VIA-Research/vTrain, data/ground_truth_*.csv). All rows have one setting: GPT with 51,200 words, fp16,
1F1B, full recompute, no sequence parallelism, no ZeRO, attention written out, nodes of 8 devices with 100 GB/s. Nothing is fitted
to a row.

For each file: the mean error. For each model on a number of devices, with one batch and at least 4 layouts: the rank correlation
of predicted and measured times, and how much slower the layout with the best predicted time is than the best measured.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.command.output import print_table
from engine.command.search import assumptions
from engine.devices import DEVICES, DeviceSpec
from engine.launch.recording.client import with_ledgers
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec

_WORDS, _LEAST_LAYOUTS = 51_200, 4
_NODE_GBPS = 100  # of a node of 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE")
    options.add_argument("--worst", type=int, default=0, metavar="ROWS", help="print this many rows with the largest errors")
    chosen = options.parse_args()
    assumed = assumptions(chosen.assume)
    device = _device()
    for file in chosen.files:
        rows = pd.read_csv(file)
        rows["ours_ms"] = with_ledgers(partial(_steps, rows, device, assumed))
        rows["error"] = rows["ours_ms"] / rows["step_ms"] - 1
        _summary(file.name, rows["error"])
        _ranked(rows)
        if chosen.worst:
            order = rows["error"].abs().sort_values(ascending=False).index
            print_table([_named(row) for row in rows.loc[order].head(chosen.worst).itertuples(index=False)])


def _summary(name: str, errors: pd.Series) -> None:
    mean, median, bias = (100 * float(value) for value in (errors.abs().mean(), errors.abs().median(), errors.mean()))
    print(f"\n{name}: {len(errors)} steps, mean error {mean:.1f} %, median {median:.1f} %, bias {bias:+.1f} %")


def _named(row: Any) -> dict[str, Any]:
    return {name: f"{value:+.2f}" if name == "error" else f"{value:,.0f}" for name, value in row._asdict().items()}


def _device() -> DeviceSpec:
    return DEVICES["a100-80gb"].model_copy(update={"inter_bandwidth": _NODE_GBPS * 1e9 / 8})


def _steps(rows: pd.DataFrame, device: DeviceSpec, assumed: Assumptions) -> list[float]:
    return [1e3 * _step(row, device, assumed) for row in rows.itertuples()]


def _step(row: Any, device: DeviceSpec, assumed: Assumptions) -> float:
    """Seconds of a step."""
    dp, tp, pp = (int(getattr(row, axis)) for axis in ("dp", "tp", "pp"))
    size = int(row.microbatch)
    numbers = {name: int(getattr(row, name)) for name in ("hidden", "heads", "layers", "seq")}
    model = ModelSpec(family="gpt", vocab=_WORDS, **numbers)
    layout = LayoutSpec(dp=dp, tp=tp, pp=pp, recompute="full")
    microbatches = int(row.global_batch) // (dp * size)
    workload = WorkloadSpec(
        precision="bf16", accumulate="bf16", microbatches=microbatches, microbatch_size=size, attention="written"
    )
    return simulated(RunSpec(model=model, layout=layout, workload=workload), device, assumed)[0]


def _ranked(rows: pd.DataFrame) -> None:
    """Rank correlation (Spearman) and regret of each group of layouts that do the same work."""
    found, lost = [], []
    for _, group in rows.groupby(["hidden", "heads", "layers", "seq", "devices", "global_batch"]):
        if len(group) >= _LEAST_LAYOUTS:
            found.append(float(np.corrcoef(group["ours_ms"].rank(), group["step_ms"].rank())[0, 1]))
            measured = group["step_ms"].to_numpy()
            lost.append(float(measured[group["ours_ms"].to_numpy().argmin()] / measured.min() - 1))
    if found:
        good = sum(value >= 0.9 for value in found)
        print(f"{len(found)} groups of layouts: rank correlation median {np.median(found):.2f}, least {min(found):.2f}, at least "
              f"0.9 in {good}; the chosen layout is slower than the best by {100 * np.mean(lost):.1f} % on average, at most "
              f"{100 * max(lost):.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()
