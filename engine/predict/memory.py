"""How much memory every rank takes at its peak, by category, in closed form; and where in the step that is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from engine.optimizer import optimizer_of
from engine.predict.tape.buckets import Bucket, Buckets, numbers
from engine.predict.tape.chunk import Shape
from engine.predict.tape.generation import Generation
from engine.predict.tape.moments import ALL_OF, MOST, highest, in_flight, way_of, with_left_out
from engine.predict.tape.parts import Kit
from engine.predict.tape.passes import ChunkPasses, Counts, Key, Ledger, Part, Passes, size_of
from engine.predict.tape.sizes import FOUR, SYMBOLS, WIDTHS, Sizes
from engine.predict.tape.tape import Tape
from engine.predict.tape.walk import Change, Effect, Effects, Moment, StageWalk
from engine.predict.terms import Factor, Term, total
from engine.schedule import Action, Schedule, plan, replay
from engine.schedule.orders import kinds_of
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import CATEGORIES, KV_CACHE, LARGEST, SCHEMAS, table
from engine.topology import Coordinate, Mesh

PASSING = ("activations", "communication")  # what is there once for each microbatch in flight


@dataclass(frozen=True)
class Peak:
    """Ranks of a stage at their peak. `terms[c]` add up to `bytes[c]`."""

    stage: int
    action: str
    bytes: dict[str, int]
    terms: dict[str, tuple[Term, ...]]

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


class Place(NamedTuple):
    """Which of a stage's ranks: what they hold differs in the optimizer's step only, by which numbers of the norm each counts."""

    stage: int
    replica: int = 0
    later: bool = False  # not the first of its tp group


@dataclass(frozen=True)
class Memory:
    """The peaks of all ranks, each peak told once.

    `others` has the stages whose ranks have several peaks. There, the first ranks of the tp groups and the later ones are listed
    apart. Neighbouring replicas with the same peak have one entry, under the first of them. Entries are in the order of replicas.
    """

    peaks: tuple[Peak, ...]  # one a stage, of its first rank
    others: dict[Place, Peak] = field(default_factory=dict)

    def of(self, at: Coordinate) -> Peak:
        """A rank's."""
        here = [place for place in self.others if (place.stage, place.later) == (at.pp, at.tp > 0) and place.replica <= at.dp]
        return self.others[max(here)] if here else self.peaks[at.pp]

    @property
    def fullest(self) -> tuple[Place, Peak]:
        """The first of those ranks that need most."""
        every = {Place(peak.stage): peak for peak in self.peaks} | self.others
        return max(sorted(every.items()), key=lambda found: found[1].total)


def memory(spec: RunSpec, all_of: int = ALL_OF, most: int = MOST) -> Memory:
    """The peak of every rank. Raises `RequestError` where the schedule is too long to be gone through, or the bytes too many.

    A schedule of up to `all_of` passes and messages is gone through whole, of a longer one what brings something new, and that is
    at most `most`.
    """
    stages = Stages(spec, all_of, most)
    if spec.generate.skip_training:
        return Memory(tuple(stages.generating(stage) for stage in range(spec.layout.pp)))
    peaks = tuple(stages.peak(Place(stage)) for stage in range(spec.layout.pp))
    return Memory(peaks, stages.others(peaks))


def _times(count: int, layers: int, in_flight: int) -> tuple[Factor, ...]:
    """How often a block is there: n of it × microbatches in flight × layers, as far as these divide the count; no factor of 1."""
    factors = []
    for symbol, times in (("mᶠ", in_flight), ("L", layers)):
        if times > 1 and count % times == 0:
            factors.append(Factor(symbol, times))
            count //= times
    return (*([Factor("n", count)] if count > 1 else []), *factors)


