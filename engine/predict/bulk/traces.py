"""What the chunks of one structure do, read from ledgers for very many layouts at once: sizes with letters in them.

What ZeRO adds to a pass depends on its stage and on the passes before. So a trace only notes where it would do something, and
what happens between two such places is a span: blocks that come and go, the same whatever ZeRO does. Most spans are in several
forms of chunk, and their figures are worked out once.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.dimensions import dimensions, structure, value
from engine.ledger.form import Part, Product, Slicing
from engine.ledger.keep import Key, Ledgers
from engine.ledger.mixed import ledger_of, recorded_keys
from engine.ledger.store import LedgerStore
from engine.ledger.symbolic import Size, as_size, letter, sized
from engine.ledger.symbolic import value as value_of
from engine.predict.memory.amounts import trace_amounts
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.reading import Amounts, ChunkTrace, LedgerReading, LentBlock
from engine.predict.memory.reducing import Buckets, Events, RepeatedSegment
from engine.spec import BYTES_OF, ModelSpec, Recompute, WorkloadSpec
from engine.spec.context import Context
from engine.terms import Factor

Real = NDArray[np.float64]
LETTERS = ("t0", "t1")  # how many layers there are between a chunk's first and last, of each kind
ONES = (
    "A/G", "B", "E/ep", "F/tp", "G/cp/tp", "G/tp", "R/tp", "S/2cp", "S/2cp/tp", "S/cp", "S/cp/tp", "S/tp", "V/tp", "X/tp", "Z/tp",
    "ep",
)  # fmt: skip  # dimensions that depend on the layout, and may be 1


class ChunkForm(NamedTuple):
    """Which part of the model a chunk is, and the chunk behind it, where that is on the same stage and may be handed a block that
    both hold.
    """

    part: Part
    behind: ChunkForm | None = None

    @property
    def times(self) -> list[Any]:
        """How often each recorded layer is there: of three or more, the second stands for `t0` or `t1` of them."""
        found: list[Any] = []
        if self.part.kinds:
            return [1] * len(self.part.kinds)
        for name, recorded in zip(LETTERS, self.part.recorded, strict=True):
            found += [1, letter(name), 1] if recorded == 3 else [1] * recorded
        return found


class Layouts(NamedTuple):
    """What layouts share whose chunks do the same, but for ZeRO and for whether tp is 1. `ones`: which of `ONES` are 1.

    `alone`: as many ranks share experts as there are replicas, so that ZeRO does not cut these.
    """

    model: ModelSpec
    workload: WorkloadSpec
    recompute: Recompute
    sequence: bool
    ones: tuple[str, ...]
    chunked_loss: bool
    context: Context = ""
    alone: bool = False

    @property
    def e(self) -> Factor:
        """Bytes of a number of parameters and activations."""
        return Factor("e", BYTES_OF[self.workload.precision])

    @property
    def width(self) -> Factor:
        """Bytes of a number of the gradients that are added up."""
        return Factor("g", BYTES_OF[self.workload.gradient_precision])

    def slicing(self, cut: bool) -> Slicing:
        """`cut`: tp > 1."""
        return "none" if not cut else "sequence" if self.sequence else "features"


class BucketUse(NamedTuple):
    """A bucket: the number of its sizes among the structure's; how often, as 0 for once, or 1 or 2 for the letter that says so;
    whether it counts in the norm.
    """

    number: int
    part: int
    counted: bool


class FormTrace(NamedTuple):
    """`segments` by action: of events (1, number of a span) and (0, `GradientEvent`).

    `late`: the same where the message that holds the lent block outlives the chunk's backward, so that the chunk frees nothing.
    """

    segments: dict[str, list[RepeatedSegment]]
    late: dict[str, list[RepeatedSegment]]
    buckets: Buckets
    uses: list[BucketUse]  # the same
    does: ChunkTrace
    amounts: dict[str, Size]  # those of `trace_amounts`


class FormTraces:
    """The traces of forms of chunk in some layouts. A span is a tuple of numbers of sizes, with the sign of their events; spans
    and sizes are counted from one.

    Searches in several threads may share one: what is added to it is added by one at a time.
    """

    def __init__(self, layouts: Layouts, ledgers: Ledgers) -> None:
        self.one_at_a_time = RLock()
        self.layouts, self._ledgers = layouts, ledgers
        self._sizes = list[Size]()
        self._numbers: dict[Size, int] = {}
        self._products: dict[tuple[Product, bool], int] = {}  # their sizes' numbers, by whether tp cuts
        self._spans: dict[tuple[int, ...], int] = {}
        self._buckets: dict[tuple[Any, ...], int] = {}
        self._found: dict[tuple[ChunkForm, bool, bool], FormTrace] = {}
        # By whether tp cuts: the dimensions, as sizes, and the structure.
        self.dimensions = {cut: self._dimensions(cut) for cut in (False, True)}
        self.structures = {
            cut: structure(
                layouts.model, layouts.workload, layouts.recompute, layouts.slicing(cut), known, context=layouts.context
            )
            for cut, known in self.dimensions.items()
        }

    def of(self, form: ChunkForm, hooked: bool, cut: bool) -> FormTrace:
        """`hooked`: with ZeRO 2 and 3, which reduce a microbatch's gradients before the next one's. `cut`: with tp > 1."""
        key = form, hooked, cut
        with self.one_at_a_time:
            if key not in self._found:
                behind = self.of(form.behind, hooked, cut).does if form.behind else None
                self._found[key] = self._trace(form, hooked, cut, behind)
            return self._found[key]

    def _trace(self, form: ChunkForm, hooked: bool, cut: bool, behind: ChunkTrace | None) -> FormTrace:
        """`behind`: the chunk behind, where it is on the same stage."""
        ledger, known = ledger_of(self._ledgers, self.structures[cut], form.part), self.dimensions[cut]
        numbers = [self._number(block.bytes, cut) for block in ledger.blocks]
        reading = LedgerReading(ledger, form.part, form.times, known, numbers)
        does, buckets = reading.trace(hooked), reading.buckets(letter("dp"), self._parts_of_experts)
        as_recorded = {action: self._in_spans(segments, False) for action, segments in does.segments.items()}
        return FormTrace(
            segments=as_recorded,
            late={action: self._in_spans(segments, True) for action, segments in does.segments.items()}
            if does.lent
            else as_recorded,
            buckets=buckets,
            uses=[self.use(bucket, times) for bucket, times in buckets],
            does=does,
            amounts={name: self._total(blocks) for name, blocks in trace_amounts(does, behind).items()},
        )

    def _number(self, size: Product, cut: bool) -> int:
        """The number of a size, from one. A sequence that is whole has no letter in its length."""
        if (size, cut) in self._products:
            return self._products[size, cut]
        times, left = size.times, list(size.dimensions)
        for rows in ("S/tp", "R/tp"):
            while rows in left and "tp" in left:
                left.remove(rows)
                left.remove("tp")
                times *= self.layouts.model.rows
        found = as_size(value(Product(times, tuple(left)), self.dimensions[cut]))
        if found not in self._numbers:
            self._sizes.append(found)
            self._numbers[found] = len(self._sizes)
        self._products[size, cut] = self._numbers[found]
        return self._numbers[found]

    def _total(self, amounts: Amounts) -> Size:
        found: Size = sized(0)
        for number, amount in amounts.items():
            if amount:
                size = self._sizes[number - 1] * amount
                found = size + found if found.coefficient else size
        return found

    def _in_spans(self, segments: list[RepeatedSegment], late: bool) -> list[RepeatedSegment]:
        """`late`: the lent block does not go."""
        return [RepeatedSegment(layer, times, self._cut(events, late)) for layer, times, events in segments]

    def _cut(self, events: Events, late: bool) -> Events:
        codes, out = list[int](), Events()
        for sign, one in events:
            if not sign:
                out += [*self.span(codes), (0, one)]
                codes = []
            elif not isinstance(one, LentBlock):
                codes.append(sign * one)
            elif sign > 0 or not late:
                codes.append(sign * one.block)
        return out + self.span(codes)

    @property
    def _parts_of_experts(self) -> Any:
        """In how many ZeRO cuts the experts of a layer, if ranks share them."""
        if not self.layouts.model.experts or "ep" in self.layouts.ones:
            return None
        return 1 if self.layouts.alone else letter("dp of experts")

    def _dimensions(self, cut: bool) -> dict[str, Any]:
        model, workload, tp = self.layouts.model, self.layouts.workload, letter("tp")
        loss_chunk = workload.most_loss_tokens(model, tp) if self.layouts.chunked_loss else None
        context = self.layouts.context
        ep = 1 if self._parts_of_experts is None else letter("ep")
        found = dimensions(model, self.layouts.slicing(cut), tp, letter("B"), None, loss_chunk, letter("cp"), context, ep)
        return found | dict.fromkeys((one for one in self.layouts.ones if one in found), 1)

    def missing(self, forms: Iterable[ChunkForm], cuts: set[bool]) -> set[Key]:
        """The keys of those ledgers that were never recorded."""
        if not isinstance(self._ledgers, LedgerStore):
            return set()
        read = {(form, cut) for form, _, cut in self._found}
        new = ((form, cut) for form in forms for cut in cuts if (form, cut) not in read)
        keys = {key for form, cut in new for key in recorded_keys(self.structures[cut], form.part)}
        return {key for key in keys if key not in self._ledgers}

    def span(self, codes: list[int]) -> list[tuple[int, Any]]:
        """As an event, or none where nothing happens."""
        return [(1, self._spans.setdefault(tuple(codes), len(self._spans) + 1))] if codes else []

    def use(self, bucket: BucketSizes, times: Any) -> BucketUse:
        """A bucket in numbers."""
        key = bucket.size.value, bucket.share.value
        return BucketUse(self._buckets.setdefault(key, len(self._buckets)), letter_of(times), bucket.counted)

    def bucket_sizes(self) -> list[tuple[Any, ...]]:
        """Of all buckets that are not alike: numbers on a rank, and in one replica's share."""
        with self.one_at_a_time:
            return list(self._buckets)

    def figures(self, known: dict[str, Any], count: int) -> tuple[Real, Real]:
        """What each span leaves, and the most that it ever adds: (spans, n) each. `known`: `tp` and `B` of n layouts."""
        found: dict[Any, Any] = {}
        with self.one_at_a_time:
            columns, spans = list(self._sizes), list(self._spans)
        sizes = np.zeros((len(columns), count))
        for number, size in enumerate(columns):
            sizes[number] = value_of(size, known, found)
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


def figures_of(sizes: Iterable[Any], known: dict[str, Any], found: dict[Any, Any]) -> list[Any]:
    """Some sizes in numbers: (n,) each, or one for all."""
    return [value_of(as_size(size), known, found) for size in sizes]
