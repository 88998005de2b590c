"""One microbatch's way through a step, event by event: each pass, what it calls on other ranks for, each message, each update.

What happens comes from the schedule, how many bytes from a traffic table, when from a table of spans or from a replay: of a run
as it was measured, or of a layout that has not run yet, by its prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.predict.timeline import Timeline
from engine.predict.traffic.calls import wire_bytes
from engine.predict.traffic.step import Training
from engine.schedule import Action, Schedule, plan
from engine.spec import RunSpec
from engine.tables import members

_BACKWARD = ("B", "I", "W")
_ENDS = ("tie", "step", "gather")  # one action of its own for each of these phases
_MESSAGES = ("send", "recv")

Counts = NDArray[np.int64]  # (3,): calls, payload bytes, wire bytes


@dataclass(frozen=True)
class Passed:
    """What one event hands to others through one kind of call: `calls` of them, and their bytes together, on one rank.

    `exact` is False where a schedule splits backward, and tables give only the sum of both halves: parts are then by calls.
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
    spec: RunSpec, traffic: pd.DataFrame, way: Way, spans: pd.DataFrame | None = None, replayed: Timeline | None = None
) -> list[Event]:
    """The events of one microbatch, in an order in which each comes after all that it needs.

    `traffic` and `spans` are tables of one step; `replayed` tells the times where there are no spans.
    """
    layout, mesh = spec.layout, spec.layout.mesh
    schedule = replayed.schedule if replayed else plan(layout, spec.workload.microbatches, spec.model.parts.tied)
    times: list[dict[Action, tuple[float, float]]] = [{} for _ in schedule.stages]
    for t in replayed.timed if replayed else ():
        if t.action.microbatch in (way.microbatch, -1):
            times[t.stage][t.action] = (t.start, t.end)
    ranks = []
    for stage, known in enumerate(times):
        rank = mesh.rank({"pp": stage, "dp": way.dp, "tp": way.tp})
        mine = traffic[traffic["rank"] == rank]
        own = None if spans is None else spans[spans["rank"] == rank]
        ranks.append(_Rank(spec, schedule, rank, way.microbatch, mine, own, known))
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


def _by_chunk(spec: RunSpec, stage: int) -> dict[tuple[int, str, str, str, int], Counts]:
    """(chunk, axis, collective, phase, other stage of a message) → calls, payload and wire bytes of a rank's step, predicted."""
    found: dict[tuple[int, str, str, str, int], Counts] = {}
    mesh, training = spec.layout.mesh, Training(spec)
    for chunk in training.ledgers.on(stage):
        for call in training.of_chunk(chunk):
            other = -1 if call.between is None else sum(call.between) - stage
            wire = wire_bytes(call.collective, call.payload_bytes, 2 if call.between else mesh[call.axis])
            more = call.calls * np.array([1, call.payload_bytes, wire], dtype="int64")
            key = (chunk.number, call.axis, call.collective, call.phase, other)
            found[key] = found.get(key, np.zeros(3, dtype="int64")) + more
    return found


