"""The walk through one stage of one layout: what its amounts are, in blocks with names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.predict.memory.amounts import LENT, between_passes, trace_amounts
from engine.predict.memory.blocks import Change, Counts
from engine.predict.memory.passes import ActionTrace, ChunkPasses, held_by_message
from engine.predict.memory.walk import Rows, StageWalk
from engine.schedule import Action
from engine.schedule.orders import KINDS, Passes
from engine.schedule.stage_passes import STATES

# Amounts of no bytes, which give blocks another name: gradients of a B, where the schedule also has I; the lent block while its
# chunk holds it too, which counts as communication if the message holds it longer.
_RECEIVED_IN_B, _SENT_BY_B, _HELD = "gradient received in B", "gradient sent by B", "held by a message"


class LayoutWalk(StageWalk):
    """`chunks`: those of the stage, by number. Each has a column."""

    def __init__(
        self,
        chunks: Mapping[int, ChunkPasses],
        order: Passes,
        placement: Sequence[int],
        held: int,
        microbatches: int,
        zero: int,
        alike: int = 1,
        rows: Rows | None = None,
    ) -> None:
        """`order`: the stage's passes. `held`: messages to one stage that may wait. `alike`: as `StageWalk`."""
        self.chunks, self.zero = chunks, zero
        column, lender = np.zeros(len(placement), np.int64), np.arange(len(placement))
        for number, chunk in enumerate(chunks):
            column[chunk], lender[chunk] = number, self._lends_for(chunk)
        lends = any(chunk.does.lent for chunk in chunks.values())
        super().__init__(
            order, np.array(placement), np.array([held]), np.array([microbatches]), column,
            alike=np.array([alike]), lender=lender, lends=lends, rows=rows,
        )  # fmt: skip
        self._found_in, under_way = self.reductions(zero >= 2)
        self.standing |= under_way
        if lends:
            self.standing[_HELD] = self._held_by_messages()
        if self.is_b.any() and self.is_i.any():
            self.standing |= self._gradients_of_b()
        self.amounts = [layout_amounts(one, chunks.get(number + 1)) for number, one in chunks.items()]

    def before(self, row: int) -> Counts:
        """What is there before a row, beside what stands all the time."""
        counts: Counts = defaultdict(int)
        for name, standing in self.standing.items():
            for amounts, times in zip(self.amounts, standing[:, row].tolist(), strict=True):
                for kind, count in amounts[name].counts.items() if times else ():
                    counts[kind] += times * count
        return counts

    def bytes_before(self, category: str = "") -> NDArray[np.float64]:
        """The same in bytes, of all rows, (rows,). `category`: of these blocks only."""
        found = np.zeros(self.rows.number)
        for name, standing in self.standing.items():
            found += np.array([float(amounts[name].bytes(category)) for amounts in self.amounts]) @ standing
        return found

    def trace(self, number: int) -> ActionTrace:
        """What a pass does."""
        chunk = self.chunks[int(self.chunk[number])]
        return chunk.trace(STATES[self._found_in[number]], bool(self.late[number]))

    @cached_property
    def highest(self) -> int:
        """The pass with the highest point, the first of several as high."""
        before = self.bytes_before()
        kinds = (self.column[self.chunk] * len(STATES) + self._found_in) * 2 + self.late
        _, first, which = np.unique(kinds, return_index=True, return_inverse=True)
        tops = np.array([float(self.trace(number).highest[0]) for number in first.tolist()])
        return int((before[self.rows.passes] + tops[which]).argmax())

    def in_flight(self, number: int) -> int:
        """Microbatches whose activations are held while that pass runs, over all chunks."""
        begun, ended = self.is_f[:number], (self.is_b | self.is_w)[:number]
        return int(self.times[:number] @ (begun * 1 - ended) + self.is_f[number])

    def _lends_for(self, chunk: int) -> int:
        """The chunk of this stage that holds what `chunk` lends: itself, or the one that handed it on to it here."""
        lent, before = self.chunks[chunk].does.lent, chunk - 1
        handed_on = lent is not None and before in self.chunks and lent.input in self.chunks[before].does.shared
        return self._lends_for(before) if handed_on else chunk

    def _held_by_messages(self) -> Any:
        """Lent blocks that a message goes on to hold when the chunk has let go of them, from where the chunk gets them."""
        changes = []
        for kind in LENT:
            done, _ = self.outlived(kind)
            for chunk, column in enumerate(self.column.tolist()):
                lent = self.chunks[chunk].does.lent if chunk in self.chunks else None
                here = done[self.chunk[done] == chunk]
                if lent is None or lent.ends.get("B" if kind == "B" else "I") != kind or not len(here):
                    continue
                forward = self.when("F", here, chunk)
                self.late[forward] = True
                begins = self.rows.passes[forward] + 1
                if lent.input >= 0 and chunk - 1 in self.chunks:
                    begins = self.rows.passes[self.when("F", here, chunk - 1)] + 1
                elif lent.input >= 0:
                    begins = self.rows.received[forward]
                changes += [(begins, column, 1), (self.rows.passes[here] + 1, column, -1)]
        return self.running(*changes)

    def _gradients_of_b(self) -> dict[str, Any]:
        """Gradients that come for a B, and those that a B sends."""
        here = np.flatnonzero(self.is_b & (self.chunk < len(self.place) - 1))
        received, turned = self.rows.received[here], self.before_another[here]
        senders = [self.when(kind, here[turned], self.chunk[here[turned]] + 1) for kind in "BI"]
        received[turned] = self.rows.passes[np.minimum(*senders)] + 1
        column = self.column[self.chunk[here]]
        return {
            _RECEIVED_IN_B: self.running((received, column, 1), (self.rows.passes[here] + 1, column, -1)),
            _SENT_BY_B: self._waiting(self.begins_backward & ~self.after_another & (self.chunk > 0), -1, self.is_b),
        }


