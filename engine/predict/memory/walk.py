"""A walk through the steps of some stages: how many of each of a chunk's amounts stand before each pass.

It is the walk of one layout and of very many. Of one layout, each chunk has a column of its own. Of very many, chunks that are
alike share one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.memory.amounts import AFTER, LENT, SHARED_UNTIL_W
from engine.schedule.orders import Passes
from engine.schedule.stage_passes import STATE, STATES, StagePasses

Whole = NDArray[np.int64]
Narrow = NDArray[np.int16] | NDArray[np.int32]
Change = tuple[Any, Any, Any]  # from which rows on, of which column, by how much: (k,) each


def _after(states: dict[str, str]) -> Whole:
    """By number of a state, which of `AFTER` a pass in it leaves under way; −1: what the pass before did."""
    return np.array([list(AFTER).index(states[name]) if name in states else -1 for name in STATES])


# With ZeRO 2 and 3, and with ZeRO 1, where a chunk's last passes alone reduce.
_AFTER_EACH = _after({name: name for name in AFTER} | {"B edge": "B", "I after B": "I", "W edge": "W"})
_AFTER_LAST = _after({state: name for name, state in AFTER.items() if state.endswith("edge")})
_I_EDGE = list(AFTER).index("I edge")


class Rows(NamedTuple):
    """Which row of a walk is which action. Of each pass (n,): its own row; from which on the message that it receives is there;
    from which on the message is gone that gives way to the one that it sends; from which on the reduction is over that it leaves
    under way as its chunk's last.
    """

    passes: Whole
    received: Whole
    sent: Whole
    reduced: Whole
    number: int


class StageWalk(StagePasses):
    """`standing[amount]`: how many stand before each row, (columns, rows). Without rows of other actions, a row is a pass, and
    before it is also the message that it receives.
    """

    def __init__(
        self,
        passes: Passes,
        place: Whole,
        held: Whole,
        microbatches: Whole,
        column: Whole,
        *,
        alike: Whole | None = None,
        lender: Whole | None = None,
        lends: bool = False,
        rows: Rows | None = None,
    ) -> None:
        """`column`: of each chunk of the model, in which it is counted. `alike`: see `_alike`. `lends`: whether
        a chunk may lend a block to a message. `rows`: if other actions have rows too, of one stage. The rest as `StagePasses`.
        """
        super().__init__(passes, place, held, microbatches, lender)
        self.column, self.columns = column, int(column.max()) + 1
        if alike is not None:
            self.times = self._alike(alike)
        most = int(microbatches.max()) * len(place)  # of anything on a stage; GPipe may hold very many microbatches
        self.narrow = np.int16 if most < 2**15 else np.int32
        # Behind each stage's rows is one more, from which on there is what its last pass leaves.
        lengths = np.bincount(self.of) if rows is None else np.array([rows.number])
        own = np.arange(len(self.of)) + self.of
        self.rows = Rows(own, own, own + 1, own + 1, len(own)) if rows is None else rows
        self._lengths = lengths + 1
        self._shown = own if rows is None else slice(None, -1)
        self.split = bool(self.is_i.any())
        self.late = np.zeros(len(self.of), np.bool_)  # passes that let go of the lent block while a message holds it
        self.standing = self._standing(lends)

    def _alike(self, number: Whole) -> Whole:
        """How many passes each stands for: `number`, by stage, a chunk's first F and last B but one; others for one."""
        forwards, backs = (self.by_chunk.before(some * 1) for some in (self.is_f, self.begins_backward))
        stand_for_others = np.where(self.is_f, forwards == 0, backs == 2)
        return np.where(stand_for_others, number[self.of], 1)

    def running(self, *changes: Change) -> Any:
        """What stands before each row, (columns, rows)."""
        found = np.zeros((self.columns, int(self._lengths.sum())), self.narrow)
        for rows, column, amount in changes:
            found[column, rows] += amount
        before = found.cumsum(1, dtype=self.narrow)
        if len(self._lengths) > 1:
            starts = self._lengths.cumsum()[:-1]
            before[:, starts[0] :] -= before[:, starts - 1].repeat(self._lengths[1:], axis=1)
        return before[:, self._shown]

    def _own(self, some: Any, amount: Any, step: int = 0, rows: Any = None) -> Change:
        """A change after some passes, a mask, or from `rows` on. `amount`, `rows`: an entry for each pass. `step`: of the chunk
        itself, or of the one before (−1) or behind (1).
        """
        here = np.flatnonzero(some)
        return (self.rows.passes + 1 if rows is None else rows)[here], self.column[self.chunk[here] + step], amount[here]

    def _standing(self, lends: bool) -> dict[str, Any]:
        f, backs, times = self.is_f, self.begins_backward, self.times
        after_another, before_another, last = self.after_another, self.before_another, len(self.place) - 1
        ended = self._own(backs, -times)
        back = backs & ~before_another & (self.chunk < last)
        one = np.ones_like(times)  # gradients come one at a time
        turned_back = self._own(backs & after_another, times, -1)
        found = {
            "received": self.running(
                self._own(f & ~after_another, times, rows=self.rows.received), self._own(f & before_another, times, 1), ended
            ),
            "flight": self.running(self._own(f, times), ended),
            "gradient received": self.running(
                turned_back, self._own(backs & before_another, -times),
                self._own(back, one, rows=self.rows.received), self._own(back, -one),
            ),
            "sent": self._waiting(self.sends, 1),
            "gradient sent": self._waiting(backs & ~after_another & (self.chunk > 0), -1),
        }  # fmt: skip
        if lends:
            found |= self._lent()
            if after_another.any():
                found["shared"] = self.running(self._own(f & before_another, -times), turned_back)
                found |= self._shared_until_w(np.flatnonzero(self.is_i & after_another))
        if self.split:
            i, w, deferred = self.is_i, self.is_w, self.deferred
            found["deferred"] = self.running(self._own(i & (deferred == 0), times), self._own(w & (deferred == 1), -times))
            found["deferred more"] = self.running(self._own(i & (deferred > 0), times), self._own(w & (deferred > 1), -times))
        return found

    def _waiting(self, some: Any, step: int, only: Any = True) -> Any:
        """Messages that wait, each in the column of the chunk that sent it. `some`: passes that send; of these, `only` those."""
        here = np.flatnonzero(some)
        gone, kept = self.gone(here, step), (some & only)[here]
        here, gone = here[kept], gone[kept]
        amount = np.minimum(self.times[here], self.held[self.of[here]])
        column, ends = self.column[self.chunk[here]], gone < len(self.of)
        return self.running(
            (self.rows.passes[here] + 1, column, amount), (self.rows.sent[gone[ends]], column[ends], -amount[ends])
        )

    def _shared_until_w(self, here: Any) -> dict[str, Any]:
        """What the chunk behind the turn holds from its I to its W and the one before holds too. `here`: those I."""
        found, before, rows = {}, self.column[self.chunk[here] - 1], self.rows.passes + 1
        for kind, name in SHARED_UNTIL_W.items():
            first = self.one_holder_left(here, "W", kind)
            ends = first < len(self.of)
            found[name] = self.running((rows[here], before, -1), (rows[first[ends]], before[ends], 1))
        return found

    def _lent(self) -> dict[str, Any]:
        """Blocks of which a chunk has let go and a message has not."""
        found = {}
        for kind, name in LENT.items():
            done, gone = self.outlived(kind)
            self.late[done] = True
            column, ends = self.column[self.chunk[done]], gone < len(self.of)
            found[name] = self.running((self.rows.passes[done] + 1, column, 1), (self.rows.sent[gone[ends]], column[ends], -1))
        return found

    def reductions(self, early: bool) -> tuple[Whole, dict[str, Any]]:
        """The state of each pass, as `states`; and how many chunks' reductions are under way, which those passes left."""
        states, backward = self.states(early), ~self.is_f
        if early:
            after = _AFTER_EACH[states]
            more = (states == STATE["I more"]) | (states == STATE["W more"])
            after[more & (self.complete_before == 0)] = _I_EDGE  # these leave nothing more than a first I did
        else:
            after = _AFTER_LAST[states]
            last_i = (after == _I_EDGE) * 1  # whose reduction lasts beyond the W that follow
            after[(after < 0) & backward & (self.by_chunk.before(last_i) > 0)] = _I_EDGE
        behind = self.deferred + self.is_i - self.is_w
        last = backward & (self.begun + self.begins_backward * self.times >= self.microbatches) & (behind == 0)
        return states, {
            f"after {name}": self._while(after == number, last)
            for number, name in enumerate(AFTER)
            if (early or number in _AFTER_LAST) and (self.split or name == "B")
        }

    def _while(self, some: Any, last: Any) -> Any:
        """Of how many chunks the latest backward before each row is one of `some`, until the chunk's last one is reduced."""
        now, before = some & ~self.is_f, some[self.latest] & (self.latest >= 0) & ~self.is_f
        change, ends = now * 1 - before, now & last
        return self.running(self._own(change != 0, change), self._own(ends, -1 * ends, rows=self.rows.reduced))
