"""One chunk's passes, played once for all layouts that differ in numbers alone: letters stand for the numbers.

What ZeRO adds to a pass depends on its stage and on the passes before. So a play only notes where it would do something, and
what happens between two such places is a span: blocks that come and go, the same whatever ZeRO does. Most spans are in several
forms of chunk, and their figures are worked out once.

A play tells two things both ways at once. Backward is whole, B, or halved, I and W; what is owed then holds some blocks for
longer. And ZeRO 2 and 3 have hooks in backward, which hold what a chunk was fed with for longer; 0 and 1 have none, and turn each
gradient into fp32. Only where a decoder attends to an encoder, hooks change which gradients are added up where; so such chunks
are played once with hooks and once without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.points import joined
from engine.predict.symbolic import Size, as_size, letter, sized, value
from engine.predict.tape.buckets import TAKES, Bucket, Buckets, Parameter
from engine.predict.tape.chunk import Sample, Shape
from engine.predict.tape.parts import Kit
from engine.predict.tape.passes import ChunkPasses, Counts, Lent, size_of
from engine.predict.tape.reducing import Stretch
from engine.predict.tape.sizes import FOUR, WIDTHS, Sizes
from engine.predict.tape.tape import HALVES, HOOKS, WHOLE, Apart, Block, Case, Factors, Gradients, Hold, Note, Record, Tape
from engine.predict.terms import Factor
from engine.spec import ModelSpec, Recompute, WorkloadSpec

Real = NDArray[np.float64]
GATHERS, RELEASES = "gathers values", "releases values"  # what is noted of a bucket, and happens with ZeRO 3
LETTERS = ("t0", "t1")  # how many layers there are between a chunk's first and last, of each kind


class Form(NamedTuple):
    """Which part of the model a chunk is. Of layers: none, one, or 2 for more, which are two and `t0` or `t1` between."""

    first: bool
    last: bool
    layers: int  # of an encoder, or of a model that is a decoder or an encoder alone
    ends: bool  # whether they are an encoder's last
    decoders: int
    behind: Form | None = None  # the chunk behind it, where that stands on the same stage and may be handed what both hold

    @property
    def shape(self) -> Shape:
        def samples(count: int, decodes: bool, ends: bool, between: Any) -> list[Sample]:
            times = [1] * count if count < 2 else [1, between, 1]
            return [Sample(decodes, ends and i == len(times) - 1, n) for i, n in enumerate(times)]

        before = samples(self.layers, False, self.ends, letter(LETTERS[0]))
        return Shape(self.first, self.last, (*before, *samples(self.decoders, True, self.last, letter(LETTERS[1]))))


class Structure(NamedTuple):
    """All that changes which blocks there are, but for ZeRO, and but for what tp = 1 changes at a model's beginning."""

    model: ModelSpec
    workload: WorkloadSpec
    recompute: Recompute
    sequence: bool
    flags: tuple[bool, bool, bool]  # many, heads and groups: see `Sizes.of`

    @property
    def width(self) -> Factor:
        """Bytes of a number of the gradients that are added up."""
        return Factor("g", WIDTHS[self.workload.accumulate if self.workload.precision == "bf16" else "fp32"])

    def sizes(self, cut: bool) -> Sizes:
        """`cut`: whether tp > 1."""
        many, heads, groups = self.flags
        flags = many, cut, heads, groups
        return Sizes.of(self.model, self.workload, letter("tp"), letter("B"), self.sequence, self.recompute, flags)


class Only(NamedTuple):
    """A span that is there with hooks, which ZeRO 2 and 3 have, or without."""

    hooked: bool
    span: int


class Played(NamedTuple):
    """`stretches`, by action: of events (1, number of a span), (0, note) and (0, only)."""

    stretches: dict[str, list[Stretch]]
    weights: list[tuple[Bucket, Any]]
    given: Size
    handed: Size
    gradient_given: Size
    gradient_handed: Size
    shared: Size
    shared_owed: dict[str, Size]  # of it, what the chunk behind holds until its W; by what this one lets go of it in, I or W
    ends: list[str]  # in which half of backward each tensor given goes
    lent: dict[str, Size]  # what it lends a message and lets go of in a B, in an I or in a W: see `passes.Lent`


