"""One chunk's passes, played once for all layouts that differ in numbers alone: letters stand for the numbers.

What ZeRO adds to a pass depends on its stage and on the passes before. So a play only notes where it would do something, and
what happens between two such places is a span: blocks that come and go, the same whatever ZeRO does. Most spans are in several
forms of chunk, and their figures are worked out once.

A play tells of B and of I and W, and with hooks in backward, which ZeRO 2 and 3 have, and without, at once: see
`engine.predict.bulk.books`. Only where a decoder attends to an encoder, hooks change which gradients are added up where; so such
chunks are played once with hooks and once without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.books import Books, Chapter, Halving, Noting, Numbers, page_of
from engine.predict.symbolic import Size, as_size, letter, sized, value
from engine.predict.tape.buckets import TAKES, Bucket, numbers
from engine.predict.tape.chunk import Sample, Shape
from engine.predict.tape.parts import Kit
from engine.predict.tape.passes import ChunkPasses, Counts, Lent, size_of
from engine.predict.tape.reducing import Stretch
from engine.predict.tape.sizes import WIDTHS, Sizes
from engine.predict.tape.tape import Note
from engine.predict.terms import Factor
from engine.spec import ModelSpec, Recompute, WorkloadSpec

Real = NDArray[np.float64]
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


class Held(NamedTuple):
    """A bucket: the number of its sizes among the structure's; how often, as 0 for once, or 1 or 2 for the letter that says
    so; whether it counts in the norm.
    """

    number: int
    part: int
    counted: bool


class Played(NamedTuple):
    """`stretches`, by whether there are hooks, and by action: of events (1, number of a span) and (0, note)."""

    stretches: dict[bool, dict[str, list[Stretch]]]
    weights: list[tuple[Bucket, Any]]
    held: list[Held]  # the same
    given: Size
    handed: Size
    gradient_given: Size
    gradient_handed: Size
    shared: Size
    shared_owed: dict[str, Size]  # of it, what the chunk behind holds until its W; by what this one lets go of it in, I or W
    ends: list[str]  # in which half of backward each tensor given goes
    lent: dict[str, Size]  # what it lends a message and lets go of in a B, in an I or in a W: see `passes.Lent`


class Plays:
    """The plays of one structure. A span is a tuple of numbers of sizes, with the sign of their events; spans and sizes are
    counted from one.

    Searches in several threads may share one: what is added to it is added by one at a time.
    """

    def __init__(self, structure: Structure) -> None:
        self.one_at_a_time = RLock()
        self.structure, self.sizes = structure, {cut: structure.sizes(cut) for cut in (False, True)}
        self._numbers = Numbers()
        self._spans: dict[tuple[int, ...], int] = {}
        self._buckets: dict[tuple[Any, ...], int] = {}
        self._alike: dict[tuple[Any, ...], int] = {}  # of these the number, by the shapes of their parameters
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
        tape, width, sizes = Books(self._numbers), self.structure.width, self.sizes[cut]
        replicas: Any = letter("dp")
        dp = Factor("dp", replicas)
        buckets = (Noting if hooked else Halving)(tape, sizes, dp, 3 if hooked else 1, True, width)
        player = ChunkPasses(Kit(tape, sizes, buckets), form.shape, frozenset("IW"))
        found, weights = player.play(), player.chunk.weights()
        one = dict.fromkeys([*found.given, *found.handed][:1], 1)  # streams are of one size
        ends = self.of(form.behind, hooked, cut).ends if form.behind else []
        owed = [i for i in found.shared if i < len(ends) and ends[i] == "W"]
        owed_size, until = _total(dict.fromkeys(one, len(owed))), found.lent.ends["I"] if found.lent else "W"
        actions: dict[str, Any] = {**found.segments, "B": found.segments["I"]}
        stretches = {
            case: {kind: self._stretches(actions.get(kind, []), page_of(case, kind != "B")) for kind in "FBIW"}
            for case in ([hooked] if self.structure.model.parts.encoder else [False, True])
        }
        tape.clear()
        return Played(
            stretches=stretches,
            weights=weights,
            held=[Held(self._number_of(bucket), letter_of(times), bucket.counted) for bucket, times in weights],
            given=_total(found.given),
            handed=_total(found.handed),
            gradient_given=_total(found.gradient_given["I"]),
            gradient_handed=_total(found.gradient_handed["I"]),
            shared=_total(dict.fromkeys(one, len(found.shared))),
            shared_owed={kind: owed_size if kind == until else sized(0) for kind in "IW"},
            ends=found.given_ends["I"],
            lent=_lent(found.lent),
        )

    def _stretches(self, action: list[tuple[int, Any, Chapter]], page: int) -> list[Stretch]:
        """One page of an action, cut into spans. Of what is noted of a bucket's gradients, only the last to come can make a
        difference.
        """
        here = [(layer, times, chapter.pages[page], chapter.noted(page)) for layer, times, chapter in action]
        taken = defaultdict[int, list[Note]](list)
        for note in (note for *_, notes in here for _, note in notes if note.name == TAKES):
            taken[id(note.bucket)].append(note)
        last = {id(notes[-1]): Note(TAKES, notes[-1].bucket, len(notes)) for notes in taken.values()}
        found = []
        for layer, times, codes, notes in here:
            events, start = list[tuple[int, Any]](), 0
            for place, note in notes:
                told = last.get(id(note)) if note.name == TAKES else note
                if told is not None:
                    events += self._span(codes[start:place])
                    events.append((0, told))
                    start = place
            events += self._span(codes[start:])
            if events:
                found.append((layer, times, events))
        return found

    def _span(self, codes: list[int]) -> list[tuple[int, Any]]:
        return [(1, self._spans.setdefault(tuple(codes), len(self._spans) + 1))] if codes else []

    def _number_of(self, bucket: Bucket) -> int:
        shapes = tuple((p.whole, p.shape) for p in bucket.parameters)
        if shapes not in self._alike:
            sizes = [numbers([p.shape]) for p in sorted(bucket.parameters, key=lambda p: not p.whole)]
            key = bucket.size.value, bucket.share.value, *sizes
            self._alike[shapes] = self._buckets.setdefault(key, len(self._buckets))
        return self._alike[shapes]

    def bucket_sizes(self) -> list[tuple[Any, ...]]:
        """Of all buckets that are not alike: numbers on a rank, in one replica's share, and of each parameter."""
        with self.one_at_a_time:
            return list(self._buckets)

    def figures(self, known: dict[str, Any], count: int) -> tuple[Real, Real]:
        """What each span leaves, and the most that it ever adds: (spans, n) each. `known`: `tp` and `B` of n layouts."""
        found: dict[Any, Any] = {}
        with self.one_at_a_time:
            columns, spans = list(self._numbers.sizes), list(self._spans)
        sizes = np.zeros((len(columns), count))
        for number, size in enumerate(columns):
            sizes[number] = value(size, known, found)
        changes = np.concatenate([np.zeros((1, count)), sizes, -sizes[::-1]])
        leaves, tops = np.zeros((2, len(spans), count))
        for span, left, top in zip(spans, leaves, tops, strict=True):
            there = changes[list(span)].cumsum(0)
            left[:] = there[-1]
            np.maximum(there.max(0), 0, out=top)
        return leaves, tops


def letter_of(times: Any) -> int:
    """Which of `LETTERS` that is, from one, or 0 if none."""
    return 1 + LETTERS.index(times.atoms[0].name) if isinstance(times, Size) else 0


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
