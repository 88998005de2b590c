"""Titles of the charts of memory and traffic: each states the main result."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pages.charts.units import in_bytes, percent, ranges
from pages.charts.words import Words


def memory_title(totals: pd.Series[int], capacity: int | None, device: str, say: Words) -> str:
    predicted = totals.xs("formula", level="source")
    if "measured" in totals.index.get_level_values("source"):
        measured = totals.xs("measured", level="source")
        errors = (predicted / measured - 1).abs()
        found = _ranks_of(measured, measured.max())
        held = {"ranks": ranges(found), "most": in_bytes(int(measured.max()))}
        if errors.max() == 0:
            return say.plural(
                "Rank {ranks} is fullest: {most}; every rank as predicted, to the byte",
                "Ranks {ranks} are fullest: {most}; every rank as predicted, to the byte",
                len(found),
                **held,
            )
        return say.plural(
            "Rank {ranks} is fullest: {most}; the prediction is {error} off at the worst, on rank {worst}",
            "Ranks {ranks} are fullest: {most}; the prediction is {error} off at the worst, on rank {worst}",
            len(found),
            error=share(float(errors.max())),
            worst=_ranks_of(errors, errors.max())[0],
            **held,
        )
    most, least = int(predicted.max()), int(predicted.min())
    fullest, others = _ranks_of(predicted, most), _ranks_of(predicted, least)
    needed = {"ranks": ranges(fullest), "most": in_bytes(most)}
    if capacity is not None and most > capacity:
        return say.plural(
            "Rank {ranks} needs {most} and the {device} has {size}: it runs out of memory",
            "Ranks {ranks} need {most} each and the {device} has {size}: they run out of memory",
            len(fullest),
            device=device,
            size=in_bytes(capacity),
            **needed,
        )
    if least == most:
        return say("Every rank needs {most}", most=in_bytes(most))
    if in_bytes(least) == in_bytes(most):
        return say.plural(
            "Rank {ranks} will be fullest: {most}, {more} more than the least",
            "Ranks {ranks} will be fullest: {most}, {more} more than the least",
            len(fullest),
            more=in_bytes(most - least),
            **needed,
        )
    return say.plural(
        "Rank {ranks} will be fullest: {most}, against {least} on {others}",
        "Ranks {ranks} will be fullest: {most}, against {least} on {others}",
        len(fullest),
        least=in_bytes(least),
        others=say.plural("rank {ranks}", "ranks {ranks}", len(others), ranks=ranges(others)),
        **needed,
    )


def stage_title(peaks: pd.DataFrame, capacity: int | None, device: str, say: Words) -> str:
    """The same if tables have only some ranks of each stage, with the fullest among them. Of measured values if there are any."""
    source = "formula" if (peaks["source"] == "formula").all() else str(peaks.loc[peaks["source"] != "formula", "source"].iloc[0])
    totals = peaks[peaks["source"] == source].groupby(["pp", "rank"])["bytes"].sum().groupby("pp").max()
    most, least = int(totals.max()), int(totals.min())
    fullest, others = _ranks_of(totals, most), _ranks_of(totals, least)
    needed = {"stages": ranges(fullest), "most": in_bytes(most)}
    if capacity is not None and most > capacity:
        return say.plural(
            "The ranks of stage {stages} need {most} each and the {device} has {size}: they run out of memory",
            "The ranks of stages {stages} need {most} each and the {device} has {size}: they run out of memory",
            len(fullest),
            device=device,
            size=in_bytes(capacity),
            **needed,
        )
    if least == most:
        return say("Every rank needs {most}", most=in_bytes(most))
    return say.plural(
        "The ranks of stage {stages} will be fullest: {most}, against {least} of {others}",
        "The ranks of stages {stages} will be fullest: {most}, against {least} of {others}",
        len(fullest),
        least=in_bytes(least),
        others=say.plural("stage {stages}", "stages {stages}", len(others), stages=ranges(others)),
        **needed,
    )


def _ranks_of(by_rank: pd.Series[Any], value: float) -> list[int]:
    """The ranks (or stages) with exactly this value, in order."""
    return [int(rank) for rank in by_rank.index[by_rank == value]]


def traffic_title(both: pd.DataFrame | None, rows: pd.DataFrame, unit: float, column: str, rank: int | None, say: Words) -> str:
    total = float(rows["predicted"].sum()) * unit
    if not total:
        return say("No communication between ranks")
    if both is not None:
        numbers = [(f"{number}_measured", f"{number}_predicted") for number in (column, "calls")]
        if all((both[one] == both[other]).all() for one, other in numbers):
            return say("{size} a rank in a step: measured as predicted, to the byte and to the call", size=in_bytes(total))
        wrong = int((both[numbers[0][0]] != both[numbers[0][1]]).sum())
        return say.plural("{count} row differs from its prediction", "{count} rows differ from their prediction", wrong)
    axes = rows.groupby("axis")["predicted"].sum()
    part = percent(float(axes.max() / axes.sum()))
    if rank is not None:
        return say(
            "{axis} carries {share} of the {size} of rank {rank} in a step",
            axis=axes.idxmax(),
            share=part,
            size=in_bytes(total),
            rank=rank,
        )
    return say("{axis} carries {share} of the {size} of a rank in a step", axis=axes.idxmax(), share=part, size=in_bytes(total))


def share(error: float) -> str:
    """An error that is not 0, in percent. It is never written as 0."""
    return f"{error:.2%}" if error >= 0.00005 else "<0.01%"
