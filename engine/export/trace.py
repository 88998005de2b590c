"""The timeline and the memory of a run in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

A rank is a process. It has one thread for compute and several for communication. The format reads events that overlap on one
thread as nested, so transfers that overlap get different threads. Memory was traced in one more step after the timed steps. In
the trace it follows them, with the actions of its own step above the counters, since its clock is not that of the timed step.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pandas as pd

from engine import catalog
from engine.predict.traffic import PredictedCall, calls
from engine.tables import COORDINATE, RunResult
from engine.topology import Mesh

_COMPUTE, _COMM = (
    0,
    1,
)  # threads of a rank, in the order of viewers: compute, the first of comm; after all of comm, the traced step
_TRACKS = 1_000  # thread ids of a rank
_GAP_NS = 1_000_000  # between the timed step and the traced one
_PHASES = {"F": "forward", "B": "backward", "I": "backward", "W": "backward"}  # the phase of calls in an action; else its kind

Event = dict[str, Any]


class _Span(NamedTuple):
    """A row of the table of spans."""

    lane: str
    kind: str
    chunk: int
    microbatch: int
    step: int
    start_ns: int
    end_ns: int
    cpu_ns: int


def perfetto(result: RunResult) -> str:
    """The trace as JSON text, with its events in order of time."""
    layout = result.spec.layout
    mesh = layout.mesh
    spans, curve, traffic = (result.tables[name] for name in ("spans", "memory_curve", "traffic"))
    sent = [calls(result.spec, stage) for stage in range(mesh.pp)]
    traced_from = int(spans["end_ns"].max()) + _GAP_NS
    named: list[Event] = []
    events: list[Event] = []
    for rank in sorted({*spans["rank"], *curve["rank"]}):  # a dry run may not have all ranks
        timed = [_Span(*row) for row in spans.loc[spans["rank"] == rank, list(_Span._fields)].itertuples(index=False)]
        lanes = _lanes([span for span in timed if span.lane == "comm"])
        named += _names(rank, mesh, len(lanes))
        events += _compute(rank, [span for span in timed if span.lane == "compute"])
        payloads = _payloads(sent[mesh.coordinate(rank).pp], traffic[traffic["rank"] == rank])
        events += _communication(rank, lanes, timed, payloads)
        events += _memory(rank, curve[curve["rank"] == rank], traced_from, _COMM + len(lanes))
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    about = {"model": catalog.name_of(result.spec.model), "layout": layout.code, "schedule": layout.schedule}
    return json.dumps({"traceEvents": named + events, "displayTimeUnit": "ms", "otherData": about}, separators=(",", ":"))


def _names(rank: int, mesh: Mesh, lanes: int) -> Iterator[Event]:
    at = mesh.coordinate(rank)
    place = ", ".join(f"{axis} {at[axis]}" for axis in COORDINATE if axis in mesh.written)
    process = {"ph": "M", "pid": _pid(rank), "tid": _tid(rank, _COMPUTE)}
    yield process | {"name": "process_name", "args": {"name": f"rank {rank} ({place})"}}
    yield process | {"name": "process_sort_index", "args": {"sort_index": rank}}
    called = ["compute", *("comm" if n == 0 else f"comm {n + 1}" for n in range(lanes)), "memory's step"]
    for track, name in enumerate(called):
        thread = process | {"tid": _tid(rank, track)}
        yield thread | {"name": "thread_name", "args": {"name": name}}
        yield thread | {"name": "thread_sort_index", "args": {"sort_index": track}}


def _compute(rank: int, spans: list[_Span]) -> Iterator[Event]:
    for span in spans:
        label = span.kind + (str(span.microbatch) if span.microbatch >= 0 else "")
        yield _slice(rank, _COMPUTE, label, span.start_ns, span.end_ns, "compute", _args(span))


def _communication(
    rank: int, lanes: list[list[_Span]], all_spans: list[_Span], payloads: dict[tuple[str, str], int]
) -> Iterator[Event]:
    """Communication calls, with the payload if it is known for a single call."""
    actions = sorted((span for span in all_spans if span.lane == "compute"), key=lambda span: span.start_ns)
    starts = [action.start_ns for action in actions]
    for track, lane in enumerate(lanes, _COMM):
        for span in lane:
            at = bisect_right(starts, span.start_ns) - 1  # the last action that began before the call
            within = at >= 0 and span.start_ns < actions[at].end_ns and span.kind not in ("send", "recv")
            kind = actions[at].kind if within else ""
            size = payloads.get((span.kind, _PHASES.get(kind, kind)))
            extra = {} if size is None else {"payload_bytes": size}
            yield _slice(rank, track, span.kind, span.start_ns, span.end_ns, "comm", _args(span) | extra)


def _payloads(sent: list[PredictedCall], traffic: pd.DataFrame) -> dict[tuple[str, str], int]:
    """(collective, phase) → the payload of one call, if all calls have one size by formula, and the counted bytes agree.

    The counts alone are not enough: the mean of a large and a small call looks like the size of both. The phase of a transfer is
    "", since it may overlap with actions of any phase.
    """
    sizes: dict[tuple[str, str], set[int]] = {}
    for call in sent:
        sizes.setdefault(_phase(call.collective, call.phase), set()).add(call.payload_bytes)
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    for row in traffic.itertuples(index=False):
        key = _phase(str(row.collective), str(row.phase))
        times, payload = counted.get(key, (0, 0))
        counted[key] = times + cast(int, row.calls), payload + cast(int, row.payload_bytes)
    one_size = {key: next(iter(found)) for key, found in sizes.items() if len(found) == 1}
    return {key: size for key, size in one_size.items() if key in counted and counted[key][0] * size == counted[key][1]}


def _phase(collective: str, phase: str) -> tuple[str, str]:
    return collective, "" if collective in ("send", "recv") else phase


def _memory(rank: int, curve: pd.DataFrame, begin: int, track: int) -> Iterator[Event]:
    """Counters of bytes by category, and the actions of the traced step. Each action ends when the next begins."""
    if curve.empty:
        return
    wide = curve.pivot_table(index="t_ns", columns="category", values="bytes", aggfunc="last", sort=False, fill_value=0)
    for instant, row in wide.sort_index().iterrows():
        sizes = {str(category): int(size) for category, size in row.items()}
        yield {"ph": "C", "name": "memory (bytes)", **_at(rank, track), "ts": _us(begin + cast(int, instant)), "args": sizes}
    points = curve.sort_values("t_ns", kind="stable")[["t_ns", "action"]].drop_duplicates()
    changes = points[points["action"] != points["action"].shift()]
    instants = [int(t) for t in changes["t_ns"]] + [int(points["t_ns"].max())]
    for action, start, end in zip(changes["action"], instants, instants[1:], strict=False):
        yield _slice(rank, track, str(action), begin + start, begin + end, "memory", {})


def _lanes(spans: list[_Span]) -> list[list[_Span]]:
    """The spans on as few tracks as possible, so that none overlap on a track. At least one track."""
    lanes: list[list[_Span]] = [[]]
    for span in sorted(spans, key=lambda span: span.start_ns):
        lane = next((lane for lane in lanes if not lane or lane[-1].end_ns <= span.start_ns), None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(span)
    return lanes


def _slice(rank: int, track: int, name: str, start: int, end: int, category: str, args: Event) -> Event:
    where = {"ph": "X", "name": name, "cat": category, **_at(rank, track)}
    return where | {"ts": _us(start), "dur": _us(end - start), "args": args}


def _args(span: _Span) -> Event:
    numbers = {"chunk": span.chunk, "microbatch": span.microbatch}
    return {name: value for name, value in numbers.items() if value >= 0} | {"step": span.step, "cpu_us": _us(span.cpu_ns)}


def _at(rank: int, track: int) -> Event:
    return {"pid": _pid(rank), "tid": _tid(rank, track)}


def _tid(rank: int, track: int) -> int:
    """The id of a thread. It is unique among all processes, and differs from the id of its process.

    Perfetto identifies a thread by its id alone. It takes a thread with the id of its process as the main thread.
    """
    return _TRACKS * _pid(rank) + track


def _pid(rank: int) -> int:
    """The id of a process. 0 is the idle process, which viewers hide."""
    return rank + 1


def _us(ns: int) -> float:
    """Nanoseconds in microseconds, the format's unit. A reader that truncates to nanoseconds gets the same number."""
    us = ns / 1000
    return us if int(us * 1000) == ns else math.nextafter(us, math.inf)
