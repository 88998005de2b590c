"""Where a rank's memory goes, from the allocator's own events over one traced step.

torch's profiler reports every allocation and every free of the C++ allocator with its address, size and time. The category of a
block follows from the owner of its address, or else from the actions in which it was allocated and freed:

    parameters, gradients, optimizer   the address is that of a tensor of that kind
    kv_cache                           the same, when generating
    activations                        allocated in a forward (or received for one), freed in a backward; and the gradients that
                                       an I allocates (or that are received for it) and its W frees
    communication                      allocated in a communication region or a transfer; or freed in a later action without
                                       being an activation, such as an output that waits to be sent
    temporary                          allocated and freed within one action, and all others

A kernel workspace is what one operation allocates and frees inside itself. It has no category and is in no table: it depends on
the processor (oneDNN's scratchpads, copies of operands), not on the layout. `MemoryTrace.workspace` is what it adds to the peak.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from engine.measure.recorder import ACTION_MARK, COMMUNICATION_MARK, Recorder
from engine.tables import CATEGORIES, KV_CACHE
from engine.topology import Coordinate

Owned = Mapping[str, Iterable[Tensor]]  # category → the tensors that stay over steps and belong to it


class ActionTime(NamedTuple):
    start_ns: int
    end_ns: int
    phase: str
    kind: str
    text: str

    @classmethod
    def of(cls, mark: str, start_ns: int, end_ns: int) -> ActionTime:
        """From the name of a recorder's mark of an action."""
        phase, text = mark.removeprefix(ACTION_MARK).split(" ", 1)
        return cls(start_ns, end_ns, phase, text.split(" ", 1)[0], text)


@dataclass(slots=True)
class MemoryBlock:
    """One allocation. `born` and `died` are numbers of actions; −1 is before the step. `operation`: the one that allocated it."""

    size: int
    born: int
    in_communication: bool
    owner: str = ""
    died: int | None = None
    operation: int = -1


class BlockEvent(NamedTuple):
    """A block is allocated (sign 1) or freed (sign −1)."""

    t_ns: int
    action: int
    sign: int
    block: MemoryBlock


@dataclass(frozen=True)
class MemoryTrace:
    """The memory of one step. `start_total` and `peak_total` are bytes by the allocator's own count."""

    actions: list[ActionTime]
    events: list[BlockEvent]  # without kernel workspaces
    standing: list[MemoryBlock]  # blocks from before the step
    start_total: int
    peak_total: int  # kernel workspaces included
    workspace: int  # bytes that kernel workspaces add to the peak
    unaccounted: int  # bytes of live tensors at the end, minus those that the events imply

    def curve(self) -> list[tuple[int, int, dict[str, int]]]:
        """(t_ns from the step's start, number of the action, bytes by category): at each action's start and highest point."""
        generating = any(block.owner == KV_CACHE for block in self.standing)
        now = dict.fromkeys((*CATEGORIES, KV_CACHE) if generating else CATEGORIES, 0)
        for block in self.standing:
            now[self._category(block)] += block.size
        zero = self.actions[0].start_ns
        points = [(0, 0, dict(now))]
        current, best, best_at = 0, sum(now.values()), 0
        best_now = dict(now)
        for event in self.events:
            if event.action != current:
                points.append((best_at, current, best_now))
                current, best_now, best = event.action, dict(now), sum(now.values())
                best_at = self.actions[current].start_ns - zero
                points.append((best_at, current, dict(now)))
            now[self._category(event.block)] += event.sign * event.block.size
            if sum(now.values()) > best:
                best, best_now, best_at = sum(now.values()), dict(now), event.t_ns - zero
        points.append((best_at, current, best_now))
        points.append((self.actions[-1].end_ns - zero, len(self.actions) - 1, dict(now)))
        return _one_each_instant(points)

    def rows(self, rank: int, at: Coordinate) -> dict[str, list[dict[str, Any]]]:
        """Rows of the memory tables, and the allocator's totals."""
        totals = {
            "start_bytes": self.start_total,
            "peak_bytes": self.peak_total,
            "workspace_bytes": self.workspace,
            "unaccounted_bytes": self.unaccounted,
        }
        return {
            "memory_peak": self.peak_rows(rank, at),
            "memory_curve": self.curve_rows(rank),
            "allocator": [{"rank": rank, **totals}],
        }

    def peak_rows(self, rank: int, at: Coordinate) -> list[dict[str, Any]]:
        highest = max((composition for _, _, composition in self.curve()), key=lambda c: sum(c.values()))
        who = {"rank": rank} | at.columns
        return [who | {"category": c, "bytes": n} for c, n in highest.items()]

    def curve_rows(self, rank: int) -> list[dict[str, Any]]:
        return [
            {"rank": rank, "t_ns": t, "action": self.actions[action].text, "category": category, "bytes": size}
            for t, action, composition in self.curve()
            for category, size in composition.items()
        ]

    def _category(self, block: MemoryBlock) -> str:
        if block.owner:
            return block.owner
        if block.born < 0:
            return "temporary"
        born = self.actions[block.born]
        transfer = born.kind in ("send", "recv")
        if block.died == block.born:
            return "communication" if block.in_communication or transfer else "temporary"
        if block.died is None:
            return "temporary"
        died = self.actions[block.died].kind
        if born.phase == "forward" and died in ("B", "I", "W"):
            return "activations"
        if born.kind in ("I", "recv") and died == "W" and not block.in_communication:
            return "activations"
        return "communication"


