"""What follows from the order of a stage's passes alone, as arrays: for memory of one layout, and of very many at once.

Passes are F, B, I and W. A chunk beside another of the same stage hands its output on to it; the others send, and are sent to.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.schedule.orders import KINDS, Passes

Mask = NDArray[np.bool_]
# The states in which a pass may find its chunk, by name. What reduces gradients depends on them.
# "edge": a first one with ZeRO 2 and 3, a last one with ZeRO 1; "more": while W of other microbatches is deferred; "I after B":
# else, where the backward before was not split. With ZeRO 1 and 0 the latter three are like the others.
STATES = ("F", "B", "B edge", "I", "I edge", "I more", "I after B", "W", "W edge", "W more")
STATE = {name: number for number, name in enumerate(STATES)}
_PLAIN, _EDGE, _MORE = (
    np.array([STATE[name] for name in names])
    for names in (("F", "B", "I", "W"), ("F", "B edge", "I edge", "W edge"), ("F", "B", "I more", "W more"))
)


class Groups:
    """Passes by what they share: running numbers within each group."""

    def __init__(self, of: Any) -> None:
        self._order = np.argsort(of, kind="stable")
        ordered = of[self._order]
        self._first = np.searchsorted(ordered, ordered)

    def before(self, amounts: Any) -> Any:
        """The sum of what came in the group before each."""
        sums = np.append(0, amounts[self._order].cumsum())[:-1]
        return self._back(sums - sums[self._first])

    def latest(self, some: Any) -> Any:
        """Which of `some` came last in the group before each; −1 where none did."""
        places = np.arange(len(some))
        latest = np.append(-1, np.maximum.accumulate(np.where(some[self._order], places, -1)))[:-1]
        return self._back(np.where(latest >= self._first, self._order[latest], -1))

    def _back(self, found: Any) -> Any:
        out = np.empty_like(found)
        out[self._order] = found
        return out


class StagePasses:
    """The passes of some stages, one stage after the other. All arrays are (n,), one entry a pass, unless they say otherwise.

    `kinds`: as numbers, by `KINDS`. `of`: of which stage, from 0 in the order of the stages given.
    """

    def __init__(self, passes: Passes, place: Any, held: Any, microbatches: Any, lender: Any = None) -> None:
        """`place`: on which stage each chunk of the model is, (chunks,).

        Of each of the stages given, `held`: how many messages of one flow to one stage may wait; `microbatches`: how many a step
        has. `lender`: of each chunk, which one holds the block that it sends and lends, (chunks,). Without it, that is the one
        before where that is on the same stage: it handed the block on.
        """
        self.kinds, self.chunk, self.microbatch, self.of = passes
        self.place, self.held, self.microbatches = place, held, microbatches[self.of]
        self.is_f, self.is_b, self.is_i, self.is_w = (self.kinds == kind for kind in range(len(KINDS)))
        self.begins_backward: Mask = self.is_b | self.is_i
        self.by_chunk = Groups(self.of * len(place) + self.chunk)
        self.times = np.ones(len(self.of), np.int64)  # how many passes each stands for
        self.deferred = self.by_chunk.before(self.is_i * 1 - self.is_w)  # passes of the chunk that have had I and not W
        same = place[1:] == place[:-1]
        self._lender = np.arange(len(place)) - np.append(False, same) if lender is None else lender
        self.after_another: Mask = np.append(False, same)[self.chunk]  # the chunk before is on the same stage
        self.before_another: Mask = np.append(same, False)[self.chunk]

    @cached_property
    def begun(self) -> Any:
        """Passes of the chunk that have begun backward before each."""
        return self.by_chunk.before(self.begins_backward * self.times)

    @cached_property
    def latest(self) -> Any:
        """Which pass of the chunk's backward came last before each; −1 where none did."""
        return self.by_chunk.latest(~self.is_f)

    @cached_property
    def complete_before(self) -> Any:
        """How many passes of the chunk before each have left nothing deferred: B, and a last W."""
        return self.by_chunk.before((~self.is_f & ~self.is_i & (self._behind == 0)) * 1)

    @cached_property
    def _behind(self) -> Any:
        """Passes of the chunk that are deferred after each W, and before each other."""
        return self.deferred - self.is_w

    def states(self, early: bool) -> Any:
        """The number in `STATES` of the state in which each pass finds its chunk.

        `early`: the chunk's first pass differs from the others, as with ZeRO 2 and 3; otherwise its last, as with ZeRO 1.
        """
        is_i, is_w, begun, behind = self.is_i, self.is_w, self.begun, self._behind
        if early:
            edge = np.where(is_w, (behind == 0) & (self.complete_before == 0), begun == 0)
        else:
            edge = (begun + ~is_w == self.microbatches) & (~is_w | (behind == 0))
        more = np.where(is_i, self.deferred > 0, is_w & (behind > 0))
        found = np.where(edge & ~self.is_f, _EDGE[self.kinds], np.where(more, _MORE[self.kinds], _PLAIN[self.kinds]))
        if early:
            found[is_i & (found == STATE["I"]) & (self.latest >= 0) & self.is_b[self.latest]] = STATE["I after B"]
        return found

    @cached_property
    def sends(self) -> Mask:
        """Forward passes whose output goes to another stage."""
        return self.is_f & ~self.before_another & (self.chunk < len(self.place) - 1)

    def route(self, here: Any, step: int) -> Any:
        """A number for the stages from and to which passes `here` send: to the next chunk, or, with `step` −1, the one before."""
        return self.of[here] * len(self.place) + self.place[self.chunk[here] + step]

    def when(self, kind: str, here: Any, chunk: Any) -> Any:
        """Which pass that is, of a chunk and with the microbatch of each pass `here`; n where there is none."""
        return self._places[kind][self._keys(self.of[here], chunk, self.microbatch[here])]

    def gone(self, here: Any, step: int) -> Any:
        """At which pass the message that each of the passes `here` sends is gone: when as many more were sent the same way as may
        wait. n where it waits until the step's end. (k,)
        """
        route = self.route(here, step)
        order = np.argsort(route, kind="stable")
        sorted_, route = here[order], route[order]
        later = np.arange(len(here)) + self.held[self.of[sorted_]]
        which = np.minimum(later, len(here) - 1)
        found = np.empty(len(here), np.int64)
        found[order] = np.where((later < len(here)) & (route[which] == route), sorted_[which], len(self.of))
        return found

    @cached_property
    def message_gone(self) -> Any:
        """At which pass the message that a forward sends is gone, as in `gone`; −1 where nothing is sent. (n,)"""
        here = np.flatnonzero(self.sends)
        found = np.full(len(self.of), -1)
        found[here] = self.gone(here, 1)
        return found

    def outlived(self, kind: str) -> tuple[Any, Any]:
        """Passes of a kind in which a chunk lets go of the block that it lends (if that is the kind) while a message holds it;
        and at which pass each of these messages is gone. (k,) each
        """
        here = np.flatnonzero(self.sends)
        gone = self.message_gone[here]
        done = self.when(kind, here, self._lender[self.chunk[here]])
        late = done < gone
        return done[late], gone[late]

    def one_holder_left(self, here: Any, kind: str, kind_before: str) -> Any:
        """At which pass one of two chunks of a stage lets go of a block that both hold, the one before having handed it on. (k,)

        `here`: passes of the chunk behind, (k,), each of a microbatch. `kind`, `kind_before`: in which pass each of the two lets
        go. Where a message holds the block after the one before let go, that one counts as the last.
        """
        chunk = self.chunk[here]
        behind, before = self.when(kind, here, chunk), self.when(kind_before, here, chunk - 1)
        message_holds = (self._lender[chunk] < chunk) & (before < self.message_gone[self.when("F", here, chunk)])
        return np.where(message_holds, behind, np.minimum(behind, before))

    @cached_property
    def _places(self) -> dict[str, Any]:
        keys = self._keys(self.of, self.chunk, self.microbatch)
        found: dict[str, Any] = {kind: np.full(int(keys.max()) + 1, len(self.of)) for kind in KINDS}
        for number, kind in enumerate(KINDS):
            does = np.flatnonzero(self.kinds == number)
            found[kind][keys[does]] = does
        return found

    @cached_property
    def _numbers(self) -> int:
        return int(self.microbatch.max()) + 1

    def _keys(self, of: Any, chunk: Any, microbatch: Any) -> Any:
        return (of * len(self.place) + chunk) * self._numbers + microbatch
