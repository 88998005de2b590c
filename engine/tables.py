"""The tidy tables that every answer comes in, and the result that carries them.

Predicted and measured numbers share these schemas, so that comparing them is a join. Bytes are whole numbers;
times are nanoseconds from the start of the step that the row describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from engine.spec import RunSpec

Source = Literal["formula", "dry_run", "measured"]

# In the order in which they are stacked and listed.
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "communication", "temporary")
KV_CACHE = "kv_cache"  # one more, when generating

LARGEST = 2**63 - 1  # of whole numbers
CUT = "…"  # stands for the middle of a group's name, where it is long and only some ranks have rows
_MOST_NAMED = 64  # members of a group whose name is not cut

_TEXT, _WHOLE, _REAL = "str", "int64", "float64"

SCHEMAS: dict[str, dict[str, str]] = {
    # The composition at the instant of the rank's largest total in a steady step.
    "memory_peak": {
        "source": _TEXT, "rank": _WHOLE, "pp": _WHOLE, "dp": _WHOLE, "tp": _WHOLE, "category": _TEXT, "bytes": _WHOLE,
    },
    # The composition over one steady step: at the start of each action, and at the highest point within it.
    "memory_curve": {"source": _TEXT, "rank": _WHOLE, "t_ns": _WHOLE, "action": _TEXT, "category": _TEXT, "bytes": _WHOLE},
    # The process as the operating system sees it: Python, torch and the allocator's own reserve included.
    "process": {
        "source": _TEXT, "rank": _WHOLE, "rss_bytes": _WHOLE, "uss_bytes": _WHOLE, "baseline_bytes": _WHOLE,
        "peak_rss_bytes": _WHOLE,
    },
    # What passed the door in one steady step. `group` is the group's ranks, comma-separated.
    "traffic": {
        "source": _TEXT, "rank": _WHOLE, "axis": _TEXT, "collective": _TEXT, "phase": _TEXT, "group": _TEXT,
        "calls": _WHOLE, "payload_bytes": _WHOLE, "wire_bytes": _WHOLE,
    },
    # One steady step. Lane "compute" holds actions, lane "comm" holds collectives and transfers.
    "spans": {
        "source": _TEXT, "rank": _WHOLE, "lane": _TEXT, "kind": _TEXT, "chunk": _WHOLE, "microbatch": _WHOLE, "step": _WHOLE,
        "start_ns": _WHOLE, "end_ns": _WHOLE, "cpu_ns": _WHOLE,
    },
    "steps": {"source": _TEXT, "step": _WHOLE, "loss": _REAL, "grad_norm": _REAL, "step_ns": _WHOLE, "tokens": _WHOLE},
    "parity": {"source": _TEXT, "parameter": _TEXT, "max_abs": _REAL, "max_rel": _REAL},
}  # fmt: skip


# What tells the rows of a table apart, in the tables whose numbers a prediction and a measurement can both give.
KEYS: dict[str, tuple[str, ...]] = {
    "memory_peak": ("rank", "pp", "dp", "tp", "category"),
    "traffic": ("rank", "axis", "collective", "phase", "group"),
}


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
