"""How much memory every rank takes at its peak, by category, in closed form; and where in the step that is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from engine.predict.ledger.keep import Ledgers
from engine.predict.ledger.layout import LayoutLedgers
from engine.predict.memory.blocks import Counts, total_of
from engine.predict.memory.generation import Generation
from engine.predict.memory.shortened import ALL_OF, MOST, Shortened, shortened
from engine.predict.memory.stages import Place, Stages, alike
from engine.predict.terms import Factor, Term, total
from engine.schedule import Action
from engine.schedule.orders import KINDS
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import CATEGORIES, KV_CACHE, LARGEST
from engine.topology import Coordinate

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
        """In bytes."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Memory:
    """The peaks of all ranks, each peak once.

    `others` has the stages whose ranks have several peaks. There, the ranks of a tp group that count unlike are listed apart.
    Neighbouring replicas with the same peak have one entry, under the first of them. Entries are in the order of replicas.
    """

    peaks: tuple[Peak, ...]  # one a stage, of its first rank
    others: dict[Place, Peak] = field(default_factory=dict)
    copies: int = 1  # see `ModelSpec.key_copies`

    def of(self, at: Coordinate) -> Peak:
        """A rank's."""
        of = at.pp, alike(at.tp, self.copies)
        here = [place for place in self.others if (place.stage, place.later) == of and place.replica <= at.dp]
        return self.others[max(here)] if here else self.peaks[at.pp]

    @property
    def fullest(self) -> tuple[Place, Peak]:
        """The first of those ranks that need most."""
        every = {Place(peak.stage): peak for peak in self.peaks} | self.others
        return max(sorted(every.items()), key=lambda found: found[1].total)


def memory(spec: RunSpec, all_of: int = ALL_OF, most: int = MOST, ledgers: Ledgers | None = None) -> Memory:
    """The peak of every rank. Raises `RequestError` where the schedule is too long to be gone through, or the bytes too many.

    `all_of`, `most`: how much is gone through, see `shortened`. `ledgers`: those to read, in place of `ledger_store()`. Raises
    `NotRecordedError` where one is not in that.
    """
    if spec.generate.skip_training:
        return _generating(spec, ledgers)
    stages = opened_stages(spec, shortened(spec, all_of, most), ledgers)
    of_passes = [peak_of_passes(stages, stage) for stage in range(spec.layout.pp)]
    peaks = tuple(with_step(stages, Place(peak.stage), peak) for peak in of_passes)
    return Memory(peaks, _others(stages, peaks, of_passes), stages.copies)


def opened_stages(spec: RunSpec, step: Shortened, ledgers: Ledgers | None = None) -> Stages:
    """Raises `NotRecordedError`."""
    return Stages(spec, LayoutLedgers(spec.model, spec.layout, spec.workload, None, ledgers), step)


def opened_generation(spec: RunSpec, ledgers: Ledgers | None = None) -> Generation:
    """Raises `NotRecordedError`."""
    prompt = len(spec.generate.prompt.encode())
    tokens = prompt, prompt + spec.generate.new_tokens - 1
    return Generation(spec, LayoutLedgers(spec.model, spec.layout, spec.workload, tokens, ledgers))


def _generating(spec: RunSpec, ledgers: Ledgers | None) -> Memory:
    generation, peaks = opened_generation(spec, ledgers), []
    for stage in range(spec.layout.pp):
        action, there = generation.highest(stage)
        peaks.append(_peak(spec, stage, action, generation.standing(stage), there))
    return Memory(tuple(peaks))


def peak_of_passes(stages: Stages, stage: int) -> Peak:
    """The peak of a stage before the optimizer's step."""
    walk = stages.walk(stage)
    best = walk.highest
    trace, counts = walk.trace(best), stages.standing(stage)
    for kind, count in walk.before(best).items():
        counts[kind] += count
    name, microbatch = KINDS[walk.kinds[best]], int(walk.microbatch[best])
    microbatch = stages.shortened.named(name, microbatch, bool(walk.is_f[best:].any()))
    action = Action(name, int(walk.chunk[best]), microbatch)
    return _peak(stages.spec, stage, action, counts, trace.counts_at(trace.highest[1]), walk.in_flight(best))


def with_step(stages: Stages, at: Place, of_passes: Peak) -> Peak:
    """The peak of some ranks of a stage: that of its passes, or the optimizer's step if that takes more."""
    trace, standing = stages.step(at), stages.standing(at.stage)
    most, where = trace.highest
    if total_of(standing) + most <= of_passes.total:
        return of_passes
    return _peak(stages.spec, at.stage, "step", standing, trace.counts_at(where))


def _others(stages: Stages, peaks: tuple[Peak, ...], of_passes: list[Peak]) -> dict[Place, Peak]:
    """Of ranks that have another peak than their stage's first. They peak in the step, or would if they held as much."""
    layout, found = stages.spec.layout, dict[Place, Peak]()
    for peak in (peak for peak in peaks if peak.action == "step"):
        known, runs = {stages.counted(Place(peak.stage)): peak}, dict[Place, Peak]()
        for later in sorted({alike(tp, stages.copies) for tp in range(layout.tp)}):
            last = None
            for replica in stages.where_shares_differ(peak.stage) if layout.zero else [0]:
                at = Place(peak.stage, replica, later)
                counted = stages.counted(at)
                if counted not in known:
                    known[counted] = with_step(stages, at, of_passes[peak.stage])
                if known[counted] is not last:
                    runs[at] = last = known[counted]
        if len(known) > 1:
            found |= runs
    return found


def _peak(spec: RunSpec, stage: int, action: Action | str, before: Counts, within: Counts, in_flight: int = 0) -> Peak:
    """`before`: what is there before the action; `within`: what it has added when the most is there."""
    terms: dict[str, list[Term]] = {c: [] for c in ((*CATEGORIES, KV_CACHE) if spec.generate.skip_training else CATEGORIES)}
    counts = defaultdict(int, before)
    for kind, count in within.items():
        counts[kind] += count
    layers = spec.layout.stage_layers(spec.model.layers)[stage]
    for kind, count in counts.items():
        if count:
            times = _times(count, layers if kind.layered else 0, in_flight if kind.category in PASSING else 0)
            terms[kind.category].append(Term(kind.name, (*times, *kind.factors)))
    found = {c: tuple(t) for c, t in terms.items()}
    bytes_ = {c: total(t) for c, t in found.items()}
    if sum(bytes_.values()) > LARGEST:
        raise RequestError(
            sentence(
                "a rank of stage {stage} would hold {bytes:.3g} bytes, and memory is shown only up to 2^63 bytes",
                stage=stage,
                bytes=float(sum(bytes_.values())),
            )
        )
    return Peak(stage, str(action), bytes_, found)


def _times(count: int, layers: int, in_flight: int) -> tuple[Factor, ...]:
    """How often a block is there: n of it × microbatches in flight × layers, as far as these divide the count; no factor of 1."""
    factors = []
    for symbol, times in (("mᶠ", in_flight), ("L", layers)):
        if times > 1 and count % times == 0:
            factors.append(Factor(symbol, times))
            count //= times
    return (*([Factor("n", count)] if count > 1 else []), *factors)
