"""What one rank records of a step: a span for every action and every communication call, and the traffic by axis and purpose.

The recorder always runs. It is cleared at the start of each step, so it holds the last step. It costs two clock readings a span.
While memory is traced, it also marks for the tracer when actions and communication regions begin and end, so that the
allocator's events can be attributed to them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.schedule import Action
from engine.topology import CallAxis

ACTION_MARK, COMMUNICATION_MARK = "shardscope.action ", "shardscope.communication "


class TrafficKey(NamedTuple):
    """Calls with the same key are one row of the traffic table. `group`: the ranks that take part."""

    axis: CallAxis
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
    """Wall-clock start and end in the machine's monotonic clock, and this thread's CPU time between them.

    Of a call, also its axis, and the time in which the rank was busy with the call alone: it started the call, waited for it, or
    added up what came. −1 where that is not known.
    """

    lane: str
    kind: str
    chunk: int
    microbatch: int
    start_ns: int
    end_ns: int = 0
    cpu_ns: int = 0
    axis: str = "none"
    exposed_ns: int = 0


class StepSpans(NamedTuple):
    """The spans of one step, as they were when it ended. `origin_ns`: the instant that all ranks take as its time 0."""

    step: int
    origin_ns: int
    spans: tuple[Span, ...]

    def moved(self, ns: int) -> StepSpans:
        """The same with a time 0 that is later by `ns`."""
        return self._replace(origin_ns=self.origin_ns + ns)

    def rows(self, rank: int) -> list[dict[str, Any]]:
        return [
            {
                "rank": rank, "lane": span.lane, "kind": span.kind, "chunk": span.chunk, "microbatch": span.microbatch,
                "step": self.step, "start_ns": span.start_ns - self.origin_ns, "end_ns": span.end_ns - self.origin_ns,
                "cpu_ns": span.cpu_ns, "axis": span.axis, "exposed_ns": span.exposed_ns,
            }
            for span in sorted(self.spans, key=lambda s: s.start_ns)
        ]  # fmt: skip


class Recorder:
    def __init__(self) -> None:
        self.mark: Callable[[str], AbstractContextManager[object]] | None = (
            None  # of the tracer, while it traces: marks a range by name
        )
        self.resized: Callable[[Any], None] = lambda tensor: None  # called with a tensor whose storage was resized
        self.step = 0
        self.origin_ns = 0
        self.actions: list[Span] = []
        self.spans: list[Span] = []  # of communication calls
        self.traffic: defaultdict[TrafficKey, Count] = defaultdict(Count)
        self._phase, self._chunk, self._microbatch = "", -1, -1

    def begin_step(self, step: int, origin_ns: int) -> None:
        """Clear the last step. `origin_ns`: the instant that all ranks take as time 0 of this step."""
        self.step, self.origin_ns = step, origin_ns
        self.actions.clear()
        self.spans.clear()
        self.traffic.clear()

    @contextmanager
    def action(self, action: Action, phase: str) -> Iterator[None]:
        """Record a span of what runs inside, and attribute communication calls inside to this action and `phase`."""
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

    def start_call(self, key: TrafficKey, payload_bytes: int, wire_bytes: int) -> Span:
        """Count one communication call and open its span. `close` the span when the call is complete."""
        count = self.traffic[key]
        count.calls += 1
        count.payload_bytes += payload_bytes
        count.wire_bytes += wire_bytes
        cpu = time.thread_time_ns()
        now = time.perf_counter_ns()
        span = Span("comm", key.collective, self._chunk, self._microbatch, now, cpu_ns=-cpu, axis=key.axis)
        self.spans.append(span)
        return span

    def communication_region(self, collective: str) -> AbstractContextManager[Any]:
        """Mark what runs inside as communication, for the memory trace."""
        return self.mark(f"{COMMUNICATION_MARK}{collective}") if self.mark else nullcontext()

    def loss_chunk(self, number: int) -> AbstractContextManager[Any]:
        """What runs inside is chunk `number` of the loss. A recorded ledger marks it; a run does not."""
        return nullcontext()

    def context_step(self, number: int, of: int) -> AbstractContextManager[Any]:
        """What runs inside is a step of attention over the tokens of `of` cp ranks. A ledger marks it; a run does not."""
        return nullcontext()

    def product(self, multiply: Callable[[], None], flops: int, *sizes: int) -> None:
        """Run a product of matrices that may be made of several operations, and allocates nothing.

        A recording marks it with its FLOPs and the bytes of each matrix, last of the result, and does not run it.
        """
        multiply()

    @property
    def phase(self) -> str:
        return self._phase

    @staticmethod
    def close(span: Span) -> None:
        span.cpu_ns = max(0, span.cpu_ns + time.thread_time_ns())
        span.end_ns = time.perf_counter_ns()

    def step_spans(self) -> StepSpans:
        # A send or recv is measured by the span of its call, not of its action.
        computed = [span for span in self.actions if span.kind not in ("send", "recv")]
        return StepSpans(self.step, self.origin_ns, (*computed, *self.spans))

    def span_rows(self, rank: int) -> list[dict[str, Any]]:
        return self.step_spans().rows(rank)

    def traffic_rows(self, rank: int) -> list[dict[str, Any]]:
        return [
            {
                "rank": rank, "axis": p.axis, "collective": p.collective, "phase": p.phase,
                "group": ",".join(map(str, p.group)), "calls": c.calls,
                "payload_bytes": c.payload_bytes, "wire_bytes": c.wire_bytes,
            }
            for p, c in self.traffic.items()
        ]  # fmt: skip
