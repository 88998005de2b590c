"""Which instants of a stage's step can be its highest, as rows of whole numbers: how often there is what of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk.chunks.VALUES` is the memory at the highest point of one action.
The rules are those of `engine.predict.memory.walk`.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.actions import ACTIONS, LATE
from engine.predict.bulk.chunks import VALUES
from engine.predict.bulk.pieces import pieces
from engine.predict.bulk.points import undominated
from engine.schedule import Kind
from engine.schedule.orders import KINDS, messages_held, passes
from engine.spec import SCHEDULE_FACTS, ScheduleName

Real = NDArray[np.float64]
_V = {name: i for i, name in enumerate(VALUES)}
_LEFT = {
    "B": "B",
    "B 1": "B",
    "I": "I",
    "I after B": "I",
    "I 1": "I 1",
    "I over": "I over",
    "W": "W",
    "W 1": "W",
    "W over": "W over",
}
_LEAVES = np.array([_V[f"after {_LEFT[name]}"] if name in _LEFT else -1 for name in VALUES])  # whose reduction is under way
_PLAIN, _SPECIAL, _OVER = (
    np.array([_V[name] for name in names])
    for names in (("F", "B", "I", "W"), ("F", "B 1", "I 1", "W 1"), ("F", "B", "I over", "W over"))
)
_LATER = ACTIONS.index(LATE[0]) - 1  # from an action but F to the same where the lent block stays
_KEPT = 512  # schedules, the latest
_BEYOND = 8  # the sum of losses and of squares, four bytes each


def _first_of_each(rows: Any) -> list[int]:
    """Numbers of the rows that are not the same as an earlier one."""
    data = rows.tobytes()
    width = len(data) // len(rows)
    first = {data[i * width : (i + 1) * width]: i for i in range(len(rows) - 1, -1, -1)}
    return list(first.values())


Narrow = NDArray[np.int16] | NDArray[np.int32]


class Instants(NamedTuple):
    """Rows, (k, columns), bytes beside, (k,), and the stage of each, (k,).

    First where a chunk's last backward differs from the others, as with ZeRO 1, then where its first does, as with ZeRO 2 and 3.
    Numbers are small, and very many are kept: so they are narrow, to be widened where they are multiplied.
    """

    rows: tuple[Narrow, Narrow]
    beside: Real
    stages: NDArray[np.int64]


class Told(NamedTuple):
    """Instants by number of microbatches. `columns`: of which piece which of `VALUES` there is any of at all."""

    columns: list[tuple[int, int]]
    of: dict[int, Instants]


@lru_cache(maxsize=_KEPT)
def instants(name: ScheduleName, pp: int, chunks: int, microbatches: tuple[int, ...], layers: int, encoders: int) -> Told:
    """Of all stages that can be the fullest, for some numbers of microbatches."""
    _, which = pieces(layers, encoders, pp * chunks, SCHEDULE_FACTS[name].v_shaped)
    stages = {m: _stages(name, pp, which, bool(encoders), m) for m in microbatches}
    return _Stages(name, pp, np.array(which), stages, bool(encoders)).highest()


def _stages(name: ScheduleName, pp: int, which: tuple[int, ...], encodes: bool, microbatches: int) -> list[int]:
    """Those that can be the fullest: where nothing is put off, the first two and the last, as the others hold less of it all.

    Otherwise also those in the middle, where another piece of the model begins or ends, and the first that has all microbatches.
    """
    plain = not SCHEDULE_FACTS[name].splits
    if pp <= 6 and not plain:
        return list(range(pp))
    some = {0, min(1, pp - 1), pp - 1}
    if not plain:
        some |= {2, pp // 2 - 1, pp // 2, pp // 2 + 1, pp - 2, *(s for s in (microbatches - 2, microbatches - 1) if 0 <= s < pp)}
    if encodes or not plain:
        for c in range(1, len(which)):
            if which[c] != which[c - 1]:
                some |= {_place(name, pp, c), _place(name, pp, c - 1)}
    return sorted(some)


def _place(name: ScheduleName, pp: int, chunk: int) -> int:
    return 2 * pp - 1 - chunk if SCHEDULE_FACTS[name].v_shaped and chunk >= pp else chunk % pp


class _Groups:
    """Actions by what they share: running numbers within each group."""

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


class _Stages:
    """Some stages' actions as arrays, one stage behind the other, for one number of microbatches after another.

    An action changes what stands on its stage. So what stands before each is a running sum: of every piece, (pieces, actions).
    """

    def __init__(self, name: ScheduleName, pp: int, which: Any, stages: dict[int, list[int]], encodes: bool) -> None:
        """`stages`: which, by number of microbatches."""
        self.encodes = encodes
        self.pp, self.which, self.count = pp, which, int(which.max()) + 1
        self.last = len(which) - 1
        self.numbers = list(stages)
        most = max(stages) * len(which)  # of anything on a stage; GPipe may hold very many microbatches
        self.narrow = np.int16 if most < 2**15 else np.int32
        several = np.array([(m, stage) for m, some in stages.items() for stage in some])
        # A schedule may have as many in flight as there are microbatches. Of five and more it has four here, and of these a
        # chunk's first F and last B but one stand for all others too. An encoder with several chunks a stage has all of them:
        # each message may wait beyond its backward, and what it lends is told by its own microbatch.
        grows = SCHEDULE_FACTS[name].memory_repeats_after is None and not (encodes and len(which) > pp)
        alike = np.maximum(1, several[:, 0] - 3) if grows else np.ones(len(several), np.int64)
        self.kinds, self.chunk, self.microbatch, of = passes(name, pp, several[:, 1], several[:, 0] + 1 - alike, len(which) // pp)
        lengths = np.bincount(of)  # `of`: which stage and number of microbatches
        self.lengths, self.firsts = lengths, lengths.cumsum() - lengths  # of each stage's actions
        self.microbatches, self.stage = several.T[:, of]
        self.held = np.array([messages_held(name, pp, m) for m, _ in several])[of]
        self.place = np.array([_place(name, pp, c) for c in range(len(which))])
        held = self.place * self.count + which
        self.states = np.bincount(held, minlength=pp * self.count).reshape(pp, self.count)  # of all stages
        self.piece = which[self.chunk]
        self.of = of
        self.own = _Groups(of * len(which) + self.chunk)
        self.is_f, self.is_b, self.is_i, self.is_w = (self.kinds == kind for kind in range(len(KINDS)))
        self.backs = self.is_b | self.is_i
        self.split = bool(self.is_i.any())
        backs_before, forwards_before = (self.own.before(some * 1) for some in (self.backs, self.is_f))
        self.times = np.where(np.where(self.is_f, forwards_before == 0, backs_before == 2), alike[of], 1)
        # of the chunk at hand, before each action
        self.back = self.own.before(self.backs * self.times)
        self.owed = self.own.before(self.is_i * 1 - self.is_w)
        self.latest = self.own.latest(~self.is_f)
        self.late = np.zeros(len(of), np.bool_)  # actions at which a message holds the lent block longer than the chunk
        self.stands = self._stands()

    def _running(self, changes: list[tuple[Any, Any, Any]]) -> Any:
        """What stands before each action, (pieces, actions). Each change: at which actions, of which piece, by how much."""
        found = np.zeros((self.count, len(self.of)), self.narrow)
        for actions, piece, amount in changes:
            found[piece, actions] += amount
        before = found.cumsum(1, dtype=self.narrow)
        before -= found
        before -= before[:, self.firsts].repeat(self.lengths, axis=1)
        return before

    def _own(self, actions: Any, amount: Any) -> tuple[Any, Any, Any]:
        """A change of the chunk's own piece at some actions, given as a mask; one entry of `amount` for each action."""
        here = np.flatnonzero(actions)
        return here, self.piece[here], amount[here]

    def _others(self, actions: Any, step: int, amount: Any) -> tuple[Any, Any, Any]:
        """The same of the piece of the chunk before or behind."""
        here = np.flatnonzero(actions)
        return here, self.which[self.chunk[here] + step], amount[here]

    def _stands(self) -> dict[str, Any]:
        """What stands before each action, and what it is given itself. A chunk beside another of the same stage hands it its
        output; the others send, and are sent to.
        """
        f, backs, times = self.is_f, self.backs, self.times
        after_another = np.append(False, self.place[1:] == self.place[:-1])[self.chunk]
        before_another = np.append(self.place[1:] == self.place[:-1], False)[self.chunk]
        flying = [self._own(f, times), self._own(backs, -times)]
        turned = [self._others(f & before_another, 1, times), self._own(f & after_another, -times)]
        turned_back = [self._others(backs & after_another, -1, times), self._own(backs & before_another, -times)]
        found = {
            "given": self._running([*flying, *turned]),
            "flight": self._running(flying),
            "gradient given": self._running(turned_back),
            "handed": self._sent(f & ~before_another & (self.chunk < self.last), 1),
            "gradient handed": self._sent(backs & ~after_another & (self.chunk > 0), -1),
        }
        for name, actions in (
            ("given", f & ~after_another & (self.chunk > 0)),
            ("gradient given", backs & ~before_another & (self.chunk < self.last)),
        ):
            here, piece, amount = self._own(actions, times)
            found[name][piece, here] += amount if name == "given" else 1  # gradients come one at a time
        if self.encodes and times.max() == 1:  # GPipe's many, put together, lend for no longer than they last
            sent = self._gone(f & ~before_another & (self.chunk < self.last))
            found |= self._lent(sent, after_another)
            if after_another.any():
                found["shared"] = self._running([self._own(f & before_another, -times), turned_back[0]])
                found |= self._shared_owed(np.flatnonzero(self.is_i & after_another), sent)
        if self.split:
            i, w, owed = self.is_i, self.is_w, self.owed
            found["owed"] = self._running([self._own(i & (owed == 0), times), self._own(w & (owed == 1), -times)])
            found["owed more"] = self._running([self._own(i & (owed > 0), times), self._own(w & (owed > 1), -times)])
        return found

    def _shared_owed(self, i: Any, sent: Any) -> dict[str, Any]:
        """What the chunk behind the turn holds from its I to its W and the one before holds too: until one of them lets go, or
        until that W if a message holds it still. `i`: which actions are that I; `sent`: see `_gone`.
        """
        chunk = self.chunk[i]
        found, before = {}, self.which[chunk - 1]
        gone, last = sent[self._when("F", i, chunk)], self._when("W", i, chunk)
        for kind in ("I", "W"):
            done = self._when(kind, i, chunk - 1)
            first = np.where(done < gone, last, np.minimum(last, done))
            ends = first < len(self.of)
            found[f"shared owed {kind}"] = self._running([(i, before, -1), (first[ends], before[ends], 1)])
        return found

    def _when(self, kind: Kind, here: Any, chunk: Any) -> Any:
        """At which action a chunk does that with the microbatch of each action `here`; after the last of all if it does not."""
        return self._places[kind][self._keys(self.of[here], chunk, self.microbatch[here])]

    @cached_property
    def _places(self) -> dict[Kind, Any]:
        keys = self._keys(self.of, self.chunk, self.microbatch)
        found = {kind: np.full(int(keys.max()) + 1, len(self.of)) for kind in KINDS}
        for number, kind in enumerate(KINDS):
            does = np.flatnonzero(self.kinds == number)
            found[kind][keys[does]] = does
        return found

    def _keys(self, of: Any, chunk: Any, microbatch: Any) -> Any:
        return (of * len(self.which) + chunk) * (max(self.numbers) + 1) + microbatch

    def _gone(self, sends: Any) -> Any:
        """At which action what a forward sent is gone: when so many more were sent the same way as may wait. (actions,)

        After the last of all where it waits until the step's end, and −1 where nothing was sent.
        """
        here = np.flatnonzero(sends)
        peer = self.of[here] * self.pp + self.place[self.chunk[here] + 1]
        order = np.argsort(peer, kind="stable")
        here, peer = here[order], peer[order]
        later = np.arange(len(here)) + self.held[here]
        which = np.minimum(later, len(here) - 1)
        gone = np.full(len(self.of), -1)
        gone[here] = np.where((later < len(here)) & (peer[which] == peer), here[which], len(self.of))
        return gone

    def _lent(self, sent: Any, after_another: Any) -> dict[str, Any]:
        """Blocks of which a chunk has let go and a message has not. At the turn of a V the chunk that lends is the one before,
        which handed the block on to the sender.
        """
        here = np.flatnonzero(sent >= 0)
        gone, holder, found = sent[here], self.chunk[here] - after_another[here], {}
        piece = self.which[holder]
        for kind in KINDS[1:]:
            done = self._when(kind, here, holder)
            late, ends = done < gone, (done < gone) & (gone < len(self.of))
            self.late[done[late]] = True
            found[f"lent {kind}"] = self._running([(done[late], piece[late], 1), (gone[ends], piece[ends], -1)])
        return found

    def _sent(self, actions: Any, step: int) -> Any:
        """Messages that wait to be sent, as many as may be held; all are put down to the first chunk that sends to that stage."""
        here = np.flatnonzero(actions)
        waiting = _Groups(self.of[here] * self.pp + self.place[self.chunk[here] + step]).before(self.times[here])
        most = self.held[here]
        amount = np.minimum(waiting + self.times[here], most) - np.minimum(waiting, most)
        some = np.arange(max(0, -step), len(self.which) - max(0, step))  # chunks with one before, or behind
        _, first, route = np.unique(self.place[some] * self.pp + self.place[some + step], return_index=True, return_inverse=True)
        sender = np.zeros_like(self.which)
        sender[some] = self.which[some[first[route]]]
        return self._running([(here, sender[self.chunk[here]], amount)])

    def highest(self) -> Told:
        """Of equal rows one, of which no other of its kind, which is action and piece, has as much of everything; and the step's
        two. What is such a row late or early is told of both.
        """
        told = [self._labels(early) for early in (False, True)]
        stands = {"states": self.states.T.astype(self.narrow)[:, self.stage], **self.stands}
        between = np.concatenate([*stands.values(), *told[0][1].values(), *told[1][1].values()])
        kinds = self.microbatches
        for labels, _ in told:
            kinds = kinds * len(ACTIONS) + labels
        kept = undominated(between[(between != between[:, :1]).any(1)], kinds * self.count + self.piece)
        kept = kept[np.argsort(self.microbatches[kept], kind="stable")]
        found = between[:, kept].reshape(-1, self.count, len(kept)).T  # (kept, pieces, values)
        rows = np.zeros((2, len(kept), self.count, len(VALUES)), self.narrow)
        rows[:, :, :, [_V[name] for name in stands]] = found[:, :, : len(stands)]
        lefts = np.split(found[:, :, len(stands) :], 2, axis=2)
        for row, (labels, names), left in zip(rows, told, lefts, strict=True):
            row[:, :, [_V[name] for name in names]] = left
            row[np.arange(len(kept)), self.piece[kept], labels[kept]] += 1
        return self._with_step(rows, kept)

    def _with_step(self, actions: Any, kept: Any) -> Told:
        """`actions`: rows of those kept, in the order of their microbatches. Of stages that hold the same count, one has the
        step's.
        """
        some = np.unique(self.stage)
        alike = some[_first_of_each(self.states[some])]
        step = np.zeros((2, 2 * len(alike), *actions.shape[2:]), self.narrow)
        step[:, :, :, _V["states"]] = np.repeat(self.states[alike], 2, axis=0)
        step[:, ::2, :, _V["norm"]] = step[:, 1::2, :, _V["step"]] = self.states[alike]
        both = np.concatenate([actions, step], axis=1).reshape(2, -1, self.count * len(VALUES))
        columns = np.flatnonzero(both.any((0, 1)))
        actions, step = np.split(both[:, :, columns], [len(kept)], axis=1)
        beside, stages = np.full(2 * len(alike), 4.0 + _BEYOND), alike.repeat(2)
        bounds = np.searchsorted(self.microbatches[kept], [*self.numbers, self.numbers[-1] + 1]).tolist()
        of = {}
        for m, start, stop in zip(self.numbers, bounds, bounds[1:], strict=False):
            late, early = (np.concatenate([one[start:stop], two]) for one, two in zip(actions, step, strict=True))
            here = np.concatenate([np.full(stop - start, float(_BEYOND)), beside])
            of[m] = Instants((late, early), here, np.concatenate([self.stage[kept[start:stop]], stages]))
        return Told([divmod(column, len(VALUES)) for column in columns.tolist()], of)

    def _labels(self, early: bool) -> tuple[Any, dict[str, Any]]:
        """Which of `ACTIONS` each is; and what a first or last one leaves for those that follow, of each piece."""
        is_i, is_w, back, owed = self.is_i, self.is_w, self.back, self.owed
        behind = owed - is_w
        complete = ~self.is_f & ~is_i & (behind == 0)  # passes that leave nothing owed: B, and a last W
        before = self.own.before(complete * 1)  # of these
        if early:
            special = np.where(is_w, complete & (before == 0), back == 0)
        else:
            special = (back + ~is_w == self.microbatches) & (~is_w | (behind == 0))
        special &= ~self.is_f
        over = np.where(is_i, owed > 0, is_w & (behind > 0))
        labels = np.where(special, _SPECIAL[self.kinds], np.where(over, _OVER[self.kinds], _PLAIN[self.kinds]))
        if early:
            labels[is_i & (labels == _V["I"]) & (self.latest >= 0) & self.is_b[self.latest]] = _V["I after B"]
        # What each chunk's latest backward has left under way, until all of them are done and reduced.
        going = ~self.is_f & ((back + self.backs * self.times < self.microbatches) | (owed + is_i - is_w > 0))
        leaves = np.where(over & (before == 0), _V["I 1"], labels) if early else labels  # nothing more than a first I did
        whats = dict.fromkeys(_LEFT.values()) if self.split else ("B",)
        left = {f"after {what}": self._while(going & (_LEAVES[leaves] == _V[f"after {what}"])) for what in whats}
        if self.split and not early:  # a last I's reduction lasts beyond the W that follow
            there = self.own.before((special & is_i) * 1) + (special & is_i) > 0
            left["after I 1"] = left["after I 1"] + self._while(going & there & (leaves != _V["I 1"]))
        return np.where(self.late, labels + _LATER, labels), left

    def _while(self, some: Any) -> Any:
        """Of how many chunks the latest backward before each action is one of `some`, (pieces, actions)."""
        now, before = some & ~self.is_f, some[self.latest] & (self.latest >= 0) & ~self.is_f
        change = now * 1 - before
        return self._running([self._own(change != 0, change)])