class _Rank:
    """One rank of the way: what of its tables belongs to which of its actions."""

    def __init__(
        self,
        spec: RunSpec,
        schedule: Schedule,
        rank: int,
        microbatch: int,
        traffic: pd.DataFrame,
        spans: pd.DataFrame | None,
        times: dict[Action, tuple[float, float]],
    ) -> None:
        """`traffic` and `spans` are this rank's own rows."""
        self.spec, self.mesh, self.rank, self.microbatch, self.times = spec, spec.layout.mesh, rank, microbatch, times
        self.at = self.mesh.coordinate(rank)
        self.actions: dict[tuple[str, str, int], list[Action]] = {}
        for action in schedule.stages[self.at.pp]:
            self.actions.setdefault((action.kind, action.flow, action.chunk), []).append(action)
        self.held = [chunk for chunk, stage in enumerate(schedule.placement) if stage == self.at.pp]
        self.chunks = len(self.held)
        self.predicted = _by_chunk(spec, self.at.pp) if self.chunks > 1 else {}
        self.calls: dict[tuple[Action, str], list[tuple[float, float]]] = {}
        if spans is not None:
            self._read(spans.sort_values("start_ns", kind="stable"))
        self.shares: dict[Action, list[Passed]] = {}
        for row in traffic.itertuples():
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
        for action in chain.from_iterable(self.actions.values()):
            if parts := spans.get((action.kind, action.chunk, action.microbatch, action.flow)):
                self.times[action] = (min(s for s, _ in parts), max(e for _, e in parts))

    # -------------------------------------------------------------------------------------------------------------- traffic

    def _share(self, row: Any) -> None:
        """Give each action its part of one row of the traffic table. The parts add up to the row."""
        group = members(row.group)
        named = (row.axis, row.collective, row.phase)
        whole = np.array([row.calls, row.payload_bytes, row.wire_bytes], dtype="int64")
        for chunk, amount, certain in self._by_chunk(row, group, whole):
            weights = {action: weight for action, weight in self._weights(row, group, chunk).items() if weight}
            known = certain and len({action.kind for action in weights}) == 1 and len(set(weights.values())) == 1
            total, come = sum(weights.values()), 0
            for action, weight in weights.items():
                come += weight
                if action.microbatch in (self.microbatch, -1):
                    # What is cut off here is there in a later part.
                    calls, payload, wire = (int(n) for n in amount * come // total - amount * (come - weight) // total)
                    if calls or payload:
                        exact = known and not (amount * weight % total).any()
                        part = Passed(*named, group, calls, payload, wire, exact)
                        self.shares.setdefault(action, []).append(part)

    def _by_chunk(self, row: Any, group: tuple[int, ...], whole: Counts) -> list[tuple[int, Counts, bool]]:
        """(chunk, its part of the row, whether that is certain). What the row adds up is known from the prediction, by chunk.

        Where a chunk's part is not predicted, as in a table from elsewhere, its layers decide.
        """
        if self.chunks == 1 or row.phase in _ENDS:
            return [(self.held[0], whole, True)]
        peer = next((r for r in group if r != self.rank), self.rank)
        between = self.mesh.coordinate(peer).pp if row.collective in _MESSAGES else -1
        found = [
            (c, self.predicted.get((c, row.axis, row.collective, row.phase, between), np.zeros_like(whole))) for c in self.held
        ]
        if np.array_equal(np.sum([amount for _, amount in found], axis=0), whole):
            return [(chunk, amount, True) for chunk, amount in found]
        layers = self.spec.layout.chunk_layers(self.spec.model.layers)
        ends = np.cumsum([max(1, layers[c]) for c in self.held])
        parts = np.diff([whole * int(end) // int(ends[-1]) for end in (0, *ends)], axis=0)
        return [(chunk, amount, False) for chunk, amount in zip(self.held, parts, strict=True)]

    def _weights(self, row: Any, group: tuple[int, ...], chunk: int) -> dict[Action, int]:
        """The chunk's actions that a row's calls belong to, and their parts of it."""
        if row.phase in _ENDS:
            return dict.fromkeys(self._of(row.phase, -1), 1)
        if row.collective in _MESSAGES:
            flow = "activation" if row.phase == "forward" else "gradient"
            stage = self.mesh.coordinate(next(r for r in group if r != self.rank)).pp
            return {a: 1 for a in self._of(row.collective, chunk, flow) if a.peer == stage}
        if self._once(row):
            return dict.fromkeys(self._of("reduce", chunk), 1)
        if row.phase == "forward":
            return dict.fromkeys(self._of("F", chunk), 1)  # every microbatch does the same
        whole, first, second = (self._of(kind, chunk) for kind in _BACKWARD)
        if not second:
            return dict.fromkeys(whole, 1)
        passes = [*whole, *first, *second]
        counted = {a: self._counted(row, a, passes) for a in passes}
        if any(counted.values()):
            return counted
        late = row.axis == "dp" and row.collective == "reduce_scatter"
        return dict.fromkeys(second if late else [*whole, *first], 1)

    def _of(self, kind: str, chunk: int, flow: str = "") -> list[Action]:
        return self.actions.get((kind, flow, chunk), [])

    def _once(self, row: Any) -> bool:
        """Below ZeRO 2 gradients are added up once a step, over the replicas and, of what tp does not cut, over its slices."""
        layout = self.spec.layout
        over_tp = layout.sequence_parallel and row.axis == "tp" and row.collective == "all_reduce"
        return row.phase == "backward" and layout.zero < 2 and (row.axis == "dp" or over_tp)

    def _counted(self, row: Any, action: Action, passes: list[Action]) -> int:
        """Calls that one half of a split backward was seen to make along the row's axis; a span does not tell its axis.

        Along tp all microbatches make the same calls, so the fewest; what is more is dp's. W scatters nothing over tp: what it
        scatters are gradients, over dp.
        """
        every = len(self.calls.get((action, row.collective), []))
        both = self.spec.layout.sequence_parallel and row.collective in ("all_gather", "reduce_scatter")
        alike = (a for a in passes if a.kind == action.kind)
        usual = min(len(self.calls.get((a, row.collective), [])) for a in alike)
        if action.kind == "W" and row.collective == "reduce_scatter":
            usual = 0
        if row.axis == "dp":
            return every - usual if both and self.mesh.tp > 1 else every
        return usual