def _one_each_instant(points: list[tuple[int, int, dict[str, int]]]) -> list[tuple[int, int, dict[str, int]]]:
    """Points in order of time. Of several at one instant, the highest."""
    kept: dict[int, tuple[int, int, dict[str, int]]] = {}
    for point in points:
        known = kept.get(point[0])
        if known is None or sum(point[2].values()) > sum(known[2].values()):
            kept[point[0]] = point
    return [kept[t] for t in sorted(kept)]


class AllocatorEvent(NamedTuple):
    """`size` bytes are allocated at `address`, or freed where `size` is negative.

    `operation`: the number of the operation that was running, or −1 between operations.
    """

    t_ns: int
    address: int
    size: int
    operation: int = -1


class Events(NamedTuple):
    """All events of one step, in order of time."""

    actions: list[ActionTime]
    regions: list[tuple[int, int]]  # start and end of each communication region
    memory: list[AllocatorEvent]


def attribute(events: Events, before: dict[int, int], owners: dict[int, str], after: int) -> MemoryTrace:
    """Match frees with allocations. `before`: address → bytes of the blocks at the start of the step. `after`: bytes at its end.

    A block that one operation allocates and frees is a kernel workspace. `peak_total` is computed from the events; a caller that
    knows the allocator's own count replaces it.
    """
    starts = [a.start_ns for a in events.actions]
    region_starts = [start for start, _ in events.regions]
    alive = {p: MemoryBlock(size, -1, False, owners.get(p, "")) for p, size in before.items()}
    standing = list(alive.values())
    block_events = []
    inside = set()  # kernel workspaces, by identity
    for t_ns, pointer, size, operation in events.memory:
        action = max(0, bisect_right(starts, t_ns) - 1)
        if size > 0:
            region = bisect_right(region_starts, t_ns) - 1
            in_communication = region >= 0 and t_ns <= events.regions[region][1]
            block = MemoryBlock(size, action, in_communication, owners.get(pointer, ""), operation=operation)
            alive[pointer] = block
            block_events.append(BlockEvent(t_ns, action, 1, block))
        elif pointer in alive:
            block = alive.pop(pointer)
            block.died = action
            block_events.append(BlockEvent(t_ns, action, -1, block))
            if operation >= 0 and operation == block.operation:
                inside.add(id(block))
    lasting = [event for event in block_events if id(event.block) not in inside]
    start, with_workspace = sum(before.values()), _highest(block_events)
    unaccounted = after - sum(b.size for b in alive.values())
    workspace = with_workspace - _highest(lasting)
    return MemoryTrace(events.actions, lasting, standing, start, start + with_workspace, workspace, unaccounted)


def _highest(block_events: list[BlockEvent]) -> int:
    """The most bytes that the events add to those from before."""
    return max(accumulate((event.sign * event.block.size for event in block_events), initial=0))


