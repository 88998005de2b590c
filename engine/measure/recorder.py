"""What one rank keeps of a step: a span for every action and transfer, and a count of what passed the door.

The recorder always runs; it starts anew at each step, so what it holds is the last step's. Its cost is two clock
readings a span. While memory is traced it also tells the tracer, through `mark`, when actions and the door's work begin and
end, so that the allocator's events can be attributed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.schedule import Action
from engine.topology import Axis

ACTION_MARK, DOOR_MARK = "shardscope.action ", "shardscope.door "


class Passage(NamedTuple):
    """What makes calls through the door the same row of the traffic table."""

    axis: Axis
    collective: str
    phase: str
    group: tuple[int, ...]


@dataclass(slots=True)
class Count:
    calls: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0


@dataclass(slots=True)
class Span:
    """Wall-clock start and end in the machine's monotonic clock, and this thread's CPU time between them."""

    lane: str
    kind: str
    chunk: int
    microbatch: int
    start_ns: int
    end_ns: int = 0
    cpu_ns: int = 0


class Recorder:
    def __init__(self) -> None:
        self.mark: Callable[[str], AbstractContextManager[object]] | None = None  # of the tracer, while it traces
        self.resized: Callable[[Any], None] = lambda tensor: None  # told of a tensor whose storage grew or shrank
        self.step = 0
        self.origin_ns = 0
        self.actions: list[Span] = []
        self.spans: list[Span] = []  # of what passed the door
        self.traffic: defaultdict[Passage, Count] = defaultdict(Count)
        self._phase, self._chunk, self._microbatch = "", -1, -1

    def begin_step(self, step: int, origin_ns: int) -> None:
        """Forget the step before. `origin_ns` is the instant that all ranks take as this step's zero."""
        self.step, self.origin_ns = step, origin_ns
        self.actions.clear()
        self.spans.clear()
        self.traffic.clear()

    @contextmanager
    def action(self, action: Action, phase: str) -> Iterator[None]:
        """Spans what happens inside, and attributes to it the passages through the door."""
        self._phase, self._chunk, self._microbatch = phase, action.chunk, action.microbatch
        mark = self.mark(f"{ACTION_MARK}{phase} {action}") if self.mark else None
        if mark:
            mark.__enter__()
        span = Span("compute", action.kind, action.chunk, action.microbatch, time.perf_counter_ns())
        cpu = time.thread_time_ns()
        try:
            yield
        finally:
            span.cpu_ns = time.thread_time_ns() - cpu
            span.end_ns = time.perf_counter_ns()
            if mark:
                mark.__exit__(None, None, None)
            self.actions.append(span)

    def passage(self, passage: Passage, payload_bytes: int, wire_bytes: int) -> Span:
        """Count one call through the door and open its span; `close` it when the call is complete."""
        count = self.traffic[passage]
        count.calls += 1
        count.payload_bytes += payload_bytes
        count.wire_bytes += wire_bytes
        span = Span(
            "comm", passage.collective, self._chunk, self._microbatch, time.perf_counter_ns(), cpu_ns=-time.thread_time_ns()
        )
        self.spans.append(span)
        return span

    def door(self, collective: str) -> AbstractContextManager[Any]:
        """Mark what happens inside as the door's own work, for the memory trace."""
        return self.mark(f"{DOOR_MARK}{collective}") if self.mark else nullcontext()

    @property
    def phase(self) -> str:
        return self._phase

    @staticmethod
    def close(span: Span) -> None:
        span.cpu_ns = max(0, span.cpu_ns + time.thread_time_ns())
        span.end_ns = time.perf_counter_ns()

    def span_rows(self, rank: int) -> list[dict[str, Any]]:
        rows = []
        # Of a transfer, the door's own span is the measurement.
        computed = [span for span in self.actions if span.kind not in ("send", "recv")]
        for span in sorted([*computed, *self.spans], key=lambda s: s.start_ns):
            rows.append(
                {
                    "rank": rank, "lane": span.lane, "kind": span.kind, "chunk": span.chunk, "microbatch": span.microbatch,
                    "step": self.step, "start_ns": span.start_ns - self.origin_ns, "end_ns": span.end_ns - self.origin_ns,
                    "cpu_ns": span.cpu_ns,
                }
            )  # fmt: skip
        return rows

    def traffic_rows(self, rank: int) -> list[dict[str, Any]]:
        return [
            {
                "rank": rank, "axis": p.axis, "collective": p.collective, "phase": p.phase,
                "group": ",".join(map(str, p.group)), "calls": c.calls,
                "payload_bytes": c.payload_bytes, "wire_bytes": c.wire_bytes,
            }
            for p, c in self.traffic.items()
        ]  # fmt: skip
