"""The path of one microbatch through a step, as a list of events: passes, collectives, messages and updates.

The schedule says what happens. A traffic table says how many bytes. The times come from a table of spans, or from a replay.
The tables are those of a measured run, or the predictions for a layout that has not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.predict.traffic.calls import wire_bytes
from engine.predict.traffic.step import Training
from engine.schedule import Action, Schedule, plan
from engine.schedule.timeline import Timeline
from engine.spec import RunSpec
from engine.tables import members

_BACKWARD = ("B", "I", "W")
_ENDS = ("tie", "step", "gather")  # phases that have an action of the same name
_MESSAGES = ("send", "recv")

Counts = NDArray[np.int64]  # (3,): calls, payload bytes, wire bytes


@dataclass(frozen=True)
class Communication:
    """What one event sends or receives through one kind of call: the number of calls and their total bytes, on one rank.

    `exact` is False where the bytes are an estimate. Where a schedule splits backward, tables have only the sum of both halves,
    and it is divided by the number of calls.
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

    The event is `action` itself if `communication` is None or if the action is a message. Otherwise it is the calls of one kind
    that the action makes. `once`: it happens once a step, for all microbatches. Times are in ns, or in the textbook's units.
    """

    rank: int
    stage: int
    action: Action
    communication: Communication | None = None
    once: bool = False
    start: float | None = None
    end: float | None = None

    @property
    def is_call(self) -> bool:
        return self.communication is not None and self.action.kind not in _MESSAGES


class MicrobatchPath(NamedTuple):
    """The microbatch that is followed, its replica (dp), and its slice (tp) on every stage."""

    microbatch: int
    dp: int = 0
    tp: int = 0


def walk(
    spec: RunSpec,
    traffic: pd.DataFrame,
    path: MicrobatchPath,
    spans: pd.DataFrame | None = None,
    replayed: Timeline | None = None,
) -> list[Event]:
    """The events of one microbatch. Each event comes after all events that it depends on.

    `traffic` and `spans` are tables of one step. `replayed` gives the times where there are no spans.
    """
    layout, mesh = spec.layout, spec.layout.mesh
    schedule = replayed.schedule if replayed else plan(layout, spec.workload.microbatches, spec.model.parts.tied)
    times: list[dict[Action, tuple[float, float]]] = [{} for _ in schedule.stages]
    for t in replayed.timed if replayed else ():
        if t.action.microbatch in (path.microbatch, -1):
            times[t.stage][t.action] = (t.start, t.end)
    ranks = []
    for stage, known in enumerate(times):
        rank = mesh.rank({"pp": stage, "dp": path.dp, "tp": path.tp})
        mine = traffic[traffic["rank"] == rank]
        own = None if spans is None else spans[spans["rank"] == rank]
        ranks.append(_Rank(spec, schedule, rank, path.microbatch, mine, own, known))
    return [event for stage, action in _order(schedule, path.microbatch) for event in ranks[stage].events(action)]


def _order(schedule: Schedule, microbatch: int) -> Iterator[tuple[int, Action]]:
    """(stage, action) in order: forward through the chunks, backward through them, deferred W passes, and the end of the step."""
    chunks = range(len(schedule.placement))
    of_microbatch: dict[tuple[str, str, int], Action] = {}
    for actions in schedule.stages:
        for action in actions:
            if action.microbatch == microbatch:
                of_microbatch[action.kind, action.flow, action.chunk] = action
    forward = [(kind, flow, c) for c in chunks for kind, flow in (("recv", "activation"), ("F", ""), ("send", "activation"))]
    back = (("recv", "gradient"), ("B", ""), ("I", ""), ("send", "gradient"))
    backward = [(kind, flow, c) for c in reversed(chunks) for kind, flow in back]
    late = [("W", "", c) for c in reversed(chunks)]
    for key in (*forward, *backward, *late):
        if key in of_microbatch:
            yield schedule.placement[key[2]], of_microbatch[key]
    for kind in ("reduce", *_ENDS):
        found = [(stage, a) for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == kind]
        yield from sorted(found, key=lambda at: (-at[1].chunk, at[0]))  # the last chunk has its gradients first


def _by_chunk(spec: RunSpec, stage: int) -> dict[tuple[int, str, str, str, int], Counts]:
    """(chunk, axis, collective, phase, other stage of a message) → predicted calls, payload and wire bytes a rank and step."""
    found: dict[tuple[int, str, str, str, int], Counts] = {}
    mesh, training = spec.layout.mesh, Training(spec)
    for chunk in training.ledgers.on(stage):
        for call in training.of_chunk(chunk):
            other = -1 if call.between is None else sum(call.between) - stage
            wire = wire_bytes(call.collective, call.payload_bytes, call.ranks(mesh.degree(call.axis)))
            more = call.calls * np.array([1, call.payload_bytes, wire], dtype="int64")
            key = (chunk.number, call.axis, call.collective, call.phase, other)
            found[key] = found.get(key, np.zeros(3, dtype="int64")) + more
    return found


class _Rank:
    """One rank on the path: assigns the rows of its tables to its actions."""

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
        self.shares: dict[Action, list[Communication]] = {}
        for row in traffic.itertuples():
            self._share(row)

    def events(self, action: Action) -> list[Event]:
        start, end = self.times.get(action, (None, None))
        once = action.kind in ("reduce", *_ENDS)
        communication = self.shares.get(action, [])
        if action.kind in _MESSAGES:
            return [Event(self.rank, self.at.pp, action, communication[0] if communication else None, once, start, end)]
        found = [Event(self.rank, self.at.pp, action, None, once, start, end)]
        for calls in communication:
            spans = self.calls.get((action, calls.collective), [])
            first = min((s for s, _ in spans), default=None)
            last = max((e for _, e in spans), default=None)
            found.append(Event(self.rank, self.at.pp, action, calls, once, first, last))
        return found

    # ---------------------------------------------------------------------------------------------------------------- spans

    def _read(self, spans: pd.DataFrame) -> None:
        """Find when each action ran, and its calls: those that began while it ran."""
        compute = spans[spans["lane"] == "compute"]
        rows = zip(compute["kind"], compute["chunk"], compute["microbatch"], strict=True)
        done = [Action(kind, chunk, microbatch) for kind, chunk, microbatch in rows]
        starts = compute["start_ns"].to_numpy()
        for action, start, end in zip(done, starts, compute["end_ns"], strict=True):
            self.times[action] = (float(start), float(end))
        comm = spans[spans["lane"] == "comm"]
        calls = comm[~comm["kind"].isin(_MESSAGES)]
        during = np.searchsorted(starts, calls["start_ns"], side="right") - 1
        for at, kind, start, end in zip(during, calls["kind"], calls["start_ns"], calls["end_ns"], strict=True):
            self.calls.setdefault((done[at], str(kind)), []).append((float(start), float(end)))
        self._read_messages(comm[comm["kind"].isin(_MESSAGES)])

    def _read_messages(self, messages: pd.DataFrame) -> None:
        """Find when each message passed. A span has no flow: before the backward pass it is an activation, then a gradient."""
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
        """Divide one row of the traffic table among actions. The parts add up to the row."""
        group = members(row.group)
        named = (row.axis, row.collective, row.phase)
        whole = np.array([row.calls, row.payload_bytes, row.wire_bytes], dtype="int64")
        for chunk, amount, certain in self._by_chunk(row, group, whole):
            weights = {action: weight for action, weight in self._weights(row, group, chunk).items() if weight}
            known = certain and len({action.kind for action in weights}) == 1 and len(set(weights.values())) == 1
            total, given = sum(weights.values()), 0
            for action, weight in weights.items():
                given += weight
                if action.microbatch in (self.microbatch, -1):
                    # Rounded down here; a later part has what is missing.
                    calls, payload, wire = (int(n) for n in amount * given // total - amount * (given - weight) // total)
                    if calls or payload:
                        exact = known and not (amount * weight % total).any()
                        part = Communication(*named, group, calls, payload, wire, exact)
                        self.shares.setdefault(action, []).append(part)

    def _by_chunk(self, row: Any, group: tuple[int, ...], whole: Counts) -> list[tuple[int, Counts, bool]]:
        """(chunk, its part of the row, whether that is certain). The prediction has the parts by chunk.

        If the predicted parts do not add up to the row, as in a table of another program, it is divided by numbers of layers.
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
        """Action of the chunk → weight of its part of a row's calls."""
        if row.phase in _ENDS:
            return dict.fromkeys(self._of(row.phase, -1), 1)
        if row.collective in _MESSAGES:
            flow = "activation" if row.phase == "forward" else "gradient"
            stage = self.mesh.coordinate(next(r for r in group if r != self.rank)).pp
            return {a: 1 for a in self._of(row.collective, chunk, flow) if a.peer == stage}
        if row.phase == "reduce" or self._once(row):
            return dict.fromkeys(self._of("reduce", chunk), 1)
        if row.phase == "forward":
            return dict.fromkeys(self._of("F", chunk), 1)  # every microbatch makes the same calls
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
        """Whether the row is the reduction of gradients at the end of a step, which ZeRO 0 and 1 have.

        It is over dp. With sequence parallelism, gradients of parameters that tp does not shard are summed over tp too.
        """
        layout = self.spec.layout
        over_tp = layout.sequence_parallel and row.axis == "tp" and row.collective == "all_reduce"
        return row.phase == "backward" and layout.zero < 2 and (row.axis == "dp" or over_tp)

    def _counted(self, row: Any, action: Action, passes: list[Action]) -> int:
        """Measured calls of one half of a split backward along the row's axis.

        A span has no axis. Along tp all microbatches make the same number of calls: the smallest number found. The rest is
        dp's. W has no reduce-scatter over tp: what it scatters are gradients, over dp.
        """
        total = len(self.calls.get((action, row.collective), []))
        both = self.spec.layout.sequence_parallel and row.collective in ("all_gather", "reduce_scatter")
        same_kind = (a for a in passes if a.kind == action.kind)
        over_tp = min(len(self.calls.get((a, row.collective), [])) for a in same_kind)
        if action.kind == "W" and row.collective == "reduce_scatter":
            over_tp = 0
        if row.axis == "dp":
            return total - over_tp if both and self.mesh.tp > 1 else total
        return over_tp
