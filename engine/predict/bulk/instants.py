"""Which instants of a stage's step can be its highest, as rows of whole numbers: how often there is what of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk.chunks.VALUES` is the memory at the highest point of one action.
The rules are those of `engine.predict.tape.walk`.
"""

from __future__ import annotations

import itertools
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.chunks import VALUES
from engine.predict.bulk.plays import Form
from engine.schedule.orders import Pass, messages_held, stage_passes
from engine.spec import V_SHAPED, ScheduleName

Real = NDArray[np.float64]
_V = {name: i for i, name in enumerate(VALUES)}
_LEFT = {
    name: f"after {name.replace('B 1', 'B').replace('W 1', 'W')}"
    for name in ("B", "B 1", "I", "I 1", "I over", "W", "W 1", "W over")
} | {"I after B": "after I"}
_KINDS = "FBIW"
_PLAIN, _SPECIAL, _OVER = (
    np.array([_V[name] for name in names])
    for names in (("F", "B", "I", "W"), ("F", "B 1", "I 1", "W 1"), ("F", "B", "I over", "W over"))
)
_KEPT = 512  # schedules, the latest
_BEYOND = 8  # the sum of losses and of squares, four bytes each


class Piece(NamedTuple):
    """A form of chunk, and how many layers there are between its first and last of each kind."""

    form: Form
    between: tuple[int, int]


