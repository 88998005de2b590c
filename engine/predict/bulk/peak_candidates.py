"""Which actions of a stage's step can have its peak, as rows of whole numbers: how much there is of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk.chunks.VALUES` is the memory at the highest point of one action.
What follows from the order of passes is in `engine.predict.memory.stage_passes`, which the walk through one layout asks as well.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.actions import ACTIONS, LATE
from engine.predict.bulk.arrays import undominated
from engine.predict.bulk.chunks import AFTER, VALUES
from engine.predict.bulk.pieces import pieces
from engine.predict.memory.stage_passes import Groups, StagePasses
from engine.schedule.orders import KINDS, messages_held, passes
from engine.spec import SCHEDULE_FACTS, ScheduleName

Real = NDArray[np.float64]
Narrow = NDArray[np.int16] | NDArray[np.int32]
_V = {name: i for i, name in enumerate(VALUES)}
_LEAVES = np.full(len(VALUES), -1)  # of each action, which of `VALUES` says whose reduction it leaves under way
for _name in AFTER:
    _LEAVES[_V[_name]] = _V[f"after {_name}"]
_LEAVES[_V["B edge"]], _LEAVES[_V["I after B"]], _LEAVES[_V["W edge"]] = (_V[f"after {name}"] for name in ("B", "I", "W"))
_TO_LATE = ACTIONS.index(LATE[0]) - 1  # from an action, but F, to the same where the lent block stays
_KEPT = 512  # schedules, the latest
_LOSS_AND_NORM = 8  # the sum of losses and of squares, four bytes each


class PeakCandidates(NamedTuple):
    """Rows, (k, columns), bytes beside, (k,), and the stage of each, (k,).

    `rows`: first where a chunk's last backward differs from the others, as with ZeRO 1, then where its first does, as with ZeRO 2
    and 3. Numbers are small, and very many are kept: so they are narrow, to be widened where they are multiplied.
    """

    rows: tuple[Narrow, Narrow]
    beside: Real
    stages: NDArray[np.int64]


class CandidatesOfSchedule(NamedTuple):
    """Candidates by number of microbatches. `columns`: of which piece which of `VALUES` there is any of at all."""

    columns: list[tuple[int, int]]
    of: dict[int, PeakCandidates]


@lru_cache(maxsize=_KEPT)
def peak_candidates(
    name: ScheduleName, pp: int, chunks: int, microbatches: tuple[int, ...], layers: int, encoders: int, all_stages: bool = False
) -> CandidatesOfSchedule:
    """For some numbers of microbatches, of all stages that can be the fullest. `all_stages`: of the others too."""
    _, which = pieces(layers, encoders, pp * chunks, SCHEDULE_FACTS[name].v_shaped)
    stages = {m: list(range(pp)) if all_stages else _stages(name, pp, which, bool(encoders), m) for m in microbatches}
    return _Stages(name, pp, np.array(which), stages, bool(encoders)).highest()


def _stages(name: ScheduleName, pp: int, which: tuple[int, ...], encodes: bool, microbatches: int) -> list[int]:
    """Those that can be the fullest: where backward is not split, the first two and the last, as the others hold less of it all.

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


def _first_of_each(rows: Any) -> list[int]:
    """Numbers of the rows that are not the same as an earlier one."""
    data = rows.tobytes()
    width = len(data) // len(rows)
    first = {data[i * width : (i + 1) * width]: i for i in range(len(rows) - 1, -1, -1)}
    return list(first.values())