class StepTracer(Protocol):
    """Traces the memory of what runs inside `step`. `result` returns it afterwards."""

    def step(self) -> AbstractContextManager[None]: ...

    def result(self) -> MemoryTrace: ...


MakeTracer = Callable[[Owned, Recorder, torch.device], StepTracer]


class Tracer:
    """Traces with torch's profiler."""

    def __init__(self, owned: Owned, recorder: Recorder, device: torch.device) -> None:
        self._owners = {t.untyped_storage().data_ptr(): category for category, tensors in owned.items() for t in tensors}
        self._recorder, self._device = recorder, device
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._before: dict[int, int] = {}
        self._after: dict[int, int] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        self._before = _live_storages(self._device)
        self._recorder.mark = record_function
        try:
            with self._profile:
                yield
        finally:
            self._recorder.mark = None
        self._after = _live_storages(self._device)

    def result(self) -> MemoryTrace:
        profiler = self._profile.profiler
        assert profiler is not None
        assert profiler.kineto_results is not None
        events, running = _events(profiler.kineto_results.experimental_event_tree(), self._device.type)
        trace = attribute(events, self._before, self._owners, sum(self._after.values()))
        first = running[0] - events.memory[0][2]
        return replace(trace, peak_total=trace.start_total + max(0, max(running) - first))


def _live_storages(device: torch.device) -> dict[int, int]:
    """Address → bytes of every tensor storage on the device that Python can reach.

    Between steps no tensor is held by C++ alone, so these are all. Objects from before the fork are frozen out of the collector;
    they are not looked at, and hold no tensor. A storage that cannot be resized did not come from the allocator: it is a view
    that `engine.parallel.comm` made for a collective. gloo's threads may hold it after its owner was freed.
    """
    gc.collect()  # a tensor in a dead cycle would be counted as there, and go unseen later
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type == device.type:
            storage = thing.untyped_storage()
            if storage.nbytes() and storage.resizable():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def _events(tree: list[Any], device: str) -> tuple[Events, list[int]]:
    """The profiler's tree, flattened, and the allocator's running total at each event of memory."""
    actions: list[ActionTime] = []
    regions: list[tuple[int, int]] = []
    memory: list[tuple[AllocatorEvent, int]] = []
    operations = 0
    stack = [(event, -1) for event in reversed(tree)]
    while stack:
        event, operation = stack.pop()
        name = event.name
        if name == "[memory]":
            fields = event.extra_fields
            if fields.device.type == device:
                allocation = AllocatorEvent(event.start_time_ns, fields.ptr, fields.alloc_size, operation)
                memory.append((allocation, fields.total_allocated))
        elif name.startswith(ACTION_MARK):
            actions.append(ActionTime.of(name, event.start_time_ns, event.end_time_ns))
        elif name.startswith(COMMUNICATION_MARK):
            regions.append((event.start_time_ns, event.end_time_ns))
        elif operation < 0 and is_operation(name):
            operation, operations = operations, operations + 1
        stack.extend((child, operation) for child in reversed(event.children))  # in order, so that events of one instant stay so
    memory.sort(key=lambda m: m[0].t_ns)
    return Events(sorted(actions), sorted(regions), [m[0] for m in memory]), [m[1] for m in memory]


@lru_cache(maxsize=4096)  # torch has some 1,600 operators
def is_operation(name: str) -> bool:
    """Whether an event of the profiler is an operation with a kernel of its own, not a composite operation.

    A result inside a composite operation is no workspace. A dispatch mode, and so the dry run, sees the same operations. Events
    do not name the overload, so one composite overload is enough. Overloads with names of dimensions are not used here.
    """
    space, _, operator = name.partition("::")
    if space == "mkldnn":  # see `engine.parallel.product`
        return True
    packet = getattr(torch.ops.aten, operator, None) if space == "aten" else None
    if packet is None:
        return False
    overloads = [o for o in packet.overloads() if "Dimname" not in str(getattr(packet, o)._schema)]
    return not any((name if o == "default" else f"{name}.{o}") in _composite_operations() for o in overloads)


@lru_cache(maxsize=1)
def _composite_operations() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))