class Stages:
    """The stages of one spec: what stands on each, and its step."""

    def __init__(self, spec: RunSpec, all_of: int = ALL_OF, most: int = MOST) -> None:
        self.spec = spec
        layout, workload, model = spec.layout, spec.workload, spec.model
        self.sizes = Sizes.of(model, workload, layout.tp, workload.microbatch_size, layout.sequence_parallel, layout.recompute)
        self.dp = Factor("dp", layout.dp)
        self.g = Factor("g", WIDTHS[workload.accumulate if workload.precision == "bf16" else "fp32"])
        self.way = way_of(spec, all_of, most)
        self.kinds = kinds_of(layout.schedule, layout.pp, 1 if self.way.short else self.way.microbatches, layout.chunks)
        self._passes: dict[Shape, tuple[Passes, list[tuple[Bucket, Any]]]] = {}
        self._effects = Effects()
        self._chunks = [list[int]() for _ in range(layout.pp)]  # of each stage its chunks
        for chunk, stage in enumerate(layout.placement):
            self._chunks[stage].append(chunk)
        counts, self._layers = layout.chunk_layers(model.layers), layout.stage_layers(model.layers)
        ends = np.cumsum(counts)
        last = len(counts) - 1
        self.shapes = [
            Shape.of(model, range(int(end) - count, int(end)), c == 0, c == last)
            for c, (end, count) in enumerate(zip(ends, counts, strict=True))
        ]

    def passes(self, chunk: int) -> tuple[Passes, list[tuple[Bucket, Any]]]:
        shape = self.shapes[chunk]
        if shape not in self._passes:
            layout = self.spec.layout
            tape = Tape()
            buckets = Buckets(tape, self.sizes, self.dp, layout.zero, layout.dp > 1, self.g)
            player = ChunkPasses(Kit(tape, self.sizes, buckets), shape, self.kinds)
            self._passes[shape] = player.play(), player.chunk.weights()
        return self._passes[shape]

    def buckets(self, stage: int) -> list[tuple[Bucket, Any]]:
        """All of a stage, and how many there are of each."""
        return [pair for c in self._chunks[stage] for pair in self.passes(c)[1]]

    def walk(self, at: Place, schedule: Schedule) -> tuple[Counts, StageWalk]:
        """`schedule` need have the actions of that stage alone."""
        passes = {c: self.passes(c)[0] for c in self._chunks[at.stage]}
        step = Effect(self.step(at))
        walk = StageWalk(schedule, at.stage, passes, self.spec.layout.zero, step, self._effects)
        return self.standing(self.buckets(at.stage)), walk

    def _moments(self, at: Place) -> tuple[Counts, list[Moment]]:
        """What stands, and what the stage does, with one moment for all that its schedule leaves out at a place."""
        schedule, left_out = self.way.of(at.stage)
        standing, walk = self.walk(at, schedule)
        return standing, with_left_out(list(walk.moments()), left_out)

    def standing(self, buckets: list[tuple[Bucket, Any]]) -> Counts:
        counts: Counts = defaultdict(int)
        zero, workload = self.spec.layout.zero, self.spec.workload
        e, optimizer = self.sizes.e, optimizer_of(workload)

        def add(category: str, name: str, *factors: Factor, times: Any, layered: bool) -> None:
            counts[Key(category, name, factors, layered)] += times

        for bucket, times in buckets:
            layered = bucket.name == "the layers"

            def put(category: str, name: str, *factors: Factor, times=times, layered=layered) -> None:  # type: ignore[no-untyped-def]
                add(category, name, *factors, times=times, layered=layered)

            put("parameters", sentence("weights of {bucket}", bucket=bucket.name), bucket.share if zero == 3 else bucket.size, e)
            put(
                "gradients",
                sentence("gradients of {bucket}", bucket=bucket.name),
                bucket.share if zero >= 2 else bucket.size,
                self.g,
            )
            if self.sizes.wide:
                put("optimizer", sentence("fp32 copy of {bucket}", bucket=bucket.name), bucket.share, FOUR)
            for state in optimizer.states(workload):
                put("optimizer", state(bucket.name), bucket.share, FOUR)
            if optimizer.counts_steps:
                put("optimizer", sentence("count of steps of {bucket}", bucket=bucket.name), FOUR)
        add("temporary", sentence("loss and norm of the gradients"), Factor("2", 2), FOUR, times=1, layered=False)
        return counts

    def step(self, at: Place) -> Ledger:
        """The norm of the gradients, two numbers of four bytes for each piece of them; then the optimizer. Both on fp32 copies
        where gradients are bf16.
        """
        pieces, first, second = 0, list[Part](), list[Part]()
        for bucket, times in self.buckets(at.stage):
            found, size = bucket.counted_on(at.replica, at.later)
            pieces += times * found
            if self.g.value == 2:
                name, share = sentence("gradients of {bucket} as fp32", bucket=bucket.name), bucket.share
                counted = share if size == share.value else Factor("n", size)
                of_norm, of_step = (Key("temporary", name, (n, FOUR), bucket.name == "the layers") for n in (counted, share))
                first += [(times, [(1, of_norm)])] if size else []
                second.append((times, [(1, of_step)]))
        norms = Key("temporary", "norm of each gradient", (Factor("n", 2 * pieces + 1), FOUR), False)
        counter = Key("temporary", "numbers of one element", (FOUR,), False)
        first.append((1, [(1, norms)]))
        second.insert(0, (1, [(1, counter)]))
        back = [(times, [(-sign, key) for sign, key in events]) for times, events in first]
        return Ledger([*first, *back, *second, *((t, [(-sign, key) for sign, key in events]) for t, events in second)])

    def others(self, peaks: tuple[Peak, ...]) -> dict[Place, Peak]:
        """Of ranks that have another peak than their stage's first. They peak in the step, or would if they held as much."""
        layout, found = self.spec.layout, dict[Place, Peak]()
        for peak in (peak for peak in peaks if peak.action == "step"):
            alike, runs = {self._counted(Place(peak.stage)): peak}, dict[Place, Peak]()
            for later in (False, True)[: layout.tp]:
                last = None
                for replica in self._where_shares_differ(peak.stage) if layout.zero else [0]:
                    at = Place(peak.stage, replica, later)
                    counted = self._counted(at)
                    if counted not in alike:
                        alike[counted] = self.peak(at)
                    if alike[counted] is not last:
                        runs[at] = last = alike[counted]
            if len(alike) > 1:
                found |= runs
        return found

    def _where_shares_differ(self, stage: int) -> list[int]:
        """Replicas in order, the first among them: those between two of these count the same in the norm as the one before."""
        dp, found = self.spec.layout.dp, {0}
        for bucket, _ in self.buckets(stage):
            share, end = bucket.share.value, 0
            for size in (numbers([p.shape]) for p in sorted(bucket.parameters, key=lambda p: not p.whole)):
                end += size
                found |= {end // share, end // share + 1}  # where one begins that is cut, and where the next one is whole
        return sorted(replica for replica in found if replica < dp)

    def _counted(self, at: Place) -> tuple[tuple[int, int], ...]:
        return tuple(bucket.counted_on(at.replica, at.later) for bucket, _ in self.buckets(at.stage))

    def peak(self, at: Place) -> Peak:
        standing, moments = self._moments(at)
        best_at = highest(moments)
        moment = moments[best_at]
        changes: dict[Change, int] = defaultdict(int)
        for earlier in moments[:best_at]:
            for change in earlier.changes:
                changes[change] += 1
        for change in (*moment.before, *(moment.after if moment.effect is None else ())):
            changes[change] += 1
        counts: Counts = defaultdict(int, standing)
        for change, times in changes.items():
            for key, count in change.counts.items():
                counts[key] += times * count
        transient = {} if moment.effect is None else moment.effect.ledger.counts_at(moment.effect.highest[1])
        action = self.way.named(moment.action, moments[best_at:])
        return self._peak(at.stage, action, counts, transient, in_flight(moments[: best_at + 1]))

    def generating(self, stage: int) -> Peak:
        generation = Generation(self.spec, self.shapes)
        action, ledger = max(generation.passes(stage), key=lambda found: found[1].highest()[0])
        return self._peak(stage, action, generation.standing(stage), ledger.counts_at(ledger.highest()[1]))

    def _peak(self, stage: int, action: Action | str, before: Counts, transient: Counts, in_flight: int = 0) -> Peak:
        categories = (*CATEGORIES, KV_CACHE) if self.spec.generate.skip_training else CATEGORIES
        terms: dict[str, list[Term]] = {c: [] for c in categories}
        counts = defaultdict(int, before)
        for key, count in transient.items():
            counts[key] += count
        layers = self._layers[stage]
        for key, count in counts.items():
            if count:
                times = _times(count, layers if key.layered else 0, in_flight if key.category in PASSING else 0)
                terms[key.category].append(Term(key.name, (*times, *key.factors)))
        found = {c: tuple(t) for c, t in terms.items()}
        bytes_ = {c: total(t) for c, t in found.items()}
        if sum(bytes_.values()) > LARGEST:
            raise RequestError(
                sentence(
                    "a rank of stage {stage} would hold {bytes:.3g} bytes, and memory is told up to 2^63 bytes",
                    stage=stage,
                    bytes=float(sum(bytes_.values())),
                )
            )
        return Peak(stage, str(action), bytes_, found)


def peak_table(spec: RunSpec, found: Memory | None = None) -> pd.DataFrame:
    """A row for each rank and category, as `memory_peak` has it. `found`: `memory(spec)`, if known.

    Of very many ranks, as `Mesh.listed` has it, and the fullest: the others of a stage hold the like.
    """
    mesh = spec.layout.mesh
    found = found or memory(spec)
    categories = list(found.peaks[0].bytes)
    ranks = np.array(mesh.listed)
    if len(ranks) < mesh.size:
        at, _ = found.fullest
        ranks = np.union1d(ranks, mesh.rank({"pp": at.stage, "dp": at.replica, "tp": int(at.later)}))
        bytes_ = np.array([[found.of(mesh.coordinate(int(rank))).bytes[c] for c in categories] for rank in ranks], np.int64)
    else:
        bytes_ = _bytes_of_all(mesh, found, categories)
    columns: dict[str, Any] = {
        "source": "formula",
        "rank": np.repeat(ranks, len(categories)),
        **{axis: np.repeat(mesh.index(axis, ranks), len(categories)) for axis in mesh},
        "category": categories * len(ranks),
        "bytes": bytes_.ravel(),
    }
    return pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype=dtype, index=range(len(ranks) * len(categories)))
            for name, dtype in SCHEMAS["memory_peak"].items()
        }
    )


