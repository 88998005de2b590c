"""Predicted traffic as a table: the rows of every rank, equal to what a run counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from engine.predict.traffic.calls import PredictedCall, wire_bytes
from engine.predict.traffic.step import Generating, Training
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import LARGEST, SCHEMAS, group_name
from engine.topology import EP, Axis, CallAxis, Mesh


def traffic(spec: RunSpec, ranks: Sequence[int] | None = None) -> pd.DataFrame:
    """Table "traffic" of every rank for one steady step, or for the whole generation if there is no training.

    A very large layout has rows of the ranks in `Mesh.listed` only. The other ranks of a stage have the same traffic. The names
    of long groups are then shortened. `ranks`: only these ranks, with full names of groups. Raises `RequestError` if a number is
    too large for a table.
    """
    layout, mesh = spec.layout, spec.layout.mesh
    label = _Groups(mesh, whole=ranks is not None or mesh.all_listed)
    every = np.array(mesh.listed if ranks is None else ranks, np.int64)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMAS["traffic"]}
    stages = mesh.index("pp", every)
    found = Generating(spec) if spec.generate.skip_training else Training(spec)
    for stage in range(layout.pp):
        here = every[stages == stage] if ranks is not None or mesh.all_listed else every[stage : stage + 1]
        for (axis, collective, phase, between, *part), amount in _rows(spec, found.calls(stage)).items() if len(here) else ():
            columns["rank"].append(here)
            columns["group"].append(label.of(axis, here, between, part[0], part[1]))
            same = {"source": "formula", "axis": axis, "collective": collective, "phase": phase}
            for name, text in same.items():
                columns[name].append(np.full(len(here), text, dtype=object))
            for name, number in zip(("calls", "payload_bytes", "wire_bytes"), amount, strict=True):
                columns[name].append(np.full(len(here), _writable(number)))
    empty = [np.empty(0, dtype=object)]
    return pd.DataFrame(
        {name: pd.Series(np.concatenate(columns[name] or empty), dtype=dtype) for name, dtype in SCHEMAS["traffic"].items()}
    )


def _writable(number: int) -> int:
    if number > LARGEST:
        raise RequestError(
            sentence(
                "a rank would pass {bytes:.3g} bytes in a step, and traffic is shown only up to 2^63 bytes", bytes=float(number)
            )
        )
    return number


# The last two: ranks of a part of the axis, or 0, and how far apart they are.
Row = tuple[CallAxis, str, str, tuple[int, int] | None, int, int]


def _rows(spec: RunSpec, found: list[PredictedCall]) -> dict[Row, tuple[int, int, int]]:
    """The rows of a stage: the sums of calls, payload bytes and wire bytes. The wire bytes of each call are rounded down."""
    mesh, rows = spec.layout.mesh, dict[Row, tuple[int, int, int]]()
    for call in found:
        # If pp is 2, two stages are the whole axis.
        between = call.between if mesh.pp > 2 else None
        degree = mesh.degree(call.axis)
        n = call.ranks(degree)
        key = (
            call.axis,
            call.collective,
            call.phase,
            between,
            *((n, call.spread) if call.members and (n < degree or call.axis == EP) else (0, 1)),
        )
        times, payload = call.calls, call.payload_bytes
        before = rows.get(key, (0, 0, 0))
        more = (times, times * payload, times * wire_bytes(call.collective, payload, n))
        rows[key] = (before[0] + more[0], before[1] + more[1], before[2] + more[2])
    return rows


class _Groups:
    """The names of groups in the table, for several ranks of a stage at once."""

    def __init__(self, mesh: Mesh, whole: bool) -> None:
        """`whole`: long names are not shortened."""
        self.mesh, self.whole = mesh, whole
        self._names: dict[tuple[Axis, int, int, int], str] = {}  # one for all ranks of a group
        self._known: dict[tuple[CallAxis, tuple[int, int] | None, int, int, int], np.ndarray] = {}

    def of(self, axis: CallAxis, ranks: np.ndarray, between: tuple[int, int] | None, part: int, spread: int) -> np.ndarray:
        """The name of each rank's group, (n,). `ranks`: those of a stage that have rows, (n,). `part`, `spread`: see `Row`."""
        key = axis, between, part, spread, int(ranks[0])
        if key not in self._known:
            self._known[key] = self._of("dp" if axis == "ep" else axis, ranks, between, part, spread)
        return self._known[key]

    def _of(self, axis: Axis, ranks: np.ndarray, between: tuple[int, int] | None, part: int, spread: int) -> np.ndarray:
        spacing, degree = self.mesh.spacing(axis), self.mesh.degree(axis)
        step, count = spacing * spread, part or degree
        firsts = ranks - ranks // spacing % degree // spread % count * step
        if between:
            low, high = between
            firsts, step, count = firsts + low * step, (high - low) * step, 2
        return np.array([self._name(axis, int(first), step, count) for first in firsts], dtype=object)

    def _name(self, axis: Axis, first: int, step: int, count: int) -> str:
        key = axis, first, step, count
        if key not in self._names:
            members = range(first, first + step * count, step)
            # Along pp, a rank that has rows may be any member of its group. So the name needs all members.
            self._names[key] = group_name(members, cut=not self.whole and axis != "pp")
        return self._names[key]