@cache
def pieces(layers: int, encoders: int, chunks: int, bends: bool = False) -> tuple[tuple[Piece, ...], tuple[int, ...]]:
    """Of layers split as evenly as can be into so many chunks: the pieces that there are, and which of them each chunk is.

    `encoders`: how many of the layers are an encoder's; 0 where there is no decoder that attends to one. `bends`: whether chunks
    stand in the shape of a V, so that the one at its turn is followed by another on the same stage.
    """
    each, rest = divmod(layers, chunks)
    forms: list[Piece] = []
    start = 0
    for c in range(chunks):
        stop = start + each + (c < rest)
        before = min(stop, encoders or layers) - min(start, encoders or layers)
        behind = stop - start - before
        form = Form(c == 0, c == chunks - 1, min(before, 2), bool(encoders) and before > 0 and stop >= encoders, min(behind, 2))
        forms.append(Piece(form, (max(0, before - 2), max(0, behind - 2))))
        start = stop
    if bends and encoders:
        turn, following = forms[chunks // 2 - 1], forms[chunks // 2]
        forms[chunks // 2 - 1] = turn._replace(form=turn.form._replace(behind=following.form))
    found: dict[Piece, int] = {}
    which = tuple(found.setdefault(piece, len(found)) for piece in forms)
    return tuple(found), which


def undominated(rows: Any, kinds: Any) -> NDArray[np.int64]:
    """Numbers of the rows that are not, in every column, at most as large as another of their kind."""
    order = np.lexsort((-rows.sum(1), kinds))
    columns = np.ascontiguousarray(rows[order].T)
    ends = np.searchsorted(kinds[order], kinds[order], side="right").tolist()
    left, kept = np.ones(len(order), np.bool_), []
    for i, end in enumerate(ends):
        if left[i]:
            kept.append(i)
            if i + 1 < end:
                left[i + 1 : end] &= (columns[:, i + 1 : end] > columns[:, i : i + 1]).any(0)
    return np.sort(order[kept])


def _first_of_each(rows: Any) -> list[int]:
    """Numbers of the rows that are not the same as an earlier one."""
    data = rows.tobytes()
    width = len(data) // len(rows)
    first = {data[i * width : (i + 1) * width]: i for i in range(len(rows) - 1, -1, -1)}
    return list(first.values())


class Instants(NamedTuple):
    """Rows, (k, pieces × values), bytes beside, (k,), and the stage of each, (k,).

    Numbers are small, and very many are kept: so they are narrow, to be widened where they are multiplied.
    """

    rows: NDArray[np.int16] | NDArray[np.int32]
    beside: Real
    stages: NDArray[np.int64]


@lru_cache(maxsize=_KEPT)
def instants(
    name: ScheduleName, pp: int, chunks: int, microbatches: tuple[int, ...], layers: int, encoders: int, adamw: bool
) -> dict[int, tuple[Instants, Instants]]:
    """Of all stages that can be the fullest, by number of microbatches.

    First where a chunk's last backward differs from the others, as with ZeRO 1, then where its first does, as with ZeRO 2 and 3.
    """
    found, which = pieces(layers, encoders, pp * chunks, name in V_SHAPED)
    stages = [(stage, m) for m in microbatches for stage in _stages(name, pp, which, bool(encoders))]
    told = _Stages(name, stages, pp, chunks, which, len(found))
    by_m = zip(microbatches, *(told.highest(early, adamw) for early in (False, True)), strict=True)
    return {m: (late, early) for m, late, early in by_m}


def _stages(name: ScheduleName, pp: int, which: tuple[int, ...], encodes: bool) -> list[int]:
    """Those that can be the fullest: where nothing is put off, the first two and the last, as the others hold less of it all.

    Otherwise also those in the middle, and where another piece of the model begins or ends.
    """
    plain = name not in (*V_SHAPED, "zb-h1")
    if pp <= 6 and not plain:
        return list(range(pp))
    some = {0, min(1, pp - 1), pp - 1}
    if not plain:
        some |= {2, pp // 2 - 1, pp // 2, pp // 2 + 1, pp - 2}
    if encodes or not plain:
        for c in range(1, len(which)):
            if which[c] != which[c - 1]:
                some |= {_place(name, pp, c), _place(name, pp, c - 1)}
    return sorted(some)


def _place(name: ScheduleName, pp: int, chunk: int) -> int:
    return 2 * pp - 1 - chunk if name in V_SHAPED and chunk >= pp else chunk % pp


def _order(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int) -> tuple[list[Pass], Any]:
    """A stage's actions, and for how many alike in a row each stands: GPipe has as many in flight as there are microbatches."""
    if name != "gpipe" or microbatches < 5:
        order = stage_passes(name, stage, pp, microbatches, chunks)
        return order, np.ones(len(order), np.int64)
    order = stage_passes(name, stage, pp, 4, chunks)
    return order, np.array([microbatches - 3, 1, 1, 1, 1, 1, microbatches - 3, 1])


_HELD = ("states", "given", "flight", "gradient given", "handed", "gradient handed")
_AROUND = ("shared", "shared owed")


class _Stages:
    """Some stages' actions as arrays, one stage behind the other, and what stands before each: (actions, chunks of a stage).

    `stages`: each with the microbatches of its step, those of one number of microbatches together.
    """

    def __init__(
        self, name: ScheduleName, stages: list[tuple[int, int]], pp: int, chunks: int, which: tuple[int, ...], count: int
    ) -> None:
        self.name, self.stages, self.pp = name, stages, pp
        self.held = [[c for c in range(pp * chunks) if _place(name, pp, c) == stage] for stage, _ in stages]
        one_of = np.eye(count, dtype=np.float32)
        self.pieces = one_of[[[which[c] for c in held] for held in self.held]]  # (stages, chunks, pieces)
        orders = [_order(name, stage, pp, m, chunks) for stage, m in stages]
        lengths = [len(order) for order, _ in orders]
        self.bounds = list(itertools.pairwise(np.cumsum([0, *lengths]).tolist()))
        self.of = np.repeat(np.arange(len(stages)), lengths)
        self.microbatches = np.array([m for _, m in stages])[self.of]
        self.first = np.array([start for start, _ in self.bounds])[self.of]  # of each action's stage
        place = {c: i for held in self.held for i, c in enumerate(held)}
        kinds, at, _ = zip(*(one for order, _ in orders for one in order), strict=True)
        self.at = np.array([place[chunk] for chunk in at])
        self.kinds = np.array(["FBIW".index(kind) for kind in kinds])
        self.mine = self.at[:, None] == np.arange(len(self.held[0]))
        times = np.concatenate([times for _, times in orders])[:, None].astype(np.int32)
        self.now = [(self.mine & (self.kinds == kind)[:, None]) * times for kind in range(len(_KINDS))]
        self.split = bool((self.kinds >= _KINDS.index("I")).any())
        self.forward, self.back = self._before(self.now[0]), self._before(self.now[1])
        self.owed = np.zeros_like(self.back)
        if self.split:
            halves = self._before(self.now[2])
            self.back, self.owed = self.back + halves, halves - self._before(self.now[3])
        self.flying = self.forward - self.back
        self.last = pp * chunks - 1
        self.piece = self.pieces[self.of, self.at].argmax(1)
        self.stands = self._stands()
        self.standing = self._by_piece(list(self.stands.values()))

    def _before(self, now: Any) -> Any:
        """How many there were on the stage before each action."""
        found = now.cumsum(0, dtype=np.int32) - now
        return found - found[self.first]

    def _by_piece(self, of_chunks: list[Any]) -> Real:
        """Numbers of chunks, (actions, chunks) each, as numbers of pieces: (actions, pieces, how many)."""
        stack = np.array(of_chunks, np.float32)  # exact, as counts are small
        found = [stack[:, start:stop] @ pieces for (start, stop), pieces in zip(self.bounds, self.pieces, strict=True)]
        return np.concatenate(found, axis=1).transpose(1, 2, 0)

    def _stands(self) -> dict[str, Any]:
        """What stands before each action, by chunk."""
        turns = any(c + 1 in held for held in self.held for c in held)
        names = (*_HELD, *_AROUND) if turns else _HELD
        found = {name: np.zeros(self.mine.shape, np.int32) for name in names}
        found["states"][:] = 1
        found["given"] += self.flying
        found["flight"] += self.flying
        for (start, stop), held, (_, m) in zip(self.bounds, self.held, self.stages, strict=True):
            self._messages({name: of[start:stop] for name, of in found.items()}, slice(start, stop), held, m)
        if self.split:
            found |= {"owed": (self.owed > 0) * 1, "owed more": np.maximum(0, self.owed - 1)}
        return found

    def _messages(self, out: dict[str, Any], here: slice, held: list[int], m: int) -> None:
        """Of one stage. A chunk beside another of the same stage hands it its output; the others send, and are sent to."""
        most = messages_held(self.name, self.pp, m)
        forward, back, flying = self.forward[here], self.back[here], self.flying[here]
        sent: dict[tuple[str, int], list[int]] = {}
        for j, c in enumerate(held):
            if c > 0 and c - 1 in held:
                before = held.index(c - 1)
                waiting = forward[:, before] - forward[:, j]
                out["given"][:, j] += waiting
                out["shared"][:, before] -= waiting + flying[:, j]
                out["shared owed"][:, before] -= self.owed[here, j]
            elif c > 0:
                out["given"][:, j] += self.now[0][here, j]
                sent.setdefault(("gradient handed", _place(self.name, self.pp, c - 1)), []).append(j)
            if c < self.last and c + 1 in held:
                out["gradient given"][:, j] += back[:, held.index(c + 1)] - back[:, j]
            elif c < self.last:
                out["gradient given"][:, j] += self.now[1][here, j] + self.now[2][here, j]
                sent.setdefault(("handed", _place(self.name, self.pp, c + 1)), []).append(j)
        for (what, _), senders in sent.items():
            passed = forward if what == "handed" else back
            out[what][:, senders[0]] += np.minimum(passed[:, senders].sum(1), most)

    def highest(self, early: bool, adamw: bool) -> list[Instants]:
        """What can be highest, by microbatches: of equal rows one, of which no other of its kind, which is action and piece, has
        as much of everything; and the step's two. Those with most come first.
        """
        labels, left = self._labels(early)
        between = np.concatenate([self.standing, self._by_piece(list(left.values()))], axis=2)
        kinds = labels * self.pieces.shape[2] + self.piece
        kinds += self.microbatches * (int(kinds.max()) + 1)
        counts = between.reshape(len(kinds), -1)
        counts = counts[:, (counts != counts[0]).any(0)].astype(np.int32)
        first = np.array(_first_of_each(np.column_stack([kinds.astype(np.int32), counts])))
        kept = first[undominated(counts[first], kinds[first])]
        columns = np.array([_V[name] for name in (*self.stands, *left)])
        found = []
        for one in dict.fromkeys(m for _, m in self.stages):
            here = kept[self.microbatches[kept] == one]
            some = [number for number, (_, m) in enumerate(self.stages) if m == one]
            actions = np.zeros((len(here), self.pieces.shape[2], len(VALUES)))
            actions[:, :, columns] = between[here]
            actions[np.arange(len(here)), self.piece[here], labels[here]] += 1
            found.append(self._with_step(actions, self.of[here], some, adamw))
        return found

    def _with_step(self, actions: Real, of: Any, stages: list[int], adamw: bool) -> Instants:
        """`of`: each action's stage. `stages`: all of them, of which those that hold the same count once."""
        ends = self.pieces[stages].sum(1)
        alike = _first_of_each(ends)
        step = np.zeros((2 * len(alike), *actions.shape[1:]))
        step[:, :, _V["states"]] = np.repeat(ends[alike], 2, axis=0)
        step[::2, :, _V["norm"]] = step[1::2, :, _V["step"]] = ends[alike]
        beside = np.full(len(actions) + len(step), float(_BEYOND))
        beside[len(actions) :: 2] += 4
        beside[len(actions) + 1 :: 2] += 16 if adamw else 4
        rows = np.concatenate([actions, step]).reshape(len(beside), -1)
        order = np.argsort(-(rows.sum(1) + beside), kind="stable")
        numbers = np.concatenate([of, np.repeat(np.array(stages)[alike], 2)])[order]
        narrow: Any = np.int16 if np.abs(rows).max(initial=0) < 2**15 else np.int32  # GPipe may hold more microbatches
        return Instants(rows[order].astype(narrow), beside[order], np.array([stage for stage, _ in self.stages])[numbers])

    def _labels(self, early: bool) -> tuple[Any, dict[str, Any]]:
        """Which of `ACTIONS` each is; and what a first or last one leaves for those that follow, by chunk."""
        n, at = np.arange(len(self.at)), self.at
        is_f, is_i, is_w = (self.kinds == _KINDS.index(kind) for kind in "FIW")
        owed, back = self.owed[n, at], self.back[n, at]
        behind = owed - is_w
        complete = ~is_f & ~is_i & (behind == 0)  # passes that leave nothing owed: B, and a last W
        before = self._before(self.mine & complete[:, None])[n, at]  # of these
        if early:
            special = np.where(is_w, complete & (before == 0), back == 0)
        else:
            special = (back + ~is_w == self.microbatches) & (~is_w | (behind == 0))
        special &= ~is_f
        over = np.where(is_i, owed > 0, is_w & (behind > 0))
        labels = np.where(special, _SPECIAL[self.kinds], np.where(over, _OVER[self.kinds], _PLAIN[self.kinds]))
        if early:
            labels[is_i & (labels == _V["I"]) & self._whole_before()] = _V["I after B"]
        # What each chunk's latest backward has left under way, until all of them are done and reduced.
        going = ~((self.back == self.microbatches[:, None]) & (self.owed == 0))
        latest = np.where(self.mine & ~is_f[:, None], n[:, None], -1)
        latest = np.maximum.accumulate(latest, axis=0)
        latest = np.concatenate([np.full((1, latest.shape[1]), -1), latest[:-1]])  # before the action at hand
        leaves = np.where(over & (before == 0), _V["I 1"], labels) if early else labels  # nothing more than a first I did
        of = np.where((latest >= self.first[:, None]) & going, leaves[latest], -1)
        left: dict[str, Any] = {}
        for name, what in _LEFT.items():
            if self.split or name[0] == "B":
                left[what] = left.get(what, 0) + (of == _V[name])
        if self.split and not early:  # a last I's reduction lasts beyond the W that follow
            there = (self._before(self.mine & (special & is_i)[:, None]) > 0) & going & (of != _V["I 1"])
            left["after I 1"] = left["after I 1"] + there
        return labels, left

    def _whole_before(self) -> Any:
        """Whether the chunk's latest backward before each action was a B."""
        n = np.arange(len(self.at))[:, None]
        latest = [
            np.maximum.accumulate(np.where(self.mine & np.isin(self.kinds, kinds)[:, None], n, -1)) for kinds in ([1], [2, 3])
        ]
        b, halves = (np.concatenate([np.full((1, of.shape[1]), -1), of[:-1]]) for of in latest)
        return ((b > halves) & (b >= self.first[:, None]))[n[:, 0], self.at]
