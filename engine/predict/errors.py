"""The differences between a prediction and a measurement, or between any two answers."""

from __future__ import annotations

import pandas as pd

from engine.tables import RunResult, compared

_COUNTED = ("calls", "payload_bytes", "wire_bytes")


def memory_errors(measured: RunResult, predicted: RunResult) -> pd.Series[float]:
    """By rank: the signed error of the predicted total at the peak, relative to the measured total."""
    both = compared("memory_peak", measured.tables["memory_peak"], predicted.tables["memory_peak"])
    totals = both.groupby("rank")[["bytes_measured", "bytes_predicted"]].sum()
    return totals["bytes_predicted"] / totals["bytes_measured"] - 1


def traffic_differences(measured: RunResult, predicted: RunResult) -> pd.DataFrame:
    """The rows of traffic that differ in calls or in bytes. Empty if all are equal."""
    both = compared("traffic", measured.tables["traffic"], predicted.tables["traffic"])
    unequal = [both[f"{number}_measured"] != both[f"{number}_predicted"] for number in _COUNTED]
    return both[pd.concat(unequal, axis=1).any(axis=1)]
