"""The tables of every result, and the result itself.

Predicted and measured numbers have the same schemas, so that comparing them is a join. Bytes are whole numbers. Times are
nanoseconds from the start of the step of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from engine.spec import RunSpec, Sentence, sentence
from engine.topology import AXES, CALL_AXES

Source = Literal["formula", "dry_run", "measured"]
Rows = dict[str, list[dict[str, Any]]]  # the name of a table → its rows, before they are a `DataFrame`

# In the order of charts and lists.
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "communication", "temporary")
KV_CACHE = "kv_cache"  # one more, when generating

Dtype = Literal["str", "int64", "float64"]

LARGEST = 2**63 - 1  # the largest whole number in a table
CUT = "…"  # replaces the middle of a group's name, if it is long and only some ranks have rows
_MOST_NAMED = 64  # members of a group whose name is never shortened

_MOST = 2**53  # up to here numbers are exact in a browser
_MOST_SUM = 2.0**62  # of a column: sums must fit into an int64


@dataclass(frozen=True)
class ColumnSchema:
    """The values that a column may have.

    words         of a text: all allowed texts; if empty, any text that is not empty
    least, most   of a number, both included; a float may also be NaN or infinite, as a diverged loss
    absent        what fills the column of an older run, which does not have it; None: every run must have the column
    """

    dtype: Dtype
    words: tuple[str, ...] = ()
    least: int = 0
    most: int = _MOST
    absent: int | str | None = None


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table. `key`: the columns that identify a row; empty if rows may be equal."""

    columns: dict[str, ColumnSchema]
    key: tuple[str, ...] = ()


_SOURCE = ColumnSchema("str", get_args(Source))
_WHOLE = ColumnSchema("int64")
_PLACE = ColumnSchema("int64", absent=0)  # a coordinate along an axis; a run that is older than the axis has degree 1 there
COORDINATE = AXES[::-1]  # the columns of a rank's coordinate; the axis that varies slowest is first
_NAME = ColumnSchema("str")
_FRACTION = ColumnSchema("float64", least=-_MOST)
_NUMBER = ColumnSchema("int64", least=-1)  # of a chunk or a microbatch; −1: none
_INSTANT = ColumnSchema("int64", least=-_MOST)  # a step starts when its last rank starts, so another rank may be slightly earlier
_CATEGORY = ColumnSchema("str", (*CATEGORIES, KV_CACHE))
_AXIS = ColumnSchema("str", CALL_AXES)
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "send", "recv")
_COLLECTIVE = ColumnSchema("str", COLLECTIVES)
_PHASE = ColumnSchema("str", ("forward", "backward", "reduce", "tie", "step", "gather", "prefill", "decode"))
_ACTIONS = ("F", "B", "I", "W", "reduce", "tie", "step", "gather")

TABLES: dict[str, TableSchema] = {
    # Bytes by category at the rank's memory peak in a steady step.
    "memory_peak": TableSchema(
        {"source": _SOURCE, "rank": _WHOLE, **dict.fromkeys(COORDINATE, _PLACE), "category": _CATEGORY, "bytes": _WHOLE},
        key=("rank", *COORDINATE, "category"),
    ),
    # Bytes by category over one steady step: at the start of each action, and at the highest point within it.
    "memory_curve": TableSchema(
        {"source": _SOURCE, "rank": _WHOLE, "t_ns": _INSTANT, "action": _NAME, "category": _CATEGORY, "bytes": _WHOLE},
        key=("rank", "t_ns", "category"),
    ),
    # The process as the operating system sees it, with Python, torch and the allocator's reserve.
    "process": TableSchema(
        {
            "source": _SOURCE, "rank": _WHOLE, "rss_bytes": _WHOLE, "uss_bytes": _WHOLE, "baseline_bytes": _WHOLE,
            "peak_rss_bytes": _WHOLE,
        },
        key=("rank",),
    ),
    # All communication of one steady step. `group` is the group's ranks, comma-separated.
    "traffic": TableSchema(
        {
            "source": _SOURCE, "rank": _WHOLE, "axis": _AXIS, "collective": _COLLECTIVE, "phase": _PHASE, "group": _NAME,
            "calls": ColumnSchema("int64", least=1), "payload_bytes": _WHOLE, "wire_bytes": _WHOLE,
        },
        key=("rank", "axis", "collective", "phase", "group"),
    ),
    # One steady step. Lane "compute" holds actions, lane "comm" holds collectives and transfers. Only the latter have an `axis`,
    # and `exposed_ns`: the time in which the rank was busy with the call alone, or −1 if it is not known.
    "spans": TableSchema(
        {
            "source": _SOURCE, "rank": _WHOLE, "lane": ColumnSchema("str", ("compute", "comm")),
            "kind": ColumnSchema("str", (*_ACTIONS, *COLLECTIVES)), "chunk": _NUMBER, "microbatch": _NUMBER,
            "step": ColumnSchema("int64", least=1), "start_ns": _INSTANT, "end_ns": _INSTANT, "cpu_ns": _WHOLE,
            "axis": ColumnSchema("str", (*CALL_AXES, "none"), absent="none"),
            "exposed_ns": ColumnSchema("int64", least=-1, absent=-1),
        },
    ),
    "steps": TableSchema(
        {
            "source": _SOURCE, "step": ColumnSchema("int64", least=1), "loss": _FRACTION, "grad_norm": _FRACTION,
            "step_ns": ColumnSchema("int64", least=1), "tokens": ColumnSchema("int64", least=1),
        },
        key=("step",),
    ),
    # Rows of tokens that each expert of a rank got in a step from each rank, over its microbatches. Of a model with experts only.
    # `sender`: the rank whose tokens they are; −1 in an older run, where a row has those of all ranks.
    "expert_load": TableSchema(
        {
            "source": _SOURCE, "rank": _WHOLE, "layer": _WHOLE, "expert": _WHOLE, "step": ColumnSchema("int64", least=1),
            "sender": ColumnSchema("int64", least=-1, absent=-1), "tokens": _WHOLE,
        },
        key=("rank", "layer", "expert", "step", "sender"),
    ),
    "parity": TableSchema(
        {"source": _SOURCE, "parameter": _NAME, "max_abs": ColumnSchema("float64"), "max_rel": ColumnSchema("float64")},
        key=("parameter",),
    ),
}  # fmt: skip
SCHEMAS: dict[str, dict[str, str]] = {
    name: {column: rule.dtype for column, rule in table.columns.items()} for name, table in TABLES.items()
}

