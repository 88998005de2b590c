"""A stage's step, action by action: what stands before each, and what each adds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from engine.predict.passes import Counts, Ledger, Passes, total_of
from engine.schedule import Action, Schedule


class Change:
    """Blocks that come (or, where counts are negative, go)."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    @cached_property
    def total(self) -> Any:
        return total_of(self.counts)

    def __neg__(self) -> Change:
        return Change({key: -count for key, count in self.counts.items()})


@dataclass(eq=False)
class Effect:
    """A ledger, summed up."""

    ledger: Ledger

    @cached_property
    def net(self) -> Change:
        return Change(self.ledger.net())

    @cached_property
    def highest(self) -> tuple[Any, tuple[int, int, bool]]:
        return self.ledger.highest()


class Moment(NamedTuple):
    """One action: what changes at its start, what it does, what changes at its end."""

    action: Action
    before: tuple[Change, ...]
    effect: Effect | None
    after: tuple[Change, ...]


class Messages:
    """What a chunk is given and hands on, as changes."""

    def __init__(self, passes: Passes) -> None:
        self.given, self.handed = Change(passes.given), Change(passes.handed)
        self.gradient_given = {kind: Change(counts) for kind, counts in passes.gradient_given.items()}
        self.gradient_handed = Change(passes.gradient_handed)
        self.sent, self.gradient_sent = -self.handed, -self.gradient_handed
        one = {key: min(count, 1) for key, count in passes.given.items()}
        self.one_given, self.shared = Change(one), passes.shared


class StageWalk:
    """`passes[c]` are those of the stage's chunks; `step` and `settled` what the optimizer's step does and a reduction ends."""

    def __init__(self, schedule: Schedule, stage: int, passes: Mapping[int, Passes], zero: int, step: Effect) -> None:
        self.schedule, self.stage, self.zero, self.step = schedule, stage, zero, step
        self.effects = {c: {name: Effect(ledger) for name, ledger in p.ledgers.items()} for c, p in passes.items()}
        self.messages = {c: Messages(p) for c, p in passes.items()}

    def moments(self) -> Iterator[Moment]:
        self._passed = dict.fromkeys(self.effects, 0)  # backward passes that a chunk has had
        self._owed = dict.fromkeys(self.effects, 0)
        self._sent: dict[tuple[str, int], deque[Change]] = {}
        self._halved = {(a.chunk, a.microbatch) for a in self.schedule.stages[self.stage] if a.kind == "I"}
        for action in self.schedule.stages[self.stage]:
            yield self._moment(action)

    def _moment(self, action: Action) -> Moment:
        if action.kind in ("F", "B", "I", "W"):
            return self._compute(action)
        if action.kind == "send":
            return Moment(action, self._send(action), None, ())
        if action.kind == "recv":
            messages = self.messages[action.chunk]
            return Moment(action, (), None, (messages.given if action.flow == "activation" else self._for_backward(action.chunk, action.microbatch),))
        if action.kind == "reduce":
            return Moment(action, (), self.effects[action.chunk].get("reduce"), ())
        if action.kind == "step":
            waiting = tuple(change for messages in self._sent.values() for change in messages)
            return Moment(action, waiting, self.step, ())
        return Moment(action, (), None, ())

    def _send(self, action: Action) -> tuple[Change, ...]:
        sent = self._sent.setdefault((action.flow, action.peer), deque())
        before = (sent.popleft(),) if len(sent) == self.schedule.held else ()
        messages = self.messages[action.chunk]
        sent.append(messages.sent if action.flow == "activation" else messages.gradient_sent)
        return before

    def _compute(self, action: Action) -> Moment:
        c = action.chunk
        effect = self.effects[c][f"{action.kind}{self._state(action)}"]
        return Moment(action, (), effect, (*self._handed_here(action), *self._kept_by_the_chunk_before(action)))

    def _kept_by_the_chunk_before(self, action: Action) -> tuple[Change, ...]:
        """Inputs that a chunk of this stage handed on and holds itself: they do not go yet."""
        before = action.chunk - 1
        if action.kind not in ("B", "I") or before < 0 or self.schedule.placement[before] != self.stage:
            return ()
        return (self.messages[action.chunk].one_given,) * self.messages[before].shared

    def _state(self, action: Action) -> str:
        """Which of its ledgers the action follows."""
        c, kind = action.chunk, action.kind
        known = self.effects[c]
        if kind == "F":
            return "" if "F" in known else next(name.removeprefix("F") for name in known if name.startswith("F"))
        state = ""
        if kind in ("B", "I"):
            self._passed[c] += 1
        if kind == "I":
            self._owed[c] += 1
        if kind == "W":
            self._owed[c] -= 1
        last = self._passed[c] == self.schedule.microbatches and (kind != "W" or not self._owed[c])
        if f"{kind} last" in known and last:
            state = " last"
        elif f"{kind} first" in known and self._passed[c] == 1:
            state = " first"
        elif f"{kind} over" in known and (self._owed[c] > 1 if kind == "I" else self._owed[c] > 0):
            state = " over"
        return state if f"{kind}{state}" in known else ""

    def _handed_here(self, action: Action) -> tuple[Change, ...]:
        """What is handed to another chunk of this stage turns into what that one is given."""
        placement, c = self.schedule.placement, action.chunk
        if action.kind == "W":
            return ()
        to = c + (1 if action.kind == "F" else -1)
        if not 0 <= to < len(placement) or placement[to] != self.stage:
            return ()
        if action.kind == "F":
            to_here = self.messages[to]
            return self.messages[c].sent, to_here.given, *[-to_here.one_given] * self.messages[c].shared
        return self.messages[c].gradient_sent, self._for_backward(to, action.microbatch)

    def _for_backward(self, chunk: int, microbatch: int) -> Change:
        return self.messages[chunk].gradient_given["I" if (chunk, microbatch) in self._halved else "B"]


__all__ = ["Change", "Effect", "Messages", "Moment", "StageWalk"]
