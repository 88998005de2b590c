"""Which instants of a stage's step can be its highest, as rows of whole numbers: how often there is what of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk.chunks.VALUES` is the memory at the highest point of one action.
The rules are those of `engine.predict.tape.walk`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.chunks import VALUES, Form, undominated
from engine.schedule import Action
from engine.schedule.orders import messages_held, stage_order
from engine.spec import V_SHAPED, ScheduleName

Real = NDArray[np.float64]
_V = {name: i for i, name in enumerate(VALUES)}
_LEFT = {
    name: f"after {name.replace('B 1', 'B').replace('W 1', 'W')}"
    for name in ("B", "B 1", "I", "I 1", "I over", "W", "W 1", "W over")
}
_BEYOND = 8  # the sum of losses and of squares, four bytes each


class Piece(NamedTuple):
    """A form of chunk, and how many layers there are between its first and last of each kind."""

    form: Form
    between: tuple[int, int]


@cache
def pieces(layers: int, encoders: int, chunks: int) -> tuple[tuple[Piece, ...], tuple[int, ...]]:
    """Of layers split as evenly as can be into so many chunks: the pieces that there are, and which of them each chunk is.

    `encoders`: how many of the layers are an encoder's; 0 where there is no decoder that attends to one.
    """
    each, rest = divmod(layers, chunks)
    found: dict[Piece, int] = {}
    which, start = [], 0
    for c in range(chunks):
        stop = start + each + (c < rest)
        before = min(stop, encoders or layers) - min(start, encoders or layers)
        behind = stop - start - before
        form = Form(c == 0, c == chunks - 1, min(before, 2), bool(encoders) and before > 0 and stop >= encoders, min(behind, 2))
        piece = Piece(form, (max(0, before - 2), max(0, behind - 2)))
        which.append(found.setdefault(piece, len(found)))
        start = stop
    return tuple(found), tuple(which)


class Instants(NamedTuple):
    """Rows, (k, pieces × values), bytes beside, (k,), and the stage of each, (k,)."""

    rows: Real
    beside: Real
    stages: NDArray[np.int64]


@cache
def instants(
    name: ScheduleName, pp: int, microbatches: int, chunks: int, layers: int, encoders: int, adamw: bool
) -> tuple[Instants, Instants]:
    """Of all stages that can be the fullest, first where a chunk's last backward differs from the others, then its first.

    The one is so with ZeRO 1, the other with ZeRO 2 and 3.
    """
    found, which = pieces(layers, encoders, pp * chunks)
    rows: tuple[list[Any], list[Any]] = ([], [])
    stages = _stages(name, pp, which, bool(encoders))
    for stage in stages:
        of_stage = _Stage(name, stage, pp, microbatches, chunks, which, len(found))
        for early in (False, True):
            rows[early].append(of_stage.rows(early, adamw))
    both = []
    for of_stages in rows:
        whole = np.concatenate(of_stages)
        kept = undominated(whole[:, (whole != whole[0]).any(0)])
        of = np.repeat(stages, [len(r) for r in of_stages])
        both.append(Instants(np.ascontiguousarray(whole[kept, :-1]), whole[kept, -1], of[kept]))
    return both[0], both[1]


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


def _order(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int) -> tuple[list[Action], Any]:
    """A stage's actions, and for how many alike in a row each stands: GPipe has as many in flight as there are microbatches."""
    if name != "gpipe" or microbatches < 5:
        order = stage_order(name, stage, pp, microbatches, chunks)
        return order, np.ones(len(order), np.int64)
    order = stage_order(name, stage, pp, 4, chunks)
    return order, np.array([microbatches - 3, 1, 1, 1, 1, 1, microbatches - 3, 1])


