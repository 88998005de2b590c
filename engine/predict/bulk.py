"""Peak memory of thousands of layouts at once: the same ledgers as `engine.predict.memory`, with arrays for sizes.

Layouts that differ in sizes alone are played once, and a ledger's highest point is found for all of them in one product of
matrices: how many blocks of each kind there are at each point × how large they are in each layout.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.buckets import REDUCING, Buckets
from engine.predict.chunk import Sample, Shape
from engine.predict.grid import RECOMPUTES, Grid
from engine.predict.parts import Kit
from engine.predict.passes import ChunkPasses
from engine.predict.sizes import WIDTHS, Sizes
from engine.predict.tape import Record, Tape
from engine.predict.terms import Factor
from engine.schedule import SCHEDULES
from engine.schedule.orders import messages_held, stage_order
from engine.spec import V_SHAPED, ModelSpec, RequestError, ScheduleName, WorkloadSpec

Array = NDArray[np.int64]
KINDS: dict[ScheduleName, frozenset[str]] = {
    **dict.fromkeys(("naive", "gpipe", "1f1b", "interleaved"), frozenset("B")),
    **dict.fromkeys(("zb-h1", "zb-v"), frozenset("IW")),
    "dualpipe-v": frozenset("BIW"),
}  # type: ignore[assignment]


def fullest(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> tuple[Array, Array]:
    """The peak of each layout's fullest stage in bytes, and which stage that is. `workload` gives what is not in the grid.

    The first two stages, the middle one and the last two are looked at. Layers are split as evenly as can be.
    """
    if model.parts.encoder:
        return _one_by_one(model, workload, grid)
    best, where = np.zeros(len(grid), np.int64), np.zeros(len(grid), np.int64)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    columns = (
        grid.zero, grid.sequence_parallel & (grid.tp > 1), grid.recompute, grid.microbatch_size > 1, grid.tp > 1,
        model.heads // grid.tp > 1, model.key_heads // grid.tp > 1, grid.dp > 1, grid.schedule, grid.microbatches > 1,
        grid.pp * grid.chunks > 1,
    )  # fmt: skip
    names = [SCHEDULES[i] for i in range(len(SCHEDULES))]
    for index, (*rest, schedule, several, cut) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        groups[*rest, KINDS[names[schedule]], several, cut].append(index)
    instants: Instants = {}
    for indices in groups.values():
        some = np.array(indices)
        group = _Group(model, workload, grid.take(some), instants)
        best[some], where[some] = group.fullest()
    return best, where


def _one_by_one(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> tuple[Array, Array]:
    """For an encoder and a decoder, whose stages have many forms."""
    from engine.predict.memory import memory

    peaks = [[peak.total for peak in memory(grid.spec(i, model, workload)).peaks] for i in range(len(grid))]
    return np.array([max(p) for p in peaks]), np.array([int(np.argmax(p)) for p in peaks])


class Instant(NamedTuple):
    """The start of an action: passes in flight and W owed by chunk, messages held, and the action at hand."""

    flying: tuple[int, ...]
    owed: tuple[int, ...]
    messages: int
    kind: str
    at: int  # which of the stage's chunks


Instants = dict[tuple[ScheduleName, int, int, int, int], list[Instant]]


@dataclass
class _Ledger:
    """What an action does in each layout: what it leaves, and its highest point."""

    net: Array
    highest: Array


class _Reader:
    """Turns a tape's blocks into columns of one matrix: bytes of each kind of block in each layout."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._columns: dict[tuple[Any, ...], int] = {}
        self._sizes: list[Array] = []

    def column(self, record: Record) -> int:
        known = tuple(f.value if isinstance(f.value, int) else id(f.value) for f in record.factors)
        if known not in self._columns:
            size: Any = np.ones(self.count, np.int64)
            for factor in record.factors:
                size = size * factor.value
            self._columns[known] = len(self._sizes)
            self._sizes.append(size)
        return self._columns[known]

    def ledger(self, parts: list[tuple[Any, list[tuple[int, int]]]]) -> _Ledger:
        """`parts`: how often each is repeated, and its (sign, column). A part may be repeated 0 or −1 times: see `_samples`."""
        sizes = np.stack(self._sizes) if self._sizes else np.zeros((1, self.count), np.int64)
        net, highest = np.zeros(self.count, np.int64), np.zeros(self.count, np.int64)
        for times, events in parts:
            if not events:
                continue
            steps = np.zeros((len(events), len(sizes)), np.int64)
            signs, columns = zip(*events, strict=True)
            steps[np.arange(len(events)), columns] = signs
            reached = steps.cumsum(0)
            ends = reached[-1]
            tops = np.array([i for i, sign in enumerate(signs) if sign > 0 and (i + 1 == len(signs) or signs[i + 1] < 0)])
            one = ends.astype(float) @ sizes
            if len(tops):
                top = (reached[tops].astype(float) @ sizes).max(0).astype(np.int64)
                top = np.maximum(top, 0)
                last = top + np.maximum(times - 1, 0) * one.astype(np.int64)
                highest = np.where(times > 0, np.maximum(highest, net + np.maximum(top, last)), highest)
            net = net + times * one.astype(np.int64)
        return _Ledger(net, highest)