# The keys of the tables that both predictions and measurements have.
KEYS: dict[str, tuple[str, ...]] = {name: TABLES[name].key for name in ("memory_peak", "traffic")}


def misfits_of(name: str, rows: pd.DataFrame) -> Iterator[Sentence]:
    """A sentence for each error in `rows`: values that the table `name` never has. `rows` must have its columns and types."""
    for column, rule in TABLES[name].columns.items():
        if rule.dtype == "str":
            yield from _wrong_words(name, column, rule, rows[column])
        else:
            yield from _wrong_numbers(name, column, rule, rows[column])
    key = list(TABLES[name].key)
    if key and rows.duplicated(key).any():
        yield sentence("{name} has two rows with the same {key}", name=name, key=", ".join(key))


def _wrong_words(name: str, column: str, rule: ColumnSchema, found: pd.Series[str]) -> Iterator[Sentence]:
    if found.hasnans:
        yield sentence("{name} has an empty value in {column}", name=name, column=column)
        return
    unknown = [word for word in found.unique() if (word not in rule.words if rule.words else not word.strip())]
    if unknown:
        yield sentence("{name} has an invalid {column}: {value!r}", name=name, column=column, value=min(unknown)[:40])


def _wrong_numbers(name: str, column: str, rule: ColumnSchema, found: pd.Series[Any]) -> Iterator[Sentence]:
    values = found.to_numpy()
    known = values[np.isfinite(values)]
    if len(known) and not (rule.least <= known.min() and known.max() <= rule.most):
        wrong = known.min() if known.min() < rule.least else known.max()
        yield sentence(
            "{name} has {value} in {column}, which must be from {least:,} to {most:,}",
            name=name, value=f"{wrong:,}", column=column, least=rule.least, most=rule.most,
        )  # fmt: skip
    elif known.sum(dtype="float64") > _MOST_SUM:
        yield sentence("{name} has {column} that add up to more than can be counted", name=name, column=column)


def group_name(ranks: Sequence[int], cut: bool) -> str:
    """The name of a group of ranks in tables. `cut`: leave out the middle of a long name, if its first rank has the row."""
    if cut and len(ranks) > _MOST_NAMED:
        return f"{ranks[0]},{ranks[1]},{CUT},{ranks[-1]}"
    return ",".join(map(str, ranks))


def members(group: str) -> tuple[int, ...]:
    """The ranks in a group's name: all of them, or the first two and the last if the name was shortened."""
    return tuple(int(member) for member in group.split(",") if member != CUT)


_SIDES = ("measured", "predicted")


def compared(name: str, measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Two results joined: for each number of the table `name`, columns NAME_measured and NAME_predicted.

    If only one of them has a row, the other's numbers are 0.
    """
    keys = list(KEYS[name])
    numbers = [column for column in SCHEMAS[name] if column not in ("source", *keys)]
    if measured is predicted and not predicted.duplicated(keys).any():  # there is nothing to join
        return predicted[keys].assign(**{f"{column}_{side}": predicted[column] for column in numbers for side in _SIDES})
    sides = [side[keys + numbers] for side in (measured, predicted)]
    both = sides[0].merge(sides[1], on=keys, how="outer", suffixes=("_measured", "_predicted"), validate="one_to_one")
    filled = {f"{column}_{side}": 0 for column in numbers for side in _SIDES}
    return both.fillna(filled).astype(dict.fromkeys(filled, "int64"))


def table(name: str, rows: list[dict[str, Any]], source: Source) -> pd.DataFrame:
    """The table `name` from `rows`, which have all columns but `source`. Raises if a float is in a column of whole numbers."""
    columns = {}
    for column, dtype in SCHEMAS[name].items():
        values = [source if column == "source" else row[column] for row in rows]
        columns[column] = pd.Series(values, dtype=dtype)  # unlike astype, this does not cut fractions off
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class RunResult:
    """The result of a run, a dry run or a prediction.

    `environment`: the machine and the backend. `summary`: the few numbers that a list of runs shows. `tables`: see `TABLES`.
    """

    spec: RunSpec
    environment: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


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
