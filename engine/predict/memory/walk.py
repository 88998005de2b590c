"""A stage's step, action by action: what stands before each, and what each adds."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np

from engine.predict.memory.blocks import Change
from engine.predict.memory.passes import ActionTrace, ChunkPasses, held_by_message
from engine.predict.memory.reading import ChunkTrace
from engine.predict.memory.reducing import STATES
from engine.predict.memory.stage_passes import StagePasses
from engine.schedule import Action, Schedule
from engine.schedule.orders import KINDS, Passes


class ActionChanges(NamedTuple):
    """One action: what changes at its start, what it does, what changes at its end.

    With `times` it stands for that number of such actions, and `after` is the sum of their changes.
    """

    action: Action
    before: tuple[Change, ...]
    trace: ActionTrace | None
    after: tuple[Change, ...]
    times: int = 1

    @property
    def changes(self) -> tuple[Change, ...]:
        """All that it leaves changed."""
        return (*self.before, *((self.trace.net,) if self.trace else ()), *self.after)


class Messages:
    """What a chunk receives and sends, as changes. What is sent is freed when the message is gone.

    `received_late`: of what a chunk receives, where a message holds the block that it lends longer than the chunk.
    """

    def __init__(self, does: ChunkTrace) -> None:
        self.received, self.sent = Change(does.received), -Change(does.sent)
        self.gradient_received = {kind: Change(counts) for kind, counts in does.gradient_received.items()}
        self.gradient_sent = {kind: -Change(counts) for kind, counts in does.gradient_sent.items()}
        self.one_received = Change({key: min(count, 1) for key, count in does.received.items()})
        lent = does.lent
        if lent is not None:
            moved = {lent.block: -1, held_by_message(lent.block): 1} if lent.input >= 0 else {}
            self.received_late = Change({k: does.received.get(k, 0) + moved.get(k, 0) for k in {**does.received, **moved}})


class StageWalk:
    """`passes[c]` are those of the stage's chunks; `step` is what the optimizer's step does."""

    def __init__(self, schedule: Schedule, stage: int, passes: Mapping[int, ChunkPasses], zero: int, step: ActionTrace) -> None:
        self.schedule, self.stage, self.zero, self.step, self.passes = schedule, stage, zero, step, passes
        self.does = {c: p.does for c, p in passes.items()}
        self.messages = {c: Messages(does) for c, does in self.does.items()}
        self._split = {(a.chunk, a.microbatch) for a in schedule.stages[stage] if a.kind == "I"}
        order = [(KINDS.index(a.kind), a.chunk, a.microbatch, 0) for a in schedule.stages[stage] if a.kind in KINDS]
        lenders = {c: self._lender(c) for c, does in self.does.items() if does.lent is not None}
        lender = np.arange(len(schedule.placement))
        for c, other in lenders.items():
            lender[c] = other
        self.order = StagePasses(
            Passes(*np.array(order).T),
            np.array(schedule.placement),
            np.array([schedule.held]),
            np.array([schedule.microbatches]),
            lender,
        )
        self._late = self._held_late()
        self._still_held = self._shared_and_still_held()
        self._sent_late = {c: self._sent_with_lent(c, other) for c, other in lenders.items()}

    def actions(self) -> Iterator[ActionChanges]:
        """In order."""
        self._sent: dict[tuple[str, int], deque[Change]] = {}
        states = iter([STATES[number] for number in self.order.states(self.zero >= 2).tolist()])
        latest, number = dict[int, str](), 0
        for action in self.schedule.stages[self.stage]:
            c = action.chunk
            if action.kind in KINDS:
                state = next(states)
                latest[c] = state  # at last that of a backward
                trace = self.passes[c].trace(state, (c, action.microbatch) in self._late)
                yield ActionChanges(action, (), trace, (*self._handed_on_here(action), *self._still_held.get(number, ())))
                number += 1
            elif action.kind == "send":
                yield ActionChanges(action, self._send(action), None, ())
            elif action.kind == "recv":
                yield ActionChanges(action, (), None, (self._received(action),))
            elif action.kind == "reduce":
                yield ActionChanges(action, (), self.passes[c].reduce(latest[c]), ())
            elif action.kind == "step":
                waiting = tuple(change for messages in self._sent.values() for change in messages)
                yield ActionChanges(action, waiting, self.step, ())
            else:
                yield ActionChanges(action, (), None, ())

    def _received(self, action: Action) -> Change:
        c, m = action.chunk, action.microbatch
        if action.flow == "gradient":
            return self.messages[c].gradient_received[self._backward(c, m)]
        return self._input(c, m)

    def _input(self, chunk: int, microbatch: int) -> Change:
        messages = self.messages[chunk]
        return messages.received_late if (chunk, microbatch) in self._late else messages.received

    def _send(self, action: Action) -> tuple[Change, ...]:
        """The oldest message to that stage is gone where no more may wait."""
        waiting = self._sent.setdefault((action.flow, action.peer), deque())
        before = (waiting.popleft(),) if len(waiting) == self.schedule.held else ()
        c, m = action.chunk, action.microbatch
        if action.flow == "gradient":
            waiting.append(self.messages[c].gradient_sent[self._backward(c, m)])
        else:
            late = c in self._sent_late and (self._lender(c), m) in self._late
            waiting.append(self._sent_late[c] if late else self.messages[c].sent)
        return before

    def _sent_with_lent(self, chunk: int, lender: int) -> Change:
        lent, sent = self.does[lender].lent, self.messages[chunk].sent.counts
        assert lent is not None
        block = held_by_message(lent.block)
        return Change({**sent, block: sent.get(block, 0) - 1})

    def _handed_on_here(self, action: Action) -> tuple[Change, ...]:
        """What another chunk of this stage gets: what is sent turns into what that one receives."""
        placement, c, m = self.schedule.placement, action.chunk, action.microbatch
        to = c + (1 if action.kind == "F" else -1)
        if action.kind == "W" or not 0 <= to < len(placement) or placement[to] != self.stage:
            return ()
        if action.kind == "F":
            counted_twice = [-self.messages[to].one_received] * len(self.does[c].shared)
            return self.messages[c].sent, self._input(to, m), *counted_twice
        return self.messages[c].gradient_sent[str(action.kind)], self.messages[to].gradient_received[self._backward(to, m)]

    def _lender(self, chunk: int) -> int:
        """The chunk of this stage that holds what `chunk` lends: itself, or the one that handed it on to it here."""
        lent, before = self.does[chunk].lent, chunk - 1
        handed_on = lent is not None and before in self.does and lent.input in self.does[before].shared
        return self._lender(before) if handed_on else chunk

    def _held_late(self) -> set[tuple[int, int]]:
        """Chunks and microbatches of which what is lent is held by its message after the chunk has let go of it."""
        late = set()
        lending = {c: does.lent for c, does in self.does.items() if does.lent is not None}
        for kind in KINDS[1:] if lending else ():
            done, _ = self.order.outlived(kind)
            for c, m in zip(self.order.chunk[done].tolist(), self.order.microbatch[done].tolist(), strict=True):
                if c in lending and lending[c].ends[self._backward(c, m)] == kind:
                    late.add((c, m))
        return late

    def _shared_and_still_held(self) -> dict[int, list[Change]]:
        """By pass, blocks that it frees as one of two holders: they do not go yet. Of chunks that hand on what they hold too."""
        order, found = self.order, defaultdict[int, list[Change]](list)
        for c, does in self.does.items():
            before = self.does.get(c - 1)
            if before is None or before.lent is None:
                continue
            for (kind, ends), (kind_before, end) in product(does.input_ends.items(), before.lent.ends.items()):
                here = np.flatnonzero((order.chunk == c) & (order.kinds == KINDS.index(kind)))
                here = here[order.when(kind_before, here, order.chunk[here] - 1) < len(order.of)]
                for which in before.shared:
                    for number in order.one_holder_left(here, ends[which], end).tolist():
                        found[number].append(self.messages[c].one_received)
        return found

    def _backward(self, chunk: int, microbatch: int) -> str:
        """What the microbatch's backward begins with."""
        return "I" if (chunk, microbatch) in self._split else "B"