class _Stages(StagePasses):
    """Some stages' passes, for one number of microbatches after another.

    A pass changes what stands on its stage. So what stands before each is a running sum: of every piece, (pieces, passes).
    """

    def __init__(self, name: ScheduleName, pp: int, which: Any, stages: dict[int, list[int]], encodes: bool) -> None:
        """`which`: piece of each chunk. `stages`: which, by number of microbatches."""
        self.encodes, self.which, self.count, self.numbers = encodes, which, int(which.max()) + 1, list(stages)
        several = np.array([(m, stage) for m, some in stages.items() for stage in some])
        # A schedule may have as many in flight as there are microbatches. Of five and more it has four here, and of these a
        # chunk's first F and last B but one stand for all others too. An encoder with several chunks a stage has all of them:
        # each message may wait beyond its backward, and what it lends depends on its own microbatch's passes.
        grows = SCHEDULE_FACTS[name].memory_repeats_after is None and not (encodes and len(which) > pp)
        alike = np.maximum(1, several[:, 0] - 3) if grows else np.ones(len(several), np.int64)
        super().__init__(
            passes(name, pp, several[:, 1], several[:, 0] + 1 - alike, len(which) // pp),
            np.array([_place(name, pp, c) for c in range(len(which))]),
            np.array([messages_held(name, pp, m) for m, _ in several]),
            several[:, 0],
        )
        most = max(stages) * len(which)  # of anything on a stage; GPipe may hold very many microbatches
        self.narrow = np.int16 if most < 2**15 else np.int32
        self.lengths = np.bincount(self.of)
        self.firsts = self.lengths.cumsum() - self.lengths  # of each stage's passes
        self.stage = several[self.of, 1]
        places = self.place * self.count + which
        self.holds = np.bincount(places, minlength=pp * self.count).reshape(pp, self.count)  # of all stages
        self.piece = which[self.chunk]
        self.split = bool(self.is_i.any())
        backs_before, forwards_before = (self.by_chunk.before(some * 1) for some in (self.begins_backward, self.is_f))
        self.times = np.where(np.where(self.is_f, forwards_before == 0, backs_before == 2), alike[self.of], 1)
        self.late = np.zeros(len(self.of), np.bool_)  # passes that let go of the lent block while a message holds it
        self.stands = self._stands()

    def _running(self, changes: list[tuple[Any, Any, Any]]) -> Any:
        """What stands before each pass, (pieces, passes). Each change: at which passes, of which piece, by how much."""
        found = np.zeros((self.count, len(self.of)), self.narrow)
        for actions, piece, amount in changes:
            found[piece, actions] += amount
        before = found.cumsum(1, dtype=self.narrow)
        before -= found
        before -= before[:, self.firsts].repeat(self.lengths, axis=1)
        return before

    def _own(self, actions: Any, amount: Any, step: int = 0) -> tuple[Any, Any, Any]:
        """A change at some passes, given as a mask; one entry of `amount` for each pass. `step`: of the piece of the chunk
        itself, or of the one before (−1) or behind (1).
        """
        here = np.flatnonzero(actions)
        return here, self.which[self.chunk[here] + step], amount[here]

    def _stands(self) -> dict[str, Any]:
        """What stands before each pass, and what it receives itself."""
        f, backs, times = self.is_f, self.begins_backward, self.times
        after_another, before_another, last = self.after_another, self.before_another, len(self.which) - 1
        flying = [self._own(f, times), self._own(backs, -times)]
        turned = [self._own(f & before_another, times, 1), self._own(f & after_another, -times)]
        turned_back = [self._own(backs & after_another, times, -1), self._own(backs & before_another, -times)]
        found = {
            "received": self._running([*flying, *turned]),
            "flight": self._running(flying),
            "gradient received": self._running(turned_back),
            "sent": self._waiting(self.sends, 1),
            "gradient sent": self._waiting(backs & ~after_another & (self.chunk > 0), -1),
        }
        for name, actions in (
            ("received", f & ~after_another & (self.chunk > 0)),
            ("gradient received", backs & ~before_another & (self.chunk < last)),
        ):
            here, piece, amount = self._own(actions, times)
            found[name][piece, here] += amount if name == "received" else 1  # gradients come one at a time
        if self.encodes and times.max() == 1:  # GPipe's many, put together, lend for no longer than they last
            found |= self._lent()
            if after_another.any():
                found["shared"] = self._running([self._own(f & before_another, -times), turned_back[0]])
                found |= self._shared_until_w(np.flatnonzero(self.is_i & after_another))
        if self.split:
            i, w, deferred = self.is_i, self.is_w, self.deferred
            found["deferred"] = self._running([self._own(i & (deferred == 0), times), self._own(w & (deferred == 1), -times)])
            found["deferred more"] = self._running([self._own(i & (deferred > 0), times), self._own(w & (deferred > 1), -times)])
        return found

    def _shared_until_w(self, here: Any) -> dict[str, Any]:
        """What the chunk behind the turn holds from its I to its W and the one before holds too. `here`: those I."""
        found, before = {}, self.which[self.chunk[here] - 1]
        for kind in ("I", "W"):
            first = self.one_holder_left(here, "W", kind)
            ends = first < len(self.of)
            found[f"shared until W, {kind}"] = self._running([(here, before, -1), (first[ends], before[ends], 1)])
        return found

    def _lent(self) -> dict[str, Any]:
        """Blocks of which a chunk has let go and a message has not."""
        found = {}
        for kind in KINDS[1:]:
            done, gone = self.outlived(kind)
            self.late[done] = True
            piece, ends = self.piece[done], gone < len(self.of)
            found[f"lent {kind}"] = self._running([(done, piece, 1), (gone[ends], piece[ends], -1)])
        return found

    def _waiting(self, actions: Any, step: int) -> Any:
        """Messages that wait, as many as may be held; all are counted with the first chunk that sends to that stage."""
        here = np.flatnonzero(actions)
        waiting = Groups(self.route(here, step)).before(self.times[here])
        most = self.held[self.of[here]]
        amount = np.minimum(waiting + self.times[here], most) - np.minimum(waiting, most)
        some = np.arange(max(0, -step), len(self.which) - max(0, step))  # chunks with one before, or behind
        routes = self.place[some] * len(self.place) + self.place[some + step]
        _, first, route = np.unique(routes, return_index=True, return_inverse=True)
        sender = np.zeros_like(self.which)
        sender[some] = self.which[some[first[route]]]
        return self._running([(here, sender[self.chunk[here]], amount)])

    def highest(self) -> CandidatesOfSchedule:
        """Of equal rows one, of which no other of its kind, which is action and piece, has as much of everything; and the step's
        two. A row is kept for both ways of counting if it is such a row in either.
        """
        labeled = [self._labels(early) for early in (False, True)]
        stands = {"states": self.holds.T.astype(self.narrow)[:, self.stage], **self.stands}
        between = np.concatenate([*stands.values(), *labeled[0][1].values(), *labeled[1][1].values()])
        kinds = self.microbatches
        for labels, _ in labeled:
            kinds = kinds * len(ACTIONS) + labels
        kept = undominated(between[(between != between[:, :1]).any(1)], kinds * self.count + self.piece)
        kept = kept[np.argsort(self.microbatches[kept], kind="stable")]
        found = between[:, kept].reshape(-1, self.count, len(kept)).T  # (kept, pieces, values)
        rows = np.zeros((2, len(kept), self.count, len(VALUES)), self.narrow)
        rows[:, :, :, [_V[name] for name in stands]] = found[:, :, : len(stands)]
        lefts = np.split(found[:, :, len(stands) :], 2, axis=2)
        for row, (labels, names), left in zip(rows, labeled, lefts, strict=True):
            row[:, :, [_V[name] for name in names]] = left
            row[np.arange(len(kept)), self.piece[kept], labels[kept]] += 1
        return self._with_step(rows, kept)

    def _with_step(self, actions: Any, kept: Any) -> CandidatesOfSchedule:
        """`actions`: rows of those kept, in the order of their microbatches. Of stages that hold the same count, one has the
        step's.
        """
        some = np.unique(self.stage)
        alike = some[_first_of_each(self.holds[some])]
        step = np.zeros((2, 2 * len(alike), *actions.shape[2:]), self.narrow)
        step[:, :, :, _V["states"]] = np.repeat(self.holds[alike], 2, axis=0)
        step[:, ::2, :, _V["norm"]] = step[:, 1::2, :, _V["step"]] = self.holds[alike]
        both = np.concatenate([actions, step], axis=1).reshape(2, -1, self.count * len(VALUES))
        columns = np.flatnonzero(both.any((0, 1)))
        actions, step = np.split(both[:, :, columns], [len(kept)], axis=1)
        beside, stages = np.full(2 * len(alike), 4.0 + _LOSS_AND_NORM), alike.repeat(2)
        bounds = np.searchsorted(self.microbatches[kept], [*self.numbers, self.numbers[-1] + 1]).tolist()
        of = {}
        for m, start, stop in zip(self.numbers, bounds, bounds[1:], strict=False):
            late, early = (np.concatenate([one[start:stop], two]) for one, two in zip(actions, step, strict=True))
            here = np.concatenate([np.full(stop - start, float(_LOSS_AND_NORM)), beside])
            of[m] = PeakCandidates((late, early), here, np.concatenate([self.stage[kept[start:stop]], stages]))
        return CandidatesOfSchedule([divmod(column, len(VALUES)) for column in columns.tolist()], of)

    def _labels(self, early: bool) -> tuple[Any, dict[str, Any]]:
        """Which of `ACTIONS` each is; and what a first or last one leaves for those that follow, of each piece."""
        is_i, is_w, deferred, labels = self.is_i, self.is_w, self.deferred, self.states(early)
        # What each chunk's latest backward has left under way, until all of them are done and reduced.
        to_come = self.begun + self.begins_backward * self.times < self.microbatches
        going = ~self.is_f & (to_come | (deferred + is_i - is_w > 0))
        more = (labels == _V["I more"]) | (labels == _V["W more"])
        first = early & more & (self.complete_before == 0)  # which leave nothing more than a first I did
        leaves = np.where(first, _V["I edge"], labels)
        whats = AFTER if self.split else ("B",)
        left = {f"after {what}": self._while(going & (_LEAVES[leaves] == _V[f"after {what}"])) for what in whats}
        if self.split and not early:  # a last I's reduction lasts beyond the W that follow
            last = (labels == _V["I edge"]) * 1
            there = self.by_chunk.before(last) + last > 0
            left["after I edge"] = left["after I edge"] + self._while(going & there & (leaves != _V["I edge"]))
        return np.where(self.late, labels + _TO_LATE, labels), left

    def _while(self, some: Any) -> Any:
        """Of how many chunks the latest backward before each pass is one of `some`, (pieces, passes)."""
        now, before = some & ~self.is_f, some[self.latest] & (self.latest >= 0) & ~self.is_f
        change = now * 1 - before
        return self._running([self._own(change != 0, change)])
