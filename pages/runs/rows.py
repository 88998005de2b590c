"""The rows of the list of runs. Only `run.json` of a run is read, and again only if the run changes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import catalog, store
from engine.spec import RequestError, RunSpec
from engine.tables import RunResult
from pages.charts import names
from pages.charts.words import Words, words
from pages.shared.levers import levers_of


@dataclass(frozen=True)
class RunRow:
    """One run. Missing numbers are NaN."""

    folder: Path
    saved_ns: int
    spec: RunSpec
    model: str
    layout: str
    schedule: str
    ranks: int
    steps: int
    loss: float
    peak_bytes: float
    bubble: float
    wire_bytes: float
    speed: float  # tokens a second
    parity: float

    @property
    def name(self) -> str:
        return self.folder.name

    def text(self, say: Words) -> str:
        """The text that a search matches. It has the schedule's code and name."""
        named = names.schedule(self.schedule, say)
        return f"{self.name} {self.model} {self.layout} {self.schedule} {named} {levers_of(self.spec, say)}".casefold()


@dataclass(frozen=True)
class Broken:
    """A folder that looks like a run and cannot be read."""

    folder: Path
    saved_ns: int
    why: str  # a sentence of the engine


class RunIndex:
    """The runs of one home folder. Any thread may use it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._known: dict[Path, RunRow | Broken] = {}

    def read(self) -> tuple[list[RunRow], list[Broken]]:
        """All runs, newest first, and folders that cannot be read. Only runs that are new or have changed are opened."""
        with self._lock:
            before, self._known = self._known, {}
            for saved_ns, folder in store.saved(self._home):
                known = before.get(folder)
                self._known[folder] = known if known and known.saved_ns == saved_ns else _read(folder, saved_ns)
            found = list(self._known.values())
        return [row for row in found if isinstance(row, RunRow)], [row for row in found if isinstance(row, Broken)]


def _read(folder: Path, saved_ns: int) -> RunRow | Broken:
    try:
        return _row(folder, saved_ns, store.head(folder))
    except RequestError as error:
        return Broken(folder, saved_ns, error.sentence)


def _row(folder: Path, saved_ns: int, result: RunResult) -> RunRow:
    spec, summary = result.spec, result.summary
    return RunRow(
        folder=folder,
        saved_ns=saved_ns,
        spec=spec,
        model=catalog.name_of(spec.model),
        layout=spec.layout.code,
        schedule=spec.layout.schedule,
        ranks=spec.layout.ranks,
        steps=spec.workload.steps,
        loss=_number(summary.get("loss_last")),
        peak_bytes=_number(summary.get("peak_bytes")),
        bubble=_number(summary.get("bubble")),
        wire_bytes=_number(summary.get("wire_bytes_per_rank")),
        speed=_number(summary.get("tokens_per_second")),
        parity=_number(summary.get("parity_max_rel")),
    )


def _number(value: Any) -> float:
    """NaN if it is not a number: the summary can be of an older or another program."""
    return float(value) if isinstance(value, (int, float)) else math.nan


# ------------------------------------------------------------------------------------------------------- search and sort

_TEXTS: dict[str, Callable[[RunRow], str]] = {
    "name": lambda row: row.name.casefold(),
    "model": lambda row: row.model,
    "layout": lambda row: row.layout,
    "schedule": lambda row: row.schedule,
    "levers": lambda row: levers_of(row.spec, words("en")),
}
_NUMBERS: dict[str, Callable[[RunRow], float]] = {
    "saved": lambda row: row.saved_ns,
    "ranks": lambda row: row.ranks,
    "steps": lambda row: row.steps,
    "loss": lambda row: row.loss,
    "memory": lambda row: row.peak_bytes,
    "bubble": lambda row: row.bubble,
    "traffic": lambda row: row.wire_bytes,
    "speed": lambda row: row.speed,
    "parity": lambda row: row.parity,
}
COLUMNS = (
    "name", "saved", "model", "layout", "schedule", "levers", "ranks", "steps", "loss", "speed", "memory", "bubble", "traffic",
    "parity",
)  # fmt: skip
NEWEST = "-saved"  # a column's name; a minus before it means the largest first


def matching(rows: Iterable[RunRow], search: str, say: Words) -> list[RunRow]:
    """The runs in which every word of `search` occurs."""
    asked = search.casefold().split()
    return [row for row in rows if not asked or _has_all(row.text(say), asked)]


def _has_all(text: str, words: list[str]) -> bool:
    return all(word in text for word in words)


def ordered(rows: list[RunRow], sort: str) -> list[RunRow]:
    """The runs sorted by a column. Runs without a number come last in both orders."""
    column, backwards = sort.removeprefix("-"), sort.startswith("-")
    if column in _TEXTS:
        return sorted(rows, key=_TEXTS[column], reverse=backwards)
    number = _NUMBERS[column]
    sign = -1 if backwards else 1
    return sorted(rows, key=lambda row: math.inf if math.isnan(number(row)) else sign * number(row))


def sortable(sort: str) -> bool:
    return sort.removeprefix("-") in COLUMNS
