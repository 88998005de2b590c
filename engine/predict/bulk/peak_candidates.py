"""Which actions of a stage's step can have its peak, as rows of whole numbers: how much there is of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk.chunks.VALUES` is the memory at the highest point of one action.
What stands before each pass is worked out by `engine.predict.memory.walk`, as for one layout.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger.split import Stack
from engine.predict.bulk.actions import ACTIONS, LATE
from engine.predict.bulk.chunks import VALUES
from engine.predict.bulk.pieces import pieces
from engine.predict.memory.walk import StageWalk
from engine.schedule.orders import messages_held, passes
from engine.schedule.stage_passes import Groups
from engine.spec import SCHEDULE_FACTS, ScheduleName

Real = NDArray[np.float64]
Narrow = NDArray[np.int16] | NDArray[np.int32]
_V = {name: i for i, name in enumerate(VALUES)}
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
    name: ScheduleName,
    pp: int,
    chunks: int,
    microbatches: tuple[int, ...],
    stack: Stack,
    all_stages: bool = False,
    recomputed: int = 0,
) -> CandidatesOfSchedule:
    """For some numbers of microbatches, of all stages that can be the fullest. `all_stages`: of the others too.

    `recomputed`: as of a grid. Of chunks that recompute every n-th layer, one with fewer layers may keep as many.
    """
    _, which = pieces(stack, pp, chunks, SCHEDULE_FACTS[name].v_shaped, recomputed)
    all_stages = all_stages or bool(recomputed % 2)
    stages = {m: list(range(pp)) if all_stages else _stages(name, pp, which, stack.alike, m) for m in microbatches}
    return _Stages(name, pp, np.array(which), stages, bool(stack.encoders)).highest()


def _stages(name: ScheduleName, pp: int, which: tuple[int, ...], alike: bool, microbatches: int) -> list[int]:
    """Those that can be the fullest: where backward is not split, the first two and the last, as the others hold less of it all.

    Otherwise also those in the middle, where another piece of the model begins or ends, and the first that has all microbatches.
    """
    plain = not SCHEDULE_FACTS[name].splits
    if pp <= 6 and not plain:
        return list(range(pp))
    some = {0, min(1, pp - 1), pp - 1}
    if not plain:
        some |= {2, pp // 2 - 1, pp // 2, pp // 2 + 1, pp - 2, *(s for s in (microbatches - 2, microbatches - 1) if 0 <= s < pp)}
    if not alike or not plain:
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


class _Stages(StageWalk):
    """The walk through some stages, for one number of microbatches after another. Each piece has a column."""

    def __init__(self, name: ScheduleName, pp: int, which: Any, stages: dict[int, list[int]], encodes: bool) -> None:
        """`which`: piece of each chunk. `stages`: which, by number of microbatches."""
        self.numbers = list(stages)
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
            which,
            alike=alike,
            lends=encodes and alike.max() == 1,  # GPipe's many, put together, lend for no longer than they last
        )
        self.stage = several[self.of, 1]
        places = self.place * self.columns + which
        self.holds = np.bincount(places, minlength=pp * self.columns).reshape(pp, self.columns)  # of all stages
        self.piece = which[self.chunk]

    def _waiting(self, some: Any, step: int, only: Any = True) -> Any:
        """Counted together, with the first chunk that sends to that stage: a pass may stand for more messages than may wait."""
        here = np.flatnonzero(some)
        waiting = Groups(self.route(here, step)).before(self.times[here])
        most = self.held[self.of[here]]
        amount = np.minimum(waiting + self.times[here], most) - np.minimum(waiting, most)
        chunks = np.arange(max(0, -step), len(self.column) - max(0, step))  # those with one before, or behind
        routes = self.place[chunks] * len(self.place) + self.place[chunks + step]
        _, first, route = np.unique(routes, return_index=True, return_inverse=True)
        sender = np.zeros_like(self.column)
        sender[chunks] = self.column[chunks[first[route]]]
        return self.running((self.rows.sent[here], sender[self.chunk[here]], amount))

    def highest(self) -> CandidatesOfSchedule:
        """Of equal rows one, of which no other of its kind, which is action and piece, has as much of everything; and the step's
        two. A row is kept for both ways of counting if it is such a row in either.
        """
        labeled = [self._labels(early) for early in (False, True)]
        stands = {"states": self.holds.T.astype(self.narrow)[:, self.stage], **self.standing}
        between = np.concatenate([*stands.values(), *labeled[0][1].values(), *labeled[1][1].values()])
        kinds = self.microbatches
        for labels, _ in labeled:
            kinds = kinds * len(ACTIONS) + labels
        kept = undominated(between[(between != between[:, :1]).any(1)], kinds * self.columns + self.piece)
        kept = kept[np.argsort(self.microbatches[kept], kind="stable")]
        found = between[:, kept].reshape(-1, self.columns, len(kept)).T  # (kept, pieces, values)
        rows = np.zeros((2, len(kept), self.columns, len(VALUES)), self.narrow)
        rows[:, :, :, [_V[name] for name in stands]] = found[:, :, : len(stands)]
        lefts = np.split(found[:, :, len(stands) :], [len(labeled[0][1])], axis=2)
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
        both = np.concatenate([actions, step], axis=1).reshape(2, -1, self.columns * len(VALUES))
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
        """Which of `ACTIONS` each pass is; and the reductions under way."""
        states, under_way = self.reductions(early)
        return np.where(self.late, states + _TO_LATE, states), under_way


def undominated(columns: Any, kinds: Any) -> NDArray[np.int64]:
    """Numbers of the things that are not, in every column, at most as large as another of their kind; of equal ones the first.

    Of each kind the one with the largest sum is such, and all that it is above are not; so it goes on with those that are left.
    `columns`: (columns, things), whole numbers; `kinds`: (things,), from 0.
    """
    sums = columns.sum(0, dtype=np.int64)
    below, count = sums.max() - sums, len(kinds)
    assert (int(kinds.max()) + 1) * (int(below.max()) + 1) * count < 2**63, "more than a key can hold"
    left = np.sort((kinds * (below.max() + 1) + below) * count + np.arange(count)) % count
    columns, kinds = columns[:, left], kinds[left]
    kept = []
    while len(left):
        first = np.append(True, kinds[1:] != kinds[:-1])
        largest = np.flatnonzero(first)
        kept.append(left[largest])
        above = columns[:, largest].repeat(np.diff(np.append(largest, len(left))), axis=1)
        rest = np.flatnonzero((columns > above).any(0))
        columns, kinds, left = columns[:, rest], kinds[rest], left[rest]
    return np.concatenate(kept)
