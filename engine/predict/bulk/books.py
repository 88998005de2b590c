"""A tape that tells of several cases at once, on a page for each: what comes and goes, as numbers of sizes, and notes.

Backward is whole, B, or halved, I and W; what is owed then holds some blocks for longer. ZeRO 2 and 3 have hooks in backward,
which hold what a chunk was fed with for longer; 0 and 1 have none, and turn each gradient into fp32. When blocks go is decided by
what refers to them in all cases, as on any tape; and beside that by `Hold`s, which are there in one case only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.predict.symbolic import Size, as_size
from engine.predict.tape.buckets import TAKES, Bucket, Buckets, Parameter
from engine.predict.tape.passes import size_of
from engine.predict.tape.tape import Block, Factors, Gradients, Note, Record, Segment, Tape
from engine.predict.terms import Factor

GATHERS, RELEASES = "gathers values", "releases values"  # what is noted of a bucket, and happens with ZeRO 3
UNHOOKED, HOOKED, WHOLE, HALVED = "without hooks", "with hooks", "in B", "in I and W"  # cases
Pages = dict[str, tuple[int, ...]]  # which pages tell of a case; "" stands for all cases


def page_of(hooked: bool, halved: bool) -> int:
    """The number of that case's page."""
    return 2 * hooked + halved


def _pages(*halved: bool) -> Pages:
    without, having = (tuple(page_of(hooked, of) for of in halved) for hooked in (False, True))
    return {"": without + having, UNHOOKED: without, HOOKED: having, WHOLE: (0, 2), HALVED: (1, 3)}


_BOTH, _HALVED, _WHOLE = _pages(False, True), _pages(True), _pages(False)


class Numbers(dict[Factors, int]):
    """Numbers of sizes, from one, by their factors; equal products have the same."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[Size, int] = {}

    def __missing__(self, factors: Factors) -> int:
        self[factors] = number = self.sizes.setdefault(as_size(size_of(factors)), len(self.sizes) + 1)
        return number


class Entry(Record):
    """`number`: of its size. `case`: in which alone it goes with its block, if any; in the other it waits for so many `holds`."""

    __slots__ = ("__dict__", "number")
    number: int
    case: str = ""
    holds: int = 0


class Chapter:
    """A stretch of a tape. `pages`: numbers of sizes, with the sign of what happens. `notes`: which pages they are on, how much
    stands before them on every page, and what is noted.
    """

    def __init__(self) -> None:
        self.pages: tuple[list[int], ...] = ([], [], [], [])
        self.notes: list[tuple[tuple[int, ...], tuple[int, ...], Note]] = []

    def noted(self, page: int) -> list[tuple[int, Note]]:
        """The notes on a page, each with how much stands before it."""
        return [(before[page], note) for pages, before, note in self.notes if page in pages]


class Books(Tape):
    """Of an I all pages are told, and so of the B that may be in its place; of other actions those where backward is halved."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers
        self._chapter = Chapter()
        self._open(_HALVED)

    def _open(self, of: Pages) -> None:
        self._of, pages = of, self._chapter.pages
        self._all = [pages[number] for number in of[""]]

    def at(self, action: str, layer: int = -1) -> None:
        if (action, layer) != (self.action, self.layer) or not self.parts:
            self.action, self.layer = action, layer
            self._chapter = Chapter()
            self._open(_BOTH if action == "I" else _HALVED)
            self.parts.append((Segment(action, layer), self._chapter))

    def whole(self, run: Callable[[], Any]) -> Any:
        """Run what happens in a B only."""
        before = self._of, self._all
        self._open(_WHOLE)
        found = run()
        self._of, self._all = before
        return found

    def _put(self, case: str, *what: int) -> None:
        for number in self._of[case]:
            self._chapter.pages[number].extend(what)

    def new(self, name: str, *factors: Factor, door: bool = False) -> Block:
        entry = Entry(name, factors, door, self.action, self.layer >= 0)
        entry.number = self.numbers[factors]
        for page in self._all:
            page.append(entry.number)
        return Block(entry, self)

    def gone(self, record: Any) -> None:
        record.died = self.action
        if record.case:
            self._put(record.case, -record.number)
        else:
            for page in self._all:
                page.append(-record.number)

    def touch(self, name: str, *factors: Factor, door: bool = False) -> None:
        number = self.numbers[factors]
        self._put("", number, -number)

    def note(self, name: str, bucket: Any) -> None:
        """All but `TAKES` is only with hooks: no other stages of ZeRO expect, gather or release anything."""
        pages = self._of["" if name == TAKES else HOOKED]
        self._chapter.notes.append((pages, tuple(map(len, self._chapter.pages)), Note(name, bucket)))

    def written(self, block: Block) -> None:
        """Where something holds the block in one case, it is written to another one in that case."""
        held: Any = block.record
        if held.holds:
            block.record = entry = Entry(held.name, held.factors, held.door, self.action, self.layer >= 0)
            entry.number, held.died = held.number, self.action
            self._put(HALVED, entry.number)

    def let_go(self, record: Any, case: str) -> None:
        """The last that held it in that case is gone."""
        record.case = ""
        if record.died:
            record.died = self.action
            self._put(case, -record.number)


class Hold:
    """A hold on a block, with hooks or where backward is halved."""

    __slots__ = ("case", "record", "tape")

    record: Any
    tape: Any

    def __init__(self, block: Block, case: str) -> None:
        self.record, self.tape, self.case = block.record, block.tape, case
        self.record.holds += 1
        self.record.case = WHOLE if case == HALVED else UNHOOKED

    def __del__(self) -> None:
        self.record.holds -= 1
        if not self.record.holds:
            self.tape.let_go(self.record, self.case)


class Halving(Buckets):
    """Has an I tell of B too: of the gradients that are left to W."""

    tape: Any

    def now_or_later(self, p: Parameter, compute: Callable[..., Block], *blocks: Block) -> Block | None:
        if self.owed is None:
            return compute(*blocks)
        self.owed[p] = compute, [Hold(block, HALVED) for block in blocks], self.tape.layer
        gradient: Any = self.tape.whole(lambda: compute(*blocks))
        gradient.record.case = WHOLE
        return gradient

    def accumulate(self, p: Parameter, gradients: Gradients) -> Gradients:
        if self.owes(p):
            self.tape.whole(lambda: self.add(p, gradients))
        else:
            self.add(p, gradients)
        return []


class Noting(Halving):
    """Has hooks; and notes what ZeRO 3 would gather and release."""

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

    def hold(self, blocks: Iterable[Block]) -> list[Any]:
        return [Hold(block, HOOKED) for block in blocks]