def _undominated(rows: Any, numbers: Any) -> Any:
    """Of those rows, the ones that no other has at least as much of everything as."""
    _, first = np.unique(rows, axis=0, return_index=True)
    rows, numbers = rows[first], numbers[first]
    if len(rows) > 1:
        beaten = (rows[:, None, :] <= rows[None, :, :]).all(2)
        np.fill_diagonal(beaten, False)
        numbers = numbers[~beaten.any(1)]
    return numbers


class _Group:
    """Layouts that differ in sizes alone."""

    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, instants: Instants) -> None:
        self.model, self.workload, self.grid, self.instants = model, workload, grid, instants
        self.zero, self.reduces = int(grid.zero[0]), bool(grid.dp[0] > 1)
        flags = tuple(bool(x[0]) for x in (
            grid.microbatch_size > 1, grid.tp > 1, model.heads // grid.tp > 1, model.key_heads // grid.tp > 1,
        ))  # fmt: skip
        self.sizes = Sizes.of(
            model, workload, grid.tp, grid.microbatch_size, bool(grid.sequence_parallel[0]), RECOMPUTES[int(grid.recompute[0])],
            flags,  # type: ignore[arg-type]
        )  # fmt: skip
        self.g = Factor("g", WIDTHS[workload.accumulate if workload.precision == "bf16" else "fp32"])
        self.kinds = KINDS[SCHEDULES[int(grid.schedule[0])]]
        self.each, self.rest = np.divmod(model.layers, grid.pp * grid.chunks)
        z = self.sizes
        message = z.B.value * z.s.value * z.H.value * z.e.value
        self.message = np.broadcast_to(message, (len(grid),))
        self.parts: dict[tuple[bool, bool], tuple[dict[str, _Ledger], Any]] = {}

    def fullest(self) -> tuple[Array, Array]:
        grid = self.grid
        best, where = np.zeros(len(grid), np.int64), np.zeros(len(grid), np.int64)
        combos: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        for i, combo in enumerate(zip(*(x.tolist() for x in (grid.schedule, grid.pp, grid.microbatches, grid.chunks)), strict=True)):
            combos[combo].append(i)
        for (schedule, pp, microbatches, chunks), indices in combos.items():
            some = np.array(indices)
            name = SCHEDULES[schedule]
            for stage in sorted({0, min(1, pp - 1), pp // 2, max(0, pp - 2), pp - 1}):
                total = self._stage(some, name, stage, pp, microbatches, chunks)
                better = total > best[some]
                best[some] = np.where(better, total, best[some])
                where[some] = np.where(better, stage, where[some])
        return best, where

    def _stage(self, some: Any, name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int) -> Array:
        """The peak of one stage in those layouts."""
        up = name in V_SHAPED
        held = [run * pp + (pp - 1 - stage if up and run % 2 else stage) for run in range(chunks)]
        last = pp * chunks - 1
        ledgers, standing = [], np.zeros(len(some), np.int64)
        for c in held:
            found, stands = self._chunk(c == 0, c == last)
            extra = c < self.rest[some]
            ledgers.append({a: _Ledger(x.net[extra.astype(int), some], x.highest[extra.astype(int), some]) for a, x in found.items()})
            standing = standing + stands[extra.astype(int), some]
        message = self.message[some]
        peak = np.zeros(len(some), np.int64)
        for flying, owed, messages, kind, at in self._candidates(name, stage, pp, microbatches, chunks):
            now = messages * message
            for own, c, passes, owing in zip(ledgers, held, flying, owed, strict=True):
                kept = own["F"].net - message * (c < last)
                if passes:
                    now = now + passes * kept
                if owing:
                    own_more = own.get("I over", own["I"])  # gradients that are added up are there once
                    now = now + owing * (kept + own_more.net + message * (c < last)) + own["I"].net - own_more.net
            action = ledgers[at].get(kind, ledgers[at][kind.removesuffix(" last")])
            peak = np.maximum(peak, now + action.highest)
        return standing + peak + 8

    def _candidates(self, name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int) -> list[Instant]:
        microbatches = _enough(name, pp, microbatches)
        key = (name, stage, pp, microbatches, chunks)
        if key not in self.instants:
            self.instants[key] = _instants(*key)
        return self.instants[key]

    def _chunk(self, first: bool, last: bool) -> tuple[dict[str, _Ledger], Any]:
        """Ledgers of a chunk and what stands of it, (2, n): without and with one layer of the division's rest."""
        if (first, last) not in self.parts:
            both = [self._play(first, last, self.each + extra) for extra in (0, 1)]
            names = both[0][0].keys()
            ledgers = {
                a: _Ledger(np.stack([b[0][a].net for b in both]), np.stack([b[0][a].highest for b in both])) for a in names
            }
            self.parts[first, last] = ledgers, np.stack([b[1] for b in both])
        return self.parts[first, last]

    def _play(self, first: bool, last: bool, layers: Array) -> tuple[dict[str, _Ledger], Array]:
        tape = Tape()
        one = np.ones(len(layers), np.int64)
        counts = (one, layers - 2, one)
        samples = tuple(Sample(False, False, count) for count in counts)
        dp = Factor("dp", self.grid.dp)
        buckets = Buckets(tape, self.sizes, dp, self.zero, self.reduces, self.g.value != self.sizes.e.value, self.g)
        player = ChunkPasses(
            Kit(tape, self.sizes, buckets), Shape(first, last, samples), self.kinds, int(self.grid.microbatches.max())
        )
        player.run()
        reader = _Reader(len(layers))
        parts: dict[str, list[Any]] = defaultdict(list)
        pending: list[Any] = []
        several = int(self.grid.microbatches[0]) > 1
        for segment, events in tape.parts:
            times = counts[segment.layer] if segment.layer >= 0 else one
            marked = [(sign, reader.column(record), record) for sign, record in events if record.born != "pending" or several]
            if segment.action == "pending" and several:
                pending.append((one, [(s, c) for s, c, _ in marked if s > 0]))
            parts[segment.action].append((times, [(s, c) for s, c, _ in marked]))
            if self.zero == 1 and segment.action in ("B", "I", "W"):
                parts[f"{segment.action} last"].append(parts[segment.action].pop())
                parts[segment.action].append((times, [(s, c) for s, c, r in marked if r.name not in REDUCING]))
        wanted = ("F", "B", "I", "W", "I over", "W over", "B last", "I last", "W last")
        stands = self._standing(player) + reader.ledger(pending[:1]).net
        return {name: reader.ledger(found) for name, found in parts.items() if name in wanted}, stands

    def _standing(self, player: ChunkPasses) -> Array:
        workload = self.workload
        moments = 8 if workload.optimizer == "adamw" else 4 if workload.momentum else 0
        total = np.zeros(len(self.grid), np.int64)
        for bucket, times in player.chunk.weights():
            size, share = bucket.size.value, bucket.share.value
            bytes_ = (share if self.zero == 3 else size) * self.sizes.e.value + (share if self.zero >= 2 else size) * self.g.value
            bytes_ = bytes_ + share * (moments + (4 if self.sizes.wide else 0)) + (4 if moments == 8 else 0)
            total = total + times * bytes_
        return total


def _enough(name: ScheduleName, pp: int, microbatches: int) -> int:
    """So many microbatches that more of them bring no higher instant."""
    most = {"naive": 3, "gpipe": microbatches, "1f1b": pp + 2, "zb-h1": 2 * pp + 2}.get(name, 4 * pp)
    return microbatches if microbatches % pp and name == "interleaved" else min(microbatches, most)


def _instants(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int) -> list[Instant]:
    """The instants of a stage's step that can be its highest."""
    up = name in V_SHAPED
    held = [run * pp + (pp - 1 - stage if up and run % 2 else stage) for run in range(chunks)]
    place = {c: i for i, c in enumerate(held)}
    last = pp * chunks - 1
    most = messages_held(name, pp, microbatches)
    flying, owed, done, messages = [0] * chunks, [0] * chunks, [0] * chunks, 0
    sent: dict[tuple[str, int], int] = defaultdict(int)
    found: dict[tuple[str, int], set[tuple[int, ...]]] = defaultdict(set)

    def elsewhere(c: int) -> bool:
        return 0 <= c <= last and c not in place

    def send(flow: str, to: int) -> int:
        """One more on the way; returns how many are given up for it."""
        peer = to % pp if not up or to < pp else 2 * pp - 1 - to
        sent[flow, peer] += 1
        return int(sent[flow, peer] > most)

    for action in stage_order(name, stage, pp, microbatches, chunks):
        c, kind = action.chunk, action.kind
        at = place[c]
        if kind == "F":
            messages += elsewhere(c - 1)
        elif kind != "W":
            messages += elsewhere(c + 1)
        done[at] += kind in ("B", "I")
        ends = kind != "F" and done[at] == microbatches and (kind != "W" or owed[at] == 1)
        found[f"{kind} last" if ends else kind, at].add((*flying, *owed, messages))
        if kind == "F":
            flying[at] += 1
            messages += c < last
            messages -= send("activation", c + 1) if elsewhere(c + 1) else 0
        elif kind == "W":
            owed[at] -= 1
        else:
            flying[at] -= 1
            owed[at] += kind == "I"
            messages -= c < last
            messages -= send("gradient", c - 1) if elsewhere(c - 1) else 0
    out = []
    for (kind, at), states in found.items():
        rows = np.array(sorted(states))
        for i in _undominated(rows, np.arange(len(rows))):
            row = rows[i].tolist()
            out.append(Instant(tuple(row[:chunks]), tuple(row[chunks:-1]), row[-1], kind, at))
    return out


__all__ = ["RequestError", "fullest"]
