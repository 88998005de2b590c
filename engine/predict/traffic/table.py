"""Predicted traffic as a table: rows of every rank, equal to what a run counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from engine.predict.traffic.calls import PredictedCall, wire_bytes
from engine.predict.traffic.step import Generating, Training
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import LARGEST, SCHEMAS, group_name
from engine.topology import Axis, Mesh


def traffic(spec: RunSpec, ranks: Sequence[int] | None = None) -> pd.DataFrame:
    """Table "traffic" of one steady step of every rank; of the whole generation, where there is no training.

    Of very many ranks, as `Mesh.listed` has it, and then the names of long groups are cut: the others of a stage pass the same.
    `ranks`: of these alone, their groups written out. Raises `RequestError` where numbers are too large for a table.
    """
    layout, mesh = spec.layout, spec.layout.mesh
    label = _Groups(mesh, whole=ranks is not None or mesh.all_listed)
    every = np.array(mesh.listed if ranks is None else ranks, np.int64)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMAS["traffic"]}
    stages = mesh.index("pp", every)
    found = Generating(spec) if spec.generate.skip_training else Training(spec)
    for stage in range(layout.pp):
        here = every[stages == stage] if ranks is not None or mesh.all_listed else every[stage : stage + 1]
        for (axis, collective, phase, between), amount in _rows(spec, found.calls(stage)).items() if len(here) else ():
            columns["rank"].append(here)
            columns["group"].append(label.of(axis, here, between))
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
            sentence("a rank would pass {bytes:.3g} bytes in a step, and traffic is told up to 2^63 bytes", bytes=float(number))
        )
    return number


Row = tuple[Axis, str, str, tuple[int, int] | None]


def _rows(spec: RunSpec, found: list[PredictedCall]) -> dict[Row, tuple[int, int, int]]:
    """The stage's calls added up as the table has them: calls, payload and wire bytes. A call sends whole bytes."""
    mesh, rows = spec.layout.mesh, dict[Row, tuple[int, int, int]]()
    for call in found:
        # Two stages are the whole axis where there are no others.
        between = call.between if mesh.pp > 2 else None
        key = (call.axis, call.collective, call.phase, between)
        n = 2 if call.between else mesh[call.axis]
        times, payload = call.calls, call.payload_bytes
        before = rows.get(key, (0, 0, 0))
        more = (times, times * payload, times * wire_bytes(call.collective, payload, n))
        rows[key] = (before[0] + more[0], before[1] + more[1], before[2] + more[2])
    return rows


class _Groups:
    """The table's name of each rank's group, for some ranks of a stage at once."""

    def __init__(self, mesh: Mesh, whole: bool) -> None:
        """`whole`: names are written out, however long."""
        self.mesh, self.whole = mesh, whole
        self._made: dict[tuple[Axis, tuple[int, int] | None, int], str] = {}  # made once for all ranks of a group
        self._known: dict[tuple[Axis, tuple[int, int] | None, int], np.ndarray] = {}

    def of(self, axis: Axis, ranks: np.ndarray, between: tuple[int, int] | None) -> np.ndarray:
        """`ranks`: those of a stage that have rows."""
        key = axis, between, int(ranks[0])
        if key not in self._known:
            self._known[key] = self._of(axis, ranks, between)
        return self._known[key]

    def _of(self, axis: Axis, ranks: np.ndarray, between: tuple[int, int] | None) -> np.ndarray:
        step, count = self.mesh.stride(axis), self.mesh[axis]
        firsts = ranks - self.mesh.index(axis, ranks) * step
        if between:
            low, high = between
            firsts, step, count = firsts + low * step, (high - low) * step, 2
        return np.array([self._name(axis, between, int(first), step, count) for first in firsts], dtype=object)

    def _name(self, axis: Axis, between: tuple[int, int] | None, first: int, step: int, count: int) -> str:
        key = axis, between, first
        if key not in self._made:
            members = range(first, first + step * count, step)
            self._made[key] = group_name(members, cut=not self.whole and axis != "pp")  # along pp a rank may be any of them
        return self._made[key]