class _Stage:
    """One stage's actions as arrays, and what stands before each of them: (actions, chunks of the stage)."""

    def __init__(
        self, name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int, which: tuple[int, ...], count: int
    ) -> None:
        self.name, self.pp, self.microbatches, self.count = name, pp, microbatches, count
        self.held = [c for c in range(pp * chunks) if _place(name, pp, c) == stage]
        self.pieces = np.eye(count)[[which[c] for c in self.held]]  # (chunks, pieces)
        place = {c: i for i, c in enumerate(self.held)}
        order, times = _order(name, stage, pp, microbatches, chunks)
        self.kinds = np.array([a.kind for a in order])
        self.at = np.array([place[a.chunk] for a in order])
        mine = np.eye(len(self.held), dtype=np.int64)[self.at] * times[:, None]
        self.now = {kind: mine * (self.kinds == kind)[:, None] for kind in "FBIW"}
        self.before = {kind: now.cumsum(0) - now for kind, now in self.now.items()}
        self.back = self.before["B"] + self.before["I"]
        self.owed = self.before["I"] - self.before["W"]
        self.flying = self.before["F"] - self.back
        self.last = pp * chunks - 1

    def rows(self, early: bool, adamw: bool) -> Real:
        count, n = self.count, len(self.at)
        out = np.zeros((n + 2, count, len(VALUES)))
        out[:, :, _V["states"]] = self.pieces.sum(0)
        between = out[:n]
        flying = self.flying @ self.pieces
        between[:, :, _V["flight"]] += flying
        between[:, :, _V["given"]] += flying
        between[:, :, _V["owed"]] += (self.owed > 0) @ self.pieces
        between[:, :, _V["owed more"]] += np.maximum(0, self.owed - 1) @ self.pieces
        self._messages(between)
        between[np.arange(n), np.argmax(self.pieces[self.at], 1), self._labels(between, early)] += 1
        out[n, :, _V["norm"]] = out[n + 1, :, _V["step"]] = self.pieces.sum(0)
        beside = np.full((n + 2, 1), _BEYOND)
        beside[n:, 0] += [4, 16 if adamw else 4]
        whole = np.concatenate([out.reshape(n + 2, -1), beside], axis=1)
        return whole[list({row.tobytes(): i for i, row in enumerate(whole)}.values())]

    def _labels(self, out: Any, early: bool) -> Any:
        """Which of `ACTIONS` each is; and what a first or last one leaves is put down for those that follow."""
        n, at, kinds = np.arange(len(self.at)), self.at, self.kinds
        owed, back = self.owed[n, at], self.back[n, at]
        behind = owed - (kinds == "W")
        ended = (kinds == "W") & (behind == 0)
        if early:
            finished = np.eye(len(self.held), dtype=np.int64)[at] * ended[:, None]
            special = np.where(kinds == "W", ended & ((finished.cumsum(0) - finished)[n, at] == 0), back == 0)
        else:
            special = (back + (kinds != "W") == self.microbatches) & ((kinds != "W") | (behind == 0))
        special &= kinds != "F"
        over = np.where(kinds == "I", owed > 0, (kinds == "W") & (behind > 0))
        labels = np.array([_V[str(kind)] for kind in kinds])
        labels = np.where(over, np.where(kinds == "I", _V["I over"], _V["W over"]), labels)
        for kind in "BIW":
            labels[special & (kinds == kind)] = _V[f"{kind} 1"]
        # What each chunk's latest backward has left under way, until all of them are done and reduced.
        going = ~((self.back == self.microbatches) & (self.owed == 0))
        latest = np.where(np.eye(len(self.held), dtype=np.bool_)[at] & (kinds != "F")[:, None], n[:, None], -1)
        latest = np.maximum.accumulate(latest, axis=0)
        latest = np.concatenate([np.full((1, len(self.held)), -1), latest[:-1]])  # before the action at hand
        of = np.where((latest >= 0) & going, labels[latest], -1)
        for name, left in _LEFT.items():
            out[:, :, _V[left]] += (of == _V[name]) @ self.pieces
        if not early:  # a last I's reduction lasts beyond the W that follow
            mine = np.eye(len(self.held), dtype=np.int64)[at] * (special & (kinds == "I"))[:, None]
            there = (mine.cumsum(0) - mine > 0) & going & (of != _V["I 1"])
            out[:, :, _V["after I 1"]] += there @ self.pieces
        return labels

    def _messages(self, out: Any) -> None:
        most = messages_held(self.name, self.pp, self.microbatches)
        sent: dict[tuple[str, int], list[int]] = {}
        for j, c in enumerate(self.held):
            place = self.pieces[j]
            if c > 0 and c - 1 in self.held:
                before = self.held.index(c - 1)
                waiting = self.before["F"][:, before] - self.before["F"][:, j]
                out[:, :, _V["given"]] += np.outer(waiting, place)
                out[:, :, _V["shared"]] -= np.outer(waiting + self.flying[:, j], self.pieces[before])
            elif c > 0:
                out[:, :, _V["given"]] += np.outer(self.now["F"][:, j], place)
                sent.setdefault(("gradient handed", _place(self.name, self.pp, c - 1)), []).append(j)
            if c < self.last and c + 1 in self.held:
                waiting = self.back[:, self.held.index(c + 1)] - self.back[:, j]
                out[:, :, _V["gradient given"]] += np.outer(waiting, place)
            elif c < self.last:
                out[:, :, _V["gradient given"]] += np.outer(self.now["B"][:, j] + self.now["I"][:, j], place)
                sent.setdefault(("handed", _place(self.name, self.pp, c + 1)), []).append(j)
        for (what, _), senders in sent.items():
            passed = self.before["F"] if what == "handed" else self.back
            out[:, :, _V[what]] += np.outer(np.minimum(passed[:, senders].sum(1), most), self.pieces[senders[0]])
