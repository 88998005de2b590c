"""What the chunks of one structure do, read from ledgers for very many layouts at once: sizes with letters in them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from engine.predict.bulk import books
from engine.predict.bulk.actions import Acted
from engine.predict.bulk.plays import Form, Held, Played, Structure, letter_of
from engine.predict.ledger.dimensions import dimensions, structure, value
from engine.predict.ledger.form import (
    BORN,
    EXPECTS,
    GATHERS,
    GIVEN,
    GONE,
    GRADIENT_GIVEN,
    GRADIENT_HANDED,
    HANDED,
    RELEASES,
    TAKES,
    Flight,
    Ledger,
    Part,
    Product,
    Segment,
    Slicing,
)  # fmt: skip
from engine.predict.ledger.form import Bucket as RecordedBucket
from engine.predict.ledger.passes import Ledgers, counted
from engine.predict.symbolic import Size, as_size, letter, sized
from engine.predict.tape import buckets as notes
from engine.predict.tape.buckets import Bucket
from engine.predict.tape.reducing import Stretch
from engine.predict.tape.tape import Note
from engine.predict.terms import Factor

_NOTES = {EXPECTS: notes.EXPECTS, TAKES: notes.TAKES, GATHERS: books.GATHERS, RELEASES: books.RELEASES}


class LedgerPlays(Acted):
    """The same as `Acted`, read instead of played."""

    def __init__(self, structure: Structure, ledgers: Ledgers) -> None:
        super().__init__(structure)
        self._ledgers = ledgers

    def _play(self, form: Form, hooked: bool, cut: bool) -> Played:
        many, _, groups = self.structure.flags
        slicing: Slicing = "none" if not cut else "sequence" if self.structure.sequence else "features"
        known = dimensions(self.structure.model, slicing, letter("tp"), letter("B"))
        known |= dict.fromkeys([*(() if many else ("B",)), *(() if groups else ("G/tp",))], 1)
        of = structure(self.structure.model, self.structure.workload, self.structure.recompute, slicing, known)
        part = Part(form.first, form.last, form.layers, form.ends, form.decoders)
        reading = _Reading(self, self._ledgers(of, part), form, part, known)
        return reading.played(self.of(form.behind, hooked, cut).ends if form.behind else [])

    def number_of(self, size: Size) -> int:
        """Of a size among the structure's, from one."""
        return self._numbers.sizes.setdefault(size, len(self._numbers.sizes) + 1)

    def span(self, codes: list[int]) -> list[tuple[int, Any]]:
        return self._span(codes)

    def held(self, bucket: Bucket, times: Any) -> Held:
        return Held(self._number_of(bucket), letter_of(times), bucket.counted)


class _Reading:
    """One ledger, with letters in its sizes."""

    def __init__(self, plays: LedgerPlays, ledger: Ledger, form: Form, part: Part, known: dict[str, Any]) -> None:
        self.plays, self.ledger, self.known = plays, ledger, known
        self.times: list[Any] = [sample.count for sample in form.shape.samples]
        self.sizes = [as_size(self._value(block.bytes)) for block in ledger.blocks]
        self.numbers = [plays.number_of(size) for size in self.sizes]
        self.owner: Any = SimpleNamespace(zero=3, dp=Factor("dp", letter("dp")))  # type: ignore[arg-type]
        self.weights = [self._bucket(one, part) for one in ledger.buckets]

    def _bucket(self, one: RecordedBucket, part: Part) -> tuple[Bucket, Any]:
        bucket: Any = Bucket(self.owner, one.name)
        for p in one.parameters:
            shape = tuple(Factor(str(size), self._value(size)) for size in p.shape)
            bucket.parameters.append(SimpleNamespace(shape=shape, whole=p.whole))
        bucket.counted = counted(part, one)
        return bucket, self.times[one.layer] if one.layer >= 0 else 1

    def _value(self, size: Product) -> Any:
        """A sequence that is whole has no letter in its length."""
        times, left = size.times, list(size.dimensions)
        for rows in ("S/tp", "R/tp"):
            while rows in left and "tp" in left:
                left.remove(rows)
                left.remove("tp")
                times *= self.plays.structure.model.rows
        return value(Product(times, tuple(left)), self.known)

    def played(self, ends_behind: list[str]) -> Played:
        """`ends_behind`: in which half of backward the chunk behind lets go of each tensor that it is given."""
        several = {hooked: [self.ledger.flight(hooked, split) for split in (False, True)] for hooked in (False, True)}
        stretches = {
            hooked: {kind: self._stretches(whole if kind == "B" else split, kind) for kind in "FBIW"}
            for hooked, (whole, split) in several.items()
        }
        whole, first = several[True]
        stream = next((self.sizes[n] for n in (*_about(first, GIVEN, BORN), *_about(first, HANDED, GONE))), sized(0))
        owed = sum(i < len(ends_behind) and ends_behind[i] == "W" for i in first.shared)
        until = first.lent[1] if first.lent else "W"
        return Played(
            stretches=stretches,
            weights=self.weights,
            held=[self.plays.held(bucket, times) for bucket, times in self.weights],
            given=self._total(first, GIVEN, BORN),
            handed=self._total(first, HANDED, GONE),
            gradient_given=self._total(first, GRADIENT_GIVEN, BORN),
            gradient_handed=self._total(first, GRADIENT_HANDED, GONE),
            shared=stream * len(first.shared),
            shared_owed={kind: stream * owed if kind == until else sized(0) for kind in "IW"},
            ends=list(first.given_ends),
            lent=self._lent(whole, first),
        )

    def _lent(self, whole: Flight, split: Flight) -> dict[str, Size]:
        """By the action in which the chunk lets go of what it lends."""
        size = next((size for size, block in zip(self.sizes, self.ledger.blocks, strict=True) if block.lent), sized(0))
        ends = {flight.lent[1] for flight in (whole, split) if flight.lent is not None}
        return {kind: size if kind in ends else sized(0) for kind in "BIW"}

    def _total(self, flight: Flight, action: str, kind: int) -> Size:
        found: Size = sized(0)
        for number in _about(flight, action, kind):
            found = self.sizes[number] + found if found.coefficient else self.sizes[number]
        return found

    def _stretches(self, flight: Flight, action: str) -> list[Stretch]:
        """Cut into spans. Of what a bucket takes, only the last to come can make a difference."""
        segments = flight.segments(action)
        taken = Counter(number for segment in segments for kind, number in segment.events() if kind == TAKES)
        left = taken.copy()
        found: list[Stretch] = []
        for segment in segments:
            out = self._spans(segment, taken, left)
            if out:
                found.append((segment.layer, self.times[segment.layer] if segment.layer >= 0 else 1, out))
        return found

    def _spans(self, segment: Segment, taken: Counter[int], left: Counter[int]) -> list[tuple[int, Any]]:
        codes, out = list[int](), list[tuple[int, Any]]()
        for kind, number in segment.events():
            if kind == BORN:
                codes.append(self.numbers[number])
            elif kind == GONE:
                codes.append(-self.numbers[number])
            elif kind in _NOTES:
                left[number] -= kind == TAKES
                if kind != TAKES or not left[number]:
                    note = Note(_NOTES[kind], self.weights[number][0], taken[number] if kind == TAKES else 1)
                    out += [*self.plays.span(codes), (0, note)]
                    codes = []
        return out + self.plays.span(codes)


def _about(flight: Flight, action: str, kind: int) -> list[int]:
    """The numbers of what that happens to in an action."""
    return [number for segment in flight.segments(action) for what, number in segment.events() if what == kind]