def layout_amounts(chunk: ChunkPasses, behind: ChunkPasses | None) -> dict[str, Change]:
    """Amounts of a chunk. `behind`: the next chunk, where that is on the same stage."""
    does, lent, nothing = chunk.does, chunk.does.lent, Change({})
    messages = {
        name: Change({one: count for one, count in blocks.items() if count})
        for name, blocks in trace_amounts(does, behind.does if behind else None).items()
    }
    held = Change({held_by_message(lent.block): 1}) if lent else nothing
    messages |= {name: held for name in LENT.values() if messages[name].counts}
    found = between_passes(
        lambda state: chunk.trace(state, False).net,
        messages,
        chunk.pending,
        lambda bucket: Change(Counter(chunk.reductions.under_way(bucket))),
    )
    found[_HELD] = held - Change({lent.block: 1}) if lent else nothing
    for name, several in ((_RECEIVED_IN_B, does.gradient_received), (_SENT_BY_B, does.gradient_sent)):
        found[name] = Change(several["B"]) - Change(several["I"]) if len(several) == 2 else nothing
    return found


def with_rows(actions: Sequence[Action]) -> tuple[Passes, Rows]:
    """A stage's passes, and rows for all of its actions."""
    passes, rows = list[tuple[int, int, int, int]](), list[list[int]]()
    received, latest = -1, dict[int, int]()
    for row, action in enumerate(actions):
        if action.kind in KINDS:
            latest[action.chunk] = len(passes)
            passes.append((KINDS.index(action.kind), action.chunk, action.microbatch, 0))
            rows.append([row, row if received < 0 else received, row + 1, row + 1])
            received = -1
        elif action.kind == "recv":
            received = row + 1
        elif action.kind == "send":
            rows[-1][2] = row + 1
        elif action.kind == "reduce":
            rows[latest[action.chunk]][3] = row + 1
    own, received, sent, reduced = np.array(rows).T
    return Passes(*np.array(passes).T), Rows(own, received, sent, reduced, len(actions))
