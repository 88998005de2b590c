"""One microbatch's way through a step, event by event: each pass, what it calls on other ranks for, each message, each update.

What happens comes from the schedule, how many bytes from a traffic table, when from a table of spans or from a replay: of a run
as it was measured, or of a layout that has not run yet, by its prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from engine.schedule import Action, Schedule, Timed, plan
from engine.spec import RunSpec
from engine.topology import Coordinate, Mesh

_BACKWARD = ("B", "I", "W")
_PASSES = ("F", *_BACKWARD)
_ENDS = ("tie", "step", "gather")  # one action of its own for each of these phases
_MESSAGES = ("send", "recv")


@dataclass(frozen=True)
class Passed:
    """What one event hands to others through one kind of call: `calls` of them, and their bytes together, on one rank.

    `exact` is False where a rank holds several chunks and the table gives only their sum: the parts are then by calls.
    """

    axis: str
    collective: str
    phase: str
    group: tuple[int, ...]
    calls: int
    payload_bytes: int
    wire_bytes: int
    exact: bool


@dataclass(frozen=True)
class Event:
    """Something that happens to a microbatch on one rank.

    It is `action` itself if `passed` is None or if the action is a message; otherwise it is the calls that the action makes.
    `once`: it happens once a step, for all microbatches together. Times are in ns, or in units of the textbook.
    """

    rank: int
    stage: int
    action: Action
    passed: Passed | None = None
    once: bool = False
    start: float | None = None
    end: float | None = None

    @property
    def is_call(self) -> bool:
        return self.passed is not None and self.action.kind not in _MESSAGES


class Way(NamedTuple):
    """Which microbatch is followed, in which replica, on which slice of every stage."""

    microbatch: int
    dp: int = 0
    tp: int = 0


def walk(
    spec: RunSpec, traffic: pd.DataFrame, way: Way, spans: pd.DataFrame | None = None, timed: Iterable[Timed] = ()
) -> list[Event]:
    """The events of one microbatch, in an order in which each comes after all that it needs.

    `traffic` and `spans` are tables of one step; `timed` is a replay, which tells the times where there are no spans.
    """
    layout = spec.layout
    mesh = Mesh(layout.dp, layout.tp, layout.pp)
    schedule = plan(layout, spec.workload.microbatches, spec.model.parts.tied)
    replayed = {(t.stage, t.action): (t.start, t.end) for t in timed}
    ranks = [
        _Rank(spec, schedule, mesh, Coordinate(stage, way.dp, way.tp), traffic, spans, replayed) for stage in range(layout.pp)
    ]
    return [event for stage, action in _order(schedule, way.microbatch) for event in ranks[stage].events(action)]


def _order(schedule: Schedule, microbatch: int) -> Iterator[tuple[int, Action]]:
    """(stage, action) along the way: down the chunks, back up, the weights' gradients that were put off, and the step's end."""
    chunks = range(len(schedule.placement))
    own: dict[tuple[str, str, int], Action] = {}
    for actions in schedule.stages:
        for action in actions:
            if action.microbatch == microbatch:
                own[action.kind, action.flow, action.chunk] = action
    forward = [(kind, flow, c) for c in chunks for kind, flow in (("recv", "activation"), ("F", ""), ("send", "activation"))]
    back = (("recv", "gradient"), ("B", ""), ("I", ""), ("send", "gradient"))
    backward = [(kind, flow, c) for c in reversed(chunks) for kind, flow in back]
    late = [("W", "", c) for c in reversed(chunks)]
    for key in (*forward, *backward, *late):
        if key in own:
            yield schedule.placement[key[2]], own[key]
    for kind in ("reduce", *_ENDS):
        found = [(stage, a) for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == kind]
        yield from sorted(found, key=lambda at: (-at[1].chunk, at[0]))  # gradients are whole at the end first


class _Rank:
    """One rank of the way: what of its tables belongs to which of its actions."""

    def __init__(
        self,
        spec: RunSpec,
        schedule: Schedule,
        mesh: Mesh,
        at: Coordinate,
        traffic: pd.DataFrame,
        spans: pd.DataFrame | None,
        replayed: dict[tuple[int, Action], tuple[float, float]],
    ) -> None:
        self.spec, self.mesh, self.at, self.rank = spec, mesh, at, mesh.rank(at)
        self.actions = schedule.stages[at.pp]
        self.chunks = sum(stage == at.pp for stage in schedule.placement)
        self.times: dict[Action, tuple[float, float]] = {a: t for (stage, a), t in replayed.items() if stage == at.pp}
        self.calls: dict[tuple[Action, str], list[tuple[float, float]]] = {}
        if spans is not None:
            self._read(spans[spans["rank"] == self.rank].sort_values("start_ns", kind="stable"))
        self.shares: dict[Action, list[Passed]] = {}
        for row in traffic[traffic["rank"] == self.rank].itertuples():
            self._share(row)

    def events(self, action: Action) -> list[Event]:
        start, end = self.times.get(action, (None, None))
        once = action.kind in ("reduce", *_ENDS)
        passed = self.shares.get(action, [])
        if action.kind in _MESSAGES:
            return [Event(self.rank, self.at.pp, action, passed[0] if passed else None, once, start, end)]
        found = [Event(self.rank, self.at.pp, action, None, once, start, end)]
        for calls in passed:
            spans = self.calls.get((action, calls.collective), [])
            first = min((s for s, _ in spans), default=None)
            last = max((e for _, e in spans), default=None)
            found.append(Event(self.rank, self.at.pp, action, calls, once, first, last))
        return found

    # ---------------------------------------------------------------------------------------------------------------- spans

    def _read(self, spans: pd.DataFrame) -> None:
        """When each action ran, and which calls each made: those that began while it ran."""
        compute = spans[spans["lane"] == "compute"]
        rows = zip(compute["kind"], compute["chunk"], compute["microbatch"], strict=True)
        done = [Action(kind, chunk, microbatch) for kind, chunk, microbatch in rows]
        starts = compute["start_ns"].to_numpy()
        for action, start, end in zip(done, starts, compute["end_ns"], strict=True):
            self.times[action] = (float(start), float(end))
        comm = spans[spans["lane"] == "comm"]
        calls = comm[~comm["kind"].isin(_MESSAGES)]
        around = np.searchsorted(starts, calls["start_ns"], side="right") - 1
        for at, kind, start, end in zip(around, calls["kind"], calls["start_ns"], calls["end_ns"], strict=True):
            self.calls.setdefault((done[at], str(kind)), []).append((float(start), float(end)))
        self._read_messages(comm[comm["kind"].isin(_MESSAGES)])

    def _read_messages(self, messages: pd.DataFrame) -> None:
        """A span does not tell its flow: a rank takes in and sends on activations before it runs backward, gradients after."""
        spans: dict[tuple[str, int, int, str], list[tuple[float, float]]] = {}
        columns = (messages[c] for c in ("kind", "chunk", "microbatch", "start_ns", "end_ns"))
        for kind, chunk, microbatch, start, end in zip(*columns, strict=True):
            turn = Action("F" if kind == "recv" else "B", chunk, microbatch)
            at = self.times.get(turn) or self.times.get(Action("I", chunk, microbatch)) or (float("inf"), 0.0)
            flow = "activation" if start < at[0] else "gradient"
            spans.setdefault((kind, chunk, microbatch, flow), []).append((float(start), float(end)))
        for action in self.actions:
            if parts := spans.get((action.kind, action.chunk, action.microbatch, action.flow)):
                self.times[action] = (min(s for s, _ in parts), max(e for _, e in parts))

    # -------------------------------------------------------------------------------------------------------------- traffic

    def _share(self, row: Any) -> None:
        """Give each action its part of one row of the traffic table. The parts add up to the row."""
        group = tuple(int(member) for member in row.group.split(","))
        weights = self._weights(row, group)
        total = sum(weights.values())
        if not total:
            return
        before = np.zeros(3, dtype="int64")
        whole = np.array([row.calls, row.payload_bytes, row.wire_bytes], dtype="int64")
        come = 0
        for action, weight in weights.items():
            come += weight
            until = whole * come // total  # so that what is cut off here is there in a later part
            calls, payload, wire = (int(n) for n in until - before)
            before = until
            alike = self.chunks == 1 or weight == total or (row.collective in _MESSAGES and not self.spec.model.parts.encoder)
            exact = alike and not (whole * weight % total).any()
            if calls or payload:
                part = Passed(row.axis, row.collective, row.phase, group, calls, payload, wire, exact)
                self.shares.setdefault(action, []).append(part)

    def _weights(self, row: Any, group: tuple[int, ...]) -> dict[Action, int]:
        """The actions that a row's calls belong to, and their parts of it."""
        if row.collective in _MESSAGES:
            flow = "activation" if row.phase == "forward" else "gradient"
            peer = next(r for r in group if r != self.rank)
            stage = self.mesh.coordinate(peer).pp
            return {a: 1 for a in self.actions if (a.kind, a.flow, a.peer) == (row.collective, flow, stage)}
        if row.phase in _ENDS:
            return {a: 1 for a in self.actions if a.kind == row.phase}
        kinds = ("F",) if row.phase == "forward" else _BACKWARD
        passes = [a for a in self.actions if a.kind in kinds]
        if self._once(row):
            return self._by_reduction(row.collective, passes)
        if not self.calls:
            return {a: self._layers(a.chunk) for a in passes if a.kind != "W"}
        counted = {a: self._counted(row, a, passes) for a in passes}
        return counted if any(counted.values()) else {a: self._layers(a.chunk) for a in passes if a.kind != "W"}

    def _once(self, row: Any) -> bool:
        """Below ZeRO 2 gradients are added up once a step, over the replicas and, of what tp does not cut, over its slices."""
        layout = self.spec.layout
        over_tp = layout.sequence_parallel and row.axis == "tp" and row.collective == "all_reduce"
        return row.phase == "backward" and layout.zero < 2 and (row.axis == "dp" or over_tp)

    def _by_reduction(self, collective: str, passes: list[Action]) -> dict[Action, int]:
        """The chunks' reductions, by the calls that the last backward of each made beyond those that every backward makes."""
        beyond = Counter({a.chunk: 0 for a in passes})
        for a in passes:
            beyond[a.chunk] += len(self.calls.get((a, collective), [])) - self._usual(collective, a, passes)
        even = not any(beyond.values())
        return {a: self._layers(a.chunk) if even else beyond[a.chunk] for a in self.actions if a.kind == "reduce"}

    def _counted(self, row: Any, action: Action, passes: list[Action]) -> int:
        """Calls of one pass along the row's axis. On tp and pp all microbatches make the same; what is more is dp's."""
        usual = self._usual(row.collective, action, passes)
        if row.axis != "dp" or self.mesh.tp == 1:
            return usual if row.axis != "dp" else len(self.calls.get((action, row.collective), []))
        return len(self.calls.get((action, row.collective), [])) - (usual if self._both(row.collective) else 0)

    def _both(self, collective: str) -> bool:
        """Whether passes call it along tp as well as along dp, which happens where both are sharded."""
        return self.spec.layout.sequence_parallel and collective in ("all_gather", "reduce_scatter")

    def _usual(self, collective: str, action: Action, passes: list[Action]) -> int:
        """The fewest calls that any microbatch's pass of this kind through this chunk makes.

        W fetches the input's parts again over tp and scatters nothing there: what a W scatters are gradients, over dp.
        """
        if action.kind == "W" and collective == "reduce_scatter":
            return 0
        alike = (a for a in passes if (a.kind, a.chunk) == (action.kind, action.chunk))
        return min(len(self.calls.get((a, collective), [])) for a in alike)

    def _layers(self, chunk: int) -> int:
        """A chunk's part where nothing was counted: its layers, and one for what holds none."""
        return max(1, self.spec.layout.chunk_layers(self.spec.model.layers)[chunk])
