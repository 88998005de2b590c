"""What the chunks of one structure do, read from ledgers for very many layouts at once: sizes are products of dimensions.

What ZeRO adds to a pass depends on its stage and on the passes before. So a trace only notes where it would do something, and
what happens between two such places is a span: blocks that come and go, the same whatever ZeRO does. Most spans are in several
forms of chunk, and their figures are worked out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.dimensions import value
from engine.ledger.form import Part, Product, RecordedBucket, Structure
from engine.ledger.keep import Key, Ledgers
from engine.ledger.mixed import ledger_of, recorded_keys
from engine.ledger.store import LedgerStore
from engine.predict.memory.amounts import trace_amounts
from engine.predict.memory.buckets import counted
from engine.predict.memory.reading import Amounts, ChunkTrace, LedgerReading, LentBlock
from engine.predict.memory.reducing import Events, RepeatedSegment

Real = NDArray[np.float64]
LETTERS = ("t0", "t1")  # how many layers there are between a chunk's first and last, of each kind


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
            found += [1, name, 1] if recorded == 3 else [1] * recorded
        return found


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
    buckets: Sequence[RecordedBucket]
    uses: list[BucketUse]  # the same
    does: ChunkTrace
    amounts: dict[str, Amounts]  # those of `trace_amounts`


class FormTraces:
    """The traces of forms of chunk of one structure. A span is a tuple of numbers of sizes, with the sign of their events; spans
    and sizes are counted from one.

    Searches in several threads may share one: what is added to it is added by one at a time.
    """

    def __init__(self, structure: Structure, ledgers: Ledgers) -> None:
        self.one_at_a_time = RLock()
        self._structure, self._ledgers = structure, ledgers
        self._sizes: dict[Product, int] = {}
        self._spans: dict[tuple[int, ...], int] = {}
        self._buckets: dict[tuple[Any, ...], tuple[int, RecordedBucket, Part]] = {}
        self._found: dict[tuple[ChunkForm, bool], FormTrace] = {}

    def of(self, form: ChunkForm, hooked: bool) -> FormTrace:
        """`hooked`: with ZeRO 2 and 3, which reduce a microbatch's gradients before the next one's."""
        key = form, hooked
        with self.one_at_a_time:
            if key not in self._found:
                self._found[key] = self._trace(form, hooked, self.of(form.behind, hooked).does if form.behind else None)
            return self._found[key]

    def _trace(self, form: ChunkForm, hooked: bool, behind: ChunkTrace | None) -> FormTrace:
        """`behind`: the chunk behind, where it is on the same stage."""
        ledger = ledger_of(self._ledgers, self._structure, form.part)
        numbers = [self._sizes.setdefault(block.bytes, len(self._sizes) + 1) for block in ledger.blocks]
        reading = LedgerReading(ledger, form.part, form.times, {}, numbers)
        does = reading.trace(hooked)
        as_recorded = {action: self._in_spans(segments, False) for action, segments in does.segments.items()}
        return FormTrace(
            segments=as_recorded,
            late={action: self._in_spans(segments, True) for action, segments in does.segments.items()}
            if does.lent
            else as_recorded,
            buckets=ledger.buckets,
            uses=[self._use(bucket, form.part, reading.times(bucket.layer)) for bucket in ledger.buckets],
            does=does,
            amounts=trace_amounts(does, behind),
        )

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

    def missing(self, forms: Iterable[ChunkForm]) -> set[Key]:
        """The keys of those ledgers that were never recorded."""
        if not isinstance(self._ledgers, LedgerStore):
            return set()
        new = {form.part for form in forms} - {form.part for form, _ in self._found}
        keys = {key for part in new for key in recorded_keys(self._structure, part)}
        return {key for key in keys if key not in self._ledgers}

    def span(self, codes: list[int]) -> list[tuple[int, Any]]:
        """As an event, or none where nothing happens."""
        return [(1, self._spans.setdefault(tuple(codes), len(self._spans) + 1))] if codes else []

    def _use(self, bucket: RecordedBucket, part: Part, times: Any) -> BucketUse:
        key = bucket.parameters, bucket.experts
        number, *_ = self._buckets.setdefault(key, (len(self._buckets), bucket, part))
        return BucketUse(number, letter_of(times), counted(bucket, part))

    def buckets(self) -> list[tuple[RecordedBucket, Part]]:
        """All that are not alike, each with a part that has it."""
        with self.one_at_a_time:
            return [(bucket, part) for _, bucket, part in self._buckets.values()]

    def figures(self, known: dict[str, Any], count: int) -> tuple[Real, Real, Real]:
        """The sizes, what each span leaves, and the most that it ever adds: (sizes or spans, n) each. `known`: the values of the
        dimensions, (n,) each.
        """
        with self.one_at_a_time:
            products, spans = list(self._sizes), list(self._spans)
        sizes = np.zeros((len(products), count))
        for number, product in enumerate(products):
            sizes[number] = value(product, known)
        changes = np.concatenate([np.zeros((1, count)), sizes, -sizes[::-1]])
        leaves, tops = np.zeros((2, len(spans), count))
        for span, left, top in zip(spans, leaves, tops, strict=True):
            there = changes[list(span)].cumsum(0)
            left[:] = there[-1]
            np.maximum(there.max(0), 0, out=top)
        return sizes, leaves, tops


def letter_of(times: Any) -> int:
    """Which of `LETTERS` that is, from one, or 0 if none."""
    return 1 + LETTERS.index(times) if isinstance(times, str) else 0
