"""Which instants of a stage's step can be its highest, as rows of whole numbers: how often there is what of each form of chunk.

A row times what each form of chunk has of `engine.predict.bulk_chunks.VALUES` is the memory at the highest point of one action.
The rules are those of `engine.predict.walk`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk_chunks import ACTIONS, VALUES, Form
from engine.schedule.orders import messages_held, stage_order
from engine.spec import V_SHAPED, ScheduleName

Real = NDArray[np.float64]
_V = {name: i for i, name in enumerate(VALUES)}
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


@cache
def instants(
    name: ScheduleName, pp: int, microbatches: int, chunks: int, layers: int, encoders: int, early: bool, adamw: bool
) -> tuple[Real, Real, NDArray[np.int64]]:
    """Rows (k, pieces × values), bytes beside (k,) and the stage of each (k,), of all stages that can be the fullest.

    `early`: with ZeRO 2 and 3 a chunk's first backward differs from the others, otherwise its last.
    """
    found, which = pieces(layers, encoders, pp * chunks)
    rows, stages = [], []
    for stage in _stages(name, pp, chunks, which):
        of_stage = _Stage(name, stage, pp, microbatches, chunks, which, len(found)).rows(early, adamw)
        rows.append(of_stage)
        stages += [stage] * len(of_stage)
    whole = np.concatenate(rows)
    kept = _undominated(whole)
    return np.ascontiguousarray(whole[kept, :-1]), whole[kept, -1], np.array(stages)[kept]


def _stages(name: ScheduleName, pp: int, chunks: int, which: tuple[int, ...]) -> list[int]:
    """Those that can be the fullest: the first two and the last two, and where another piece of the model begins or ends."""
    if pp <= 6:
        return list(range(pp))
    some = {0, 1, pp - 2, pp - 1}
    if name in (*V_SHAPED, "zb-h1"):
        some |= {2, pp // 2 - 1, pp // 2, pp // 2 + 1}
    for c in range(1, len(which)):
        if which[c] != which[c - 1]:
            some |= {_place(name, pp, c), _place(name, pp, c - 1)}
    return sorted(some)


def _place(name: ScheduleName, pp: int, chunk: int) -> int:
    return 2 * pp - 1 - chunk if name in V_SHAPED and chunk >= pp else chunk % pp


def _undominated(rows: Any) -> Any:
    """Numbers of the rows that can be highest: no other has at least as much of everything."""
    left, kept = np.argsort(-rows.sum(1), kind="stable"), []
    while len(left):
        best = left[0]
        kept.append(best)
        left = left[(rows[left] > rows[best]).any(1)]
    return np.array(kept)


class _Stage:
    """One stage's actions as arrays, and what stands before each of them: (actions, chunks of the stage)."""

    def __init__(
        self, name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int, which: tuple[int, ...], count: int
    ) -> None:
        self.name, self.pp, self.microbatches, self.count = name, pp, microbatches, count
        self.held = [c for c in range(pp * chunks) if _place(name, pp, c) == stage]
        self.pieces = np.eye(count)[[which[c] for c in self.held]]  # (chunks, pieces)
        place = {c: i for i, c in enumerate(self.held)}
        order = stage_order(name, stage, pp, microbatches, chunks)
        self.kinds = np.array([a.kind for a in order])
        self.at = np.array([place[a.chunk] for a in order])
        mine = np.eye(len(self.held), dtype=np.int64)[self.at]
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
        return np.unique(np.concatenate([out.reshape(n + 2, -1), beside], axis=1), axis=0)

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
            mine = special & (kinds == kind)
            labels[mine] = _V[f"{kind} 1"]
            left = np.eye(len(self.held), dtype=np.int64)[at] * mine[:, None]
            done = self.back == self.microbatches  # then all is reduced
            there = (left.cumsum(0) - left > 0) & ~(done & (self.owed == 0))
            out[:, :, _V[f"{kind} left"]] += there @ self.pieces
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


assert set(ACTIONS) <= set(VALUES)
