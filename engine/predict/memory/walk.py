"""A stage's step, action by action: what stands before each, and what each adds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from engine.predict.memory.blocks import Change
from engine.predict.memory.passes import ActionTrace, ChunkPasses
from engine.predict.memory.reducing import FRESH, MANY, State
from engine.schedule import Action, Schedule


class ActionTraces:
    """What actions do, by chunk and state: worked out once for all the chunks of all stages that have the same passes."""

    def __init__(self) -> None:
        self._known: dict[tuple[ChunkPasses, str, State, bool], tuple[ActionTrace, int]] = {}

    def of(self, passes: ChunkPasses, kind: str, state: State, late: bool) -> tuple[ActionTrace, int]:
        """As `ChunkPasses.trace`."""
        key = passes, kind, state, late
        if key not in self._known:
            self._known[key] = passes.trace(kind, state, late)
        return self._known[key]


class Moment(NamedTuple):
    """One action: what changes at its start, what it does, what changes at its end.

    With `times` it is a stretch of so many such actions, of which only the change that they come to is told, at the end.
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
    """What a chunk is given and hands on, as changes."""

    def __init__(self, passes: ChunkPasses) -> None:
        self.given, self.handed = Change(passes.given), Change(passes.handed)
        self.gradient_given = {kind: Change(counts) for kind, counts in passes.gradient_given.items()}
        gradient_handed = {kind: Change(counts) for kind, counts in passes.gradient_handed.items()}
        self.sent, self.gradient_sent = -self.handed, {kind: -change for kind, change in gradient_handed.items()}
        one = {key: min(count, 1) for key, count in passes.given.items()}
        self.one_given, self.shared = Change(one), passes.shared
        if passes.lent is not None:  # what is given, where the message that holds some of it goes later than the chunk does
            lent = passes.lent
            moved = {lent.kind: -1, lent.sent: 1} if lent.given >= 0 else {}
            self.given_late = Change({k: passes.given.get(k, 0) + moved.get(k, 0) for k in {**passes.given, **moved}})