def _bytes_of_all(mesh: Mesh, found: Memory, categories: list[str]) -> Any:
    """Of every rank, (ranks, categories)."""
    by_stage = np.array([[peak.bytes[c] for c in categories] for peak in found.peaks], np.int64)
    bytes_ = by_stage.repeat(mesh.stride("pp"), axis=0).reshape(mesh.pp, mesh.dp, mesh.tp, len(categories))
    for at, peak in sorted(found.others.items()):  # each goes on until the next of its stage and kind
        slices = slice(1, None) if at.later else slice(0, 1)
        bytes_[at.stage, at.replica :, slices] = [peak.bytes[c] for c in categories]
    return bytes_.reshape(mesh.size, len(categories))


def curve_table(spec: RunSpec, rank: int) -> pd.DataFrame:
    """The composition over one step, as `memory_curve` has it: at the start and at the highest point of each action.

    Instants are textbook ones: F takes 1 ms on a stage, B 2 ms, I and W 1 ms each, shared by its chunks.
    """
    at = spec.layout.mesh.coordinate(rank)
    stages, chunks = Stages(spec), spec.layout.chunks
    schedule = plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    standing, walk = stages.walk(Place(at.pp, at.dp, at.tp > 0), schedule)
    lasts = {"F": 1e6 / chunks, "B": 2e6 / chunks, "I": 1e6 / chunks, "W": 1e6 / chunks}
    timed = [t for t in replay(schedule, lambda _, action: lasts.get(action.kind, 0.0)) if t.stage == at.pp]
    now = _by_category(standing)
    rows: list[dict[str, Any]] = []

    def put(t_ns: float, action: Action, composition: dict[str, int]) -> None:
        rows.extend(
            {"rank": rank, "t_ns": round(t_ns), "action": str(action), "category": c, "bytes": n} for c, n in composition.items()
        )

    for moment, time in zip(walk.moments(), timed, strict=True):
        put(time.start, moment.action, now)
        for change in moment.before:
            now = _plus(now, _by_category(change.counts))
        if moment.effect is not None:
            top = _by_category(moment.effect.ledger.counts_at(moment.effect.highest[1]))
            put((time.start + time.end) / 2, moment.action, _plus(now, top))
            now = _plus(now, _by_category(moment.effect.net.counts))
        for change in moment.after:
            now = _plus(now, _by_category(change.counts))
    put(max(t.end for t in timed), timed[-1].action, now)
    return table("memory_curve", rows, "formula")


def _by_category(counts: Counts) -> dict[str, int]:
    found = dict.fromkeys(CATEGORIES, 0)
    for key, count in counts.items():
        found[key.category] += count * size_of(key.factors)
    return found


def _plus(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {category: size + other[category] for category, size in one.items()}


__all__ = ["SYMBOLS", "Memory", "Peak", "curve_table", "memory", "peak_table"]
