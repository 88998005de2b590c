"""How much memory every rank takes at its peak, by category, in closed form; and where in the step that is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from engine.ledger.keep import Ledgers
from engine.predict.memory.blocks import Counts, total_of
from engine.predict.memory.generation import Generation
from engine.predict.memory.shortened import ALL_OF, MOST, shortened
from engine.predict.memory.stages import Stages
from engine.schedule import Action
from engine.schedule.orders import KINDS
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import CATEGORIES, KV_CACHE, LARGEST
from engine.terms import Factor, Term, total
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
    """The peaks of all ranks. Those of a stage hold the same."""

    peaks: tuple[Peak, ...]  # one a stage

    def of(self, at: Coordinate) -> Peak:
        """A rank's."""
        return self.peaks[at.pp]

    @property
    def fullest(self) -> Peak:
        """That of the first stage whose ranks need most."""
        return max(self.peaks, key=lambda peak: peak.total)


def memory(spec: RunSpec, all_of: int = ALL_OF, most: int = MOST, ledgers: Ledgers | None = None) -> Memory:
    """The peak of every rank. Raises `RequestError` where the schedule is too long to be gone through, or the bytes too many.

    `all_of`, `most`: how much is gone through, see `shortened`. `ledgers`: those to read, in place of `ledger_store()`. Raises
    `NotRecordedError` where one is not in that.
    """
    if spec.generate.skip_training:
        return _generating(spec, ledgers)
    stages = Stages(spec, shortened(spec, all_of, most), ledgers)
    return Memory(tuple(peak_of(stages, stage) for stage in range(spec.layout.pp)))


def _generating(spec: RunSpec, ledgers: Ledgers | None) -> Memory:
    generation, peaks = Generation(spec, ledgers), []
    for stage in range(spec.layout.pp):
        action, there = generation.highest(stage)
        peaks.append(_peak(spec, stage, action, generation.standing(stage), there))
    return Memory(tuple(peaks))


def peak_of(stages: Stages, stage: int) -> Peak:
    """The peak of the ranks of a stage: that of its passes, or the optimizer's step if that takes more."""
    of_passes = _peak_of_passes(stages, stage)
    trace, standing = stages.step(stage), stages.standing(stage)
    most, where = trace.highest
    if total_of(standing) + most <= of_passes.total:
        return of_passes
    return _peak(stages.spec, stage, "step", standing, trace.counts_at(where))


def _peak_of_passes(stages: Stages, stage: int) -> Peak:
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