class StageWalk:
    """`passes[c]` are those of the stage's chunks; `step` is what the optimizer's step does. Stages may share `traces`."""

    def __init__(
        self,
        schedule: Schedule,
        stage: int,
        passes: Mapping[int, ChunkPasses],
        zero: int,
        step: ActionTrace,
        traces: ActionTraces,
    ) -> None:
        self.schedule, self.stage, self.zero, self.step, self.passes = schedule, stage, zero, step, passes
        self.traces = traces
        self.messages = {c: Messages(p) for c, p in passes.items()}
        self._sent_late: dict[int, Change] = {}  # by chunk

    def moments(self) -> Iterator[Moment]:
        self._states = {c: State(left=self.schedule.microbatches) for c in self.passes}
        self._sent: dict[tuple[str, int], deque[Change]] = {}
        self._halved = {(a.chunk, a.microbatch) for a in self.schedule.stages[self.stage] if a.kind == "I"}
        self._done: dict[tuple[str, int, int], int] = {}  # which action of the stage it is
        self._late = self._held_late()
        for action in self.schedule.stages[self.stage]:
            yield self._moment(action)

    def _moment(self, action: Action) -> Moment:
        if action.kind in ("F", "B", "I", "W"):
            return self._compute(action)
        if action.kind == "send":
            return Moment(action, self._send(action), None, ())
        if action.kind == "recv":
            return Moment(action, (), None, (self._received(action),))
        if action.kind == "reduce":
            return Moment(action, (), self._trace(action), ())
        if action.kind == "step":
            waiting = tuple(change for messages in self._sent.values() for change in messages)
            return Moment(action, waiting, self.step, ())
        return Moment(action, (), None, ())

    def _received(self, action: Action) -> Change:
        c, m = action.chunk, action.microbatch
        if action.flow == "gradient":
            return self._for_backward(c, m)
        return self._given(c, m)

    def _given(self, chunk: int, microbatch: int) -> Change:
        messages = self.messages[chunk]
        return messages.given_late if (chunk, microbatch) in self._late else messages.given

    def _send(self, action: Action) -> tuple[Change, ...]:
        sent = self._sent.setdefault((action.flow, action.peer), deque())
        before = (sent.popleft(),) if len(sent) == self.schedule.held else ()
        c, m = action.chunk, action.microbatch
        if action.flow == "gradient":
            sent.append(self.messages[c].gradient_sent[self._kind(c, m)])
        else:
            sent.append(self._sent_with_what_is_lent(c) if (self._holder(c), m) in self._late else self.messages[c].sent)
        return before

    def _sent_with_what_is_lent(self, chunk: int) -> Change:
        if chunk not in self._sent_late:
            holder = self._holder(chunk)
            lent = None if holder is None else self.passes[holder].lent
            assert lent is not None
            sent = self.messages[chunk].sent.counts
            self._sent_late[chunk] = Change({**sent, lent.sent: sent.get(lent.sent, 0) - 1})
        return self._sent_late[chunk]

    def _holder(self, chunk: int) -> int | None:
        """The chunk of this stage that has what `chunk` hands on and lends: itself, or the one that handed it on to it here."""
        lent = self.passes[chunk].lent
        if lent is None:
            return None
        before = chunk - 1
        if before in self.passes and lent.given in self.passes[before].shared:
            return self._holder(before)
        return chunk

    def _held_late(self) -> set[tuple[int, int]]:
        """Chunks and microbatches of which what is lent is held by its message after the chunk has let go of it."""
        if all(passes.lent is None for passes in self.passes.values()):
            return set()
        actions = self.schedule.stages[self.stage]
        self._done = {(str(a.kind), a.chunk, a.microbatch): n for n, a in enumerate(actions) if a.kind in ("B", "I", "W")}
        waiting: dict[int, deque[tuple[int, int]]] = {}
        gone: dict[tuple[int, int], int] = {}
        for n, a in enumerate(actions):
            if a.kind == "send" and a.flow == "activation":
                queue = waiting.setdefault(a.peer, deque())
                if len(queue) == self.schedule.held:
                    gone[queue.popleft()] = n
                queue.append((a.chunk, a.microbatch))
        gone |= {message: len(actions) for queue in waiting.values() for message in queue}
        late = set()
        for (c, m), n in gone.items():
            holder = self._holder(c)
            lent = None if holder is None else self.passes[holder].lent
            if holder is not None and lent is not None and n > self._done[lent.ends[self._kind(holder, m)], holder, m]:
                late.add((holder, m))
        return late

    def _compute(self, action: Action) -> Moment:
        kept = (*self._kept_by_the_chunk_before(action), *self._kept_by_the_chunk_behind(action))
        return Moment(action, (), self._trace(action), (*self._handed_here(action), *kept))

    def _trace(self, action: Action) -> ActionTrace:
        """What the action does to its chunk, in the state that it finds it in."""
        c, kind, state = action.chunk, str(action.kind), self._states[action.chunk]
        like = FRESH
        if self.zero and kind != "F":
            like = State(state.pending, min(state.owed, MANY), min(state.left, MANY) if self.zero == 1 else 0)
        trace, pending = self.traces.of(self.passes[c], kind, like, (c, action.microbatch) in self._late)
        owed = state.owed + (kind == "I") - (kind == "W")
        self._states[c] = State(state.pending if kind == "F" else pending, owed, state.left - (kind in ("B", "I")))
        return trace

    def _kept_by_the_chunk_before(self, action: Action) -> tuple[Change, ...]:
        """Inputs that a chunk of this stage handed on and holds itself: they do not go yet."""
        c, m = action.chunk, action.microbatch
        if action.kind not in ("B", "I", "W") or not self._handed_on_here(c - 1) or self._outlives(c, m):
            return ()
        ends = self.passes[c].given_ends[self._kind(c, m)]
        return (self.messages[c].one_given,) * sum(ends[i] == action.kind for i in self.messages[c - 1].shared)

    def _kept_by_the_chunk_behind(self, action: Action) -> tuple[Change, ...]:
        """And where the chunk behind, on this stage, is the one that holds them longer."""
        c, m = action.chunk, action.microbatch
        if action.kind not in ("B", "I", "W") or not self._handed_on_here(c) or not self._outlives(c + 1, m):
            return ()
        lent = self.passes[c].lent
        return (self.messages[c + 1].one_given,) if lent and lent.ends[self._kind(c, m)] == action.kind else ()

    def _handed_on_here(self, chunk: int) -> bool:
        """Whether a chunk of this stage lends what it hands on to another chunk of it."""
        return chunk in self.passes and chunk + 1 in self.passes and bool(self.messages[chunk].shared)

    def _outlives(self, chunk: int, microbatch: int) -> bool:
        """Whether the chunk holds what the one before lent it after that one has let go of it."""
        before, lent = chunk - 1, self.passes[chunk - 1].lent
        if lent is None or (before, microbatch) in self._late:
            return False
        (i,) = self.messages[before].shared
        here = self.passes[chunk].given_ends[self._kind(chunk, microbatch)][i]
        there = lent.ends[self._kind(before, microbatch)]
        return self._done[here, chunk, microbatch] > self._done[there, before, microbatch]

    def _handed_here(self, action: Action) -> tuple[Change, ...]:
        """What is handed to another chunk of this stage turns into what that one is given."""
        placement, c = self.schedule.placement, action.chunk
        if action.kind == "W":
            return ()
        to = c + (1 if action.kind == "F" else -1)
        if not 0 <= to < len(placement) or placement[to] != self.stage:
            return ()
        if action.kind == "F":
            given_twice = [-self.messages[to].one_given] * len(self.messages[c].shared)
            return self.messages[c].sent, self._given(to, action.microbatch), *given_twice
        return self.messages[c].gradient_sent[str(action.kind)], self._for_backward(to, action.microbatch)

    def _for_backward(self, chunk: int, microbatch: int) -> Change:
        return self.messages[chunk].gradient_given[self._kind(chunk, microbatch)]

    def _kind(self, chunk: int, microbatch: int) -> str:
        """Whether the microbatch's backward is halved."""
        return "I" if (chunk, microbatch) in self._halved else "B"
