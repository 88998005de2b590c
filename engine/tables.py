"""The tidy tables that every answer comes in, and the result that carries them.

Predicted and measured numbers share these schemas, so that comparing them is a join. Bytes are whole numbers;
times are nanoseconds from the start of the step that the row describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from engine.spec import RunSpec, Sentence, sentence
from engine.topology import AXES

Source = Literal["formula", "dry_run", "measured"]
Rows = dict[str, list[dict[str, Any]]]  # table → its rows, before they are a `DataFrame`

# In the order in which they are stacked and listed.
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "communication", "temporary")
KV_CACHE = "kv_cache"  # one more, when generating

Dtype = Literal["str", "int64", "float64"]

LARGEST = 2**63 - 1  # of whole numbers
CUT = "…"  # stands for the middle of a group's name, where it is long and only some ranks have rows
_MOST_NAMED = 64  # members of a group whose name is not cut

_MOST = 2**53  # up to here a browser's numbers are exact
_MOST_SUM = 2.0**62  # of a column: what pandas adds up must stay an int64


@dataclass(frozen=True)
class ColumnSchema:
    """What may stand in a column, in every row.

    words         of a text: all that there are; without any, whatever is not empty
    least, most   of a number, both included; a fraction may also be NaN or infinite, as in a run that blew up
    absent        of a whole number: what stands in every row of an older run, which lacks the column; None if none does
    """

    dtype: Dtype
    words: tuple[str, ...] = ()
    least: int = 0
    most: int = _MOST
    absent: int | None = None


@dataclass(frozen=True)
class TableSchema:
    """`key`: the columns that tell its rows apart; none where two rows may be alike."""

    columns: dict[str, ColumnSchema]
    key: tuple[str, ...] = ()


_SOURCE = ColumnSchema("str", get_args(Source))
_WHOLE = ColumnSchema("int64")
_PLACE = ColumnSchema("int64", absent=0)  # along an axis; a run that is older than the axis has degree 1 there
COORDINATE = AXES[::-1]  # the columns of where a rank is, the axis first that varies slowest
_NAME = ColumnSchema("str")
_FRACTION = ColumnSchema("float64", least=-_MOST)
_NUMBER = ColumnSchema("int64", least=-1)  # of a chunk or a microbatch; −1 where the row is about none
_INSTANT = ColumnSchema("int64", least=-_MOST)  # a rank may be a little ahead of the step's start, which is the last rank's
_CATEGORY = ColumnSchema("str", (*CATEGORIES, KV_CACHE))
_AXIS = ColumnSchema("str", AXES)
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "send", "recv")
_COLLECTIVE = ColumnSchema("str", COLLECTIVES)
_PHASE = ColumnSchema("str", ("forward", "backward", "reduce", "tie", "step", "gather", "prefill", "decode"))
_ACTIONS = ("F", "B", "I", "W", "reduce", "tie", "step", "gather")

TABLES: dict[str, TableSchema] = {
    # The composition at the instant of the rank's largest total in a steady step.
    "memory_peak": TableSchema(
        {"source": _SOURCE, "rank": _WHOLE, **dict.fromkeys(COORDINATE, _PLACE), "category": _CATEGORY, "bytes": _WHOLE},
        key=("rank", *COORDINATE, "category"),
    ),
    # The composition over one steady step: at the start of each action, and at the highest point within it.
    "memory_curve": TableSchema(
        {"source": _SOURCE, "rank": _WHOLE, "t_ns": _INSTANT, "action": _NAME, "category": _CATEGORY, "bytes": _WHOLE},
        key=("rank", "t_ns", "category"),
    ),
    # The process as the operating system sees it: Python, torch and the allocator's own reserve included.
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
    # One steady step. Lane "compute" holds actions, lane "comm" holds collectives and transfers.
    "spans": TableSchema(
        {
            "source": _SOURCE, "rank": _WHOLE, "lane": ColumnSchema("str", ("compute", "comm")),
            "kind": ColumnSchema("str", (*_ACTIONS, *COLLECTIVES)), "chunk": _NUMBER, "microbatch": _NUMBER,
            "step": ColumnSchema("int64", least=1), "start_ns": _INSTANT, "end_ns": _INSTANT, "cpu_ns": _WHOLE,
        },
    ),
    "steps": TableSchema(
        {
            "source": _SOURCE, "step": ColumnSchema("int64", least=1), "loss": _FRACTION, "grad_norm": _FRACTION,
            "step_ns": ColumnSchema("int64", least=1), "tokens": ColumnSchema("int64", least=1),
        },
        key=("step",),
    ),
    "parity": TableSchema(
        {"source": _SOURCE, "parameter": _NAME, "max_abs": ColumnSchema("float64"), "max_rel": ColumnSchema("float64")},
        key=("parameter",),
    ),
}  # fmt: skip
SCHEMAS: dict[str, dict[str, str]] = {
    name: {column: rule.dtype for column, rule in table.columns.items()} for name, table in TABLES.items()
}

# What tells the rows of a table apart, in the tables whose numbers a prediction and a measurement can both give.
KEYS: dict[str, tuple[str, ...]] = {name: TABLES[name].key for name in ("memory_peak", "traffic")}


def misfits_of(name: str, rows: pd.DataFrame) -> Iterator[Sentence]:
    """What in `rows` the table `name` cannot have, whatever ran: a sentence each. They have its columns and types."""
    for column, rule in TABLES[name].columns.items():
        if rule.dtype == "str":
            yield from _strange_words(name, column, rule, rows[column])
        else:
            yield from _strange_numbers(name, column, rule, rows[column])
    key = list(TABLES[name].key)
    if key and rows.duplicated(key).any():
        yield sentence("{name} has two rows with the same {key}", name=name, key=", ".join(key))


def _strange_words(name: str, column: str, rule: ColumnSchema, found: pd.Series[str]) -> Iterator[Sentence]:
    if found.hasnans:
        yield sentence("{name} has nothing in {column} where a text belongs", name=name, column=column)
        return
    unknown = [word for word in found.unique() if (word not in rule.words if rule.words else not word.strip())]
    if unknown:
        yield sentence("{name} has the {column} {value!r}, which is none", name=name, column=column, value=min(unknown)[:40])


def _strange_numbers(name: str, column: str, rule: ColumnSchema, found: pd.Series[Any]) -> Iterator[Sentence]:
    values = found.to_numpy()
    known = values[np.isfinite(values)]
    if len(known) and not (rule.least <= known.min() and known.max() <= rule.most):
        wrong = known.min() if known.min() < rule.least else known.max()
        yield sentence(
            "{name} has {value} in {column}, which is from {least:,} to {most:,}",
            name=name, value=f"{wrong:,}", column=column, least=rule.least, most=rule.most,
        )  # fmt: skip
    elif known.sum(dtype="float64") > _MOST_SUM:
        yield sentence("{name} has {column} that add up to more than can be counted", name=name, column=column)


def group_name(ranks: Sequence[int], cut: bool) -> str:
    """How tables name a group of ranks. `cut`: the middle of a long name is left out, where the first rank has the row."""
    if cut and len(ranks) > _MOST_NAMED:
        return f"{ranks[0]},{ranks[1]},{CUT},{ranks[-1]}"
    return ",".join(map(str, ranks))


def members(group: str) -> tuple[int, ...]:
    """The ranks that a group's name names: all, or of a long one that is cut short its first two and the last."""
    return tuple(int(member) for member in group.split(",") if member != CUT)