class _Halving(Buckets):
    """Tells in a backward's first half, I, what happens in a whole one, B, as well: it has the gradients that are left to W."""

    def now_or_later(self, p: Parameter, compute: Callable[..., Block], *blocks: Block) -> Block | None:
        if self.owed is None:
            return compute(*blocks)
        self.owed.append((p, compute, [Hold(block, HALVES) for block in blocks], self.tape.layer))
        gradient = self._whole(lambda: compute(*blocks))
        gradient.record.case = WHOLE
        return gradient

    def accumulate(self, p: Parameter, gradients: Gradients) -> Gradients:
        if self.owes(p):
            self._whole(lambda: self.add(p, gradients))
        else:
            self.add(p, gradients)
        return []

    def _whole(self, run: Callable[[], Any]) -> Any:
        """Run what happens in B only."""
        tape, events = self.tape, self.tape.events
        tape.events = []
        found = run()
        events.append((0, Apart(WHOLE, *tape.events)))
        tape.events = events
        return found


class _Noting(_Halving):
    """Notes what ZeRO 3 would gather and release; and what differs where there are hooks, as they are here, and where not."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self._gathered: set[int] = set()

    def fetch(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            if id(bucket) not in self._gathered:
                self._gathered.add(id(bucket))
                self.tape.note(GATHERS, bucket)

    def release(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            if id(bucket) in self._gathered:
                self._gathered.remove(id(bucket))
                self.tape.note(RELEASES, bucket)

    def convert(self, p: Parameter) -> None:
        if self.converts:
            record = Record("a gradient as fp32", (*p.shape, FOUR), False, "")
            self.tape.apart(Case(HOOKS, False), (1, record), (-1, record))

    def hold(self, blocks: Iterable[Block]) -> list[Any]:
        return [Hold(block, HOOKS) for block in blocks]


class Plays:
    """The plays of one structure. A span is a tuple of numbers of sizes, counted from one, with the sign of their events; a chain
    is a tuple of numbers of spans, counted from one too.

    Searches in several threads may share one: what is added to it is added by one at a time.
    """

    def __init__(self, structure: Structure) -> None:
        self.one_at_a_time = RLock()
        self.structure, self.sizes = structure, {cut: structure.sizes(cut) for cut in (False, True)}
        self._columns: dict[Size, int] = {}
        self._known: dict[Factors, int] = {}
        self._spans: dict[tuple[int, ...], int] = {}
        self._chains: dict[tuple[int, ...], int] = {}
        self._played: dict[tuple[Form, bool, bool], Played] = {}

    def of(self, form: Form, early: bool, cut: bool) -> Played:
        """`early`: with ZeRO 2 and 3, which reduce a microbatch's gradients before the next one's. `cut`: with tp > 1."""
        hooked = early or not self.structure.model.parts.encoder
        key = form, hooked, cut or not form.first  # cut or not, all but the look-up of tokens is alike
        with self.one_at_a_time:
            if key not in self._played:
                self._played[key] = self._play(*key)
            return self._played[key]

    def _play(self, form: Form, hooked: bool, cut: bool) -> Played:
        tape, width, sizes = Tape(), self.structure.width, self.sizes[cut]
        replicas: Any = letter("dp")
        dp = Factor("dp", replicas)
        converts = width.value != sizes.e.value
        buckets = (_Noting if hooked else _Halving)(tape, sizes, dp, 3 if hooked else 1, True, converts, width)
        player = ChunkPasses(Kit(tape, sizes, buckets), form.shape, frozenset("IW"))
        found = player.play()
        one = dict.fromkeys([*found.given, *found.handed][:1], 1)  # streams are of one size
        ends = self.of(form.behind, hooked, cut).ends if form.behind else []
        owed = [i for i in found.shared if i < len(ends) and ends[i] == "W"]
        owed_size, until = _total(dict.fromkeys(one, len(owed))), found.lent.ends["I"] if found.lent else "W"
        segments = {kind: found.segments.get("I" if kind == "B" else kind, []) for kind in "FBIW"}
        stretches = {kind: self._read(of, kind != "B") for kind, of in segments.items()}
        tape.clear()
        return Played(
            stretches=stretches,
            weights=player.chunk.weights(),
            given=_total(found.given),
            handed=_total(found.handed),
            gradient_given=_total(found.gradient_given["I"]),
            gradient_handed=_total(found.gradient_handed["I"]),
            shared=_total(dict.fromkeys(one, len(found.shared))),
            shared_owed={kind: owed_size if kind == until else sized(0) for kind in "IW"},
            ends=found.given_ends["I"],
            lent=_lent(found.lent),
        )

    def _read(self, stretches: list[Stretch], halved: bool) -> list[Stretch]:
        """Cut into spans. Of what is noted of a bucket's gradients, only the last to come can make a difference in an action."""
        stretches = [(layer, count, list(_where(halved, events))) for layer, count, events in stretches]
        notes: list[Any] = [note for _, _, events in stretches for sign, note in events if not sign]
        last = {id(note.bucket): note for note in notes if isinstance(note, Note) and note.name == TAKES}
        times = Counter(id(note.bucket) for note in notes if isinstance(note, Note) and note.name == TAKES)
        found = []
        for layer, count, events in stretches:
            told: list[Any] = []
            start = 0
            for place in [i for i, event in enumerate(events) if not event[0]]:
                note: Any = events[place][1]
                taken = isinstance(note, Note) and note.name == TAKES
                if taken and last[id(note.bucket)] is not note:
                    continue
                told += self._span(events[start:place])
                start = place + 1
                if isinstance(note, Apart):
                    told += [(0, Only(note.case.so, span)) for _, span in self._span(note.events)]
                else:
                    told.append((0, Note(TAKES, note.bucket, times[id(note.bucket)]) if taken else note))
            told += self._span(events[start:])
            found.append((layer, count, told))
        return found

    def _span(self, events: Sequence[tuple[int, Record]]) -> list[tuple[int, Any]]:
        known = self._known
        codes = tuple([sign * (known.get(r.factors) or self._look_up(r.factors)) for sign, r in events if sign])
        return [(1, self._spans.setdefault(codes, len(self._spans) + 1))] if codes else []

    def _look_up(self, factors: Factors) -> int:
        self._known[factors] = self._columns.setdefault(as_size(size_of(factors)), len(self._columns) + 1)
        return self._known[factors]

    def chain(self, spans: list[int]) -> int:
        """The number of these spans, one behind the other."""
        return self._chains.setdefault(tuple(spans), len(self._chains) + 1)

    def figures(self, known: dict[str, Any], count: int) -> tuple[Real, Real]:
        """What each chain leaves, and the most that it ever adds: (chains, n) each. `known`: `tp` and `B` of n layouts."""
        found: dict[Any, Any] = {}
        with self.one_at_a_time:
            columns, spans, chains = list(self._columns), list(self._spans), list(self._chains)
        sizes = np.zeros((len(columns), count))
        for number, size in enumerate(columns):
            sizes[number] = value(size, known, found)
        nothing = np.zeros((1, count))
        changes = np.concatenate([nothing, sizes, -sizes[::-1]])
        leaves, tops = joined(changes, np.maximum(changes, 0), spans)
        return joined(np.concatenate([nothing, leaves]), np.concatenate([nothing, tops]), chains)


def _where(halved: bool, events: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """What happens where backward is halved, or where it is whole."""
    for event in events:
        one = event[1]
        if event[0] or not isinstance(one, Apart) or one.case.of != HALVES:
            yield event
        elif one.case.so == halved:
            yield from _where(halved, one.events)


def _lent(lent: Lent | None) -> dict[str, Size]:
    nothing = dict.fromkeys("BIW", sized(0))
    if lent is None:
        return nothing
    size = as_size(size_of(lent.records[0].factors))
    return nothing | {"B": size, lent.ends["I"]: size}


def _total(counts: Counts) -> Size:
    """All blocks of a message are alike."""
    total: Any = sized(0)
    for key, count in counts.items():
        size = size_of(key.factors) * count
        total = size if not total.coefficient else total + size
    return total


def figures_of(sizes: Iterable[Any], known: dict[str, Any], found: dict[Any, Any]) -> list[Any]:
    """Some sizes in numbers: (n,) each, or one for all."""
    return [value(as_size(size), known, found) for size in sizes]