_SIDES = ("measured", "predicted")


def beside(name: str, measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Two answers to one question, joined: for each number of the table `name` columns NAME_measured and NAME_predicted.

    A row that only one of them has counts as 0 in the other.
    """
    keys = list(KEYS[name])
    numbers = [column for column in SCHEMAS[name] if column not in ("source", *keys)]
    if measured is predicted and not predicted.duplicated(keys).any():  # there is nothing to join
        return predicted[keys].assign(**{f"{column}_{side}": predicted[column] for column in numbers for side in _SIDES})
    sides = [side[keys + numbers] for side in (measured, predicted)]
    joined = sides[0].merge(sides[1], on=keys, how="outer", suffixes=("_measured", "_predicted"), validate="one_to_one")
    filled = {f"{column}_{side}": 0 for column in numbers for side in _SIDES}
    return joined.fillna(filled).astype(dict.fromkeys(filled, "int64"))


def table(name: str, rows: list[dict[str, Any]], source: Source) -> pd.DataFrame:
    """Make the table `name` of `rows`, which give every column but `source`. Refuses a fraction where a whole number belongs."""
    columns = {}
    for column, dtype in SCHEMAS[name].items():
        values = [source if column == "source" else row[column] for row in rows]
        columns[column] = pd.Series(values, dtype=dtype)  # unlike astype, this does not cut fractions off
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class RunResult:
    """One answer: what was asked, where it ran, what came out.

    `environment` tells the machine and the backend; `summary` the few numbers that a list of runs shows.
    """

    spec: RunSpec
    environment: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
