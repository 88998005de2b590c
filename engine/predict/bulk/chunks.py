"""What one chunk's passes do to memory, for very many layouts at once: the spans of a play, put together as ZeRO has it.

Of each action the highest point is told in rows: one for the spans before the layers between a chunk's first and last, and so on
(see `_Followed`). A row has a part of its own and parts for each of the layers between; so the same rows serve for any number of
layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk.plays import GATHERS, LETTERS, RELEASES, Form, Played, Structure, figures_of, plays
from engine.predict.symbolic import Size
from engine.predict.tape.buckets import Bucket, numbers
from engine.predict.tape.reducing import FRESH, MANY, Reductions, State, Stretch
from engine.predict.tape.sizes import WIDTHS
from engine.predict.tape.tape import Note

Real = NDArray[np.float64]

# The highest points of actions. "B 1": of a first one with ZeRO 2 and 3, of a last one with ZeRO 1; "I over": while W is owed;
# "I after B": else, where the pass before was not halved. With ZeRO 1 and 0 the latter three are like the others.
ACTIONS = ("F", "B", "B 1", "I", "I 1", "I over", "I after B", "W", "W 1", "W over")
# What there is between actions: of a pass in flight what it was given and what it keeps; messages; of passes whose W is owed the
# first and each further one; whose reduction over dp an action leaves under way; states; the optimizer's step twice; what is
# handed on and kept as well; and of it what is kept until W.
STANDS = (
    "given", "flight", "gradient given", "handed", "gradient handed", "owed", "owed more", "after B", "after I 1",
    "after I", "after I over", "after W", "after W over", "states", "norm", "step", "shared",
    "shared owed",
)  # fmt: skip
VALUES = (*ACTIONS, *STANDS)


@dataclass(frozen=True)
class Table:
    """`parts`: each row's own part and parts for each of the layers `t0` and `t1` between, (3, rows, n).

    Value i of `VALUES` is the highest of the rows from `starts[which[i]]` to the next start: some values are always the same.
    `inner`: rows that are there where `t0` or `t1` is not 0.
    """

    parts: Real
    starts: NDArray[np.int64]
    which: NDArray[np.int64]
    inner: tuple[NDArray[np.int64], NDArray[np.int64]]


class _Told:
    """A chunk's actions in the states that most find it in, and the reduction that each leaves under way."""

    def __init__(self, stretches: dict[str, list[Stretch]], reductions: Reductions) -> None:
        self._all, self.reductions = stretches, reductions
        self.stretches, self.pending = dict[str, list[Stretch]](), dict[str, int]()
        self._tell("F", "F", FRESH)
        if reductions.zero < 2:  # a reduction lasts until all are over
            left = 1 if reductions.zero else MANY
            for name, kind, state in (
                ("B", "B", State(left=MANY)), ("B 1", "B", State(left=left)), ("I", "I", State(left=MANY)),
                ("I 1", "I", State(left=left)), ("W", "W", State(owed=1, left=MANY)), ("W 1", "W", State(owed=1, left=left - 1)),
            ):  # fmt: skip
                self._tell(name, kind, state)
            self.stretches |= {"I over": self.stretches["I"], "I after B": self.stretches["I"], "W over": self.stretches["W"]}
            return
        first = self._tell("B 1", "B", FRESH)
        whole = self._tell("B", "B", State(first))
        self._tell("I after B", "I", State(whole))
        first = self._tell("I 1", "I", FRESH)
        before = self._tell("W 1", "W", State(first, owed=1))
        halved = self._tell("I", "I", State(before))
        self._tell("W", "W", State(halved, owed=1))
        over = self._tell("I over", "I", State(halved, owed=1))
        self._tell("W over", "W", State(over, owed=MANY))

    def _tell(self, name: str, kind: str, state: State) -> int:
        found, self.pending[name] = self.reductions.told(kind, self._all[kind], state)
        self.stretches[name] = found
        return self.pending[name]


class Chunks:
    """The chunks of one structure's layouts. `known`: `tp`, `B`, `dp` and `zero` of each, (n,)."""

    def __init__(self, structure: Structure, forms: list[Form], known: dict[str, Any]) -> None:
        self.structure, self.known = structure, known
        own = plays(structure)
        stages = np.unique(known["zero"] >= 2).tolist()
        self.played = {(form, early): own.of(form, early) for form in forms for early in stages}
        letters = {"tp": known["tp"], "B": known["B"]}
        shape = tuple(int(of.max()) + 1 for of in letters.values())
        keys = np.ravel_multi_index(tuple(letters.values()), shape)
        _, first, self._which = np.unique(keys, return_index=True, return_inverse=True)
        self._nets, self._tops = own.figures({name: of[first] for name, of in letters.items()}, len(first))
        self._buckets: dict[Any, tuple[Real, Real, Real]] = {}
        self._found: dict[Any, Any] = {}

    def bucket(self, bucket: Bucket) -> tuple[Real, Real, Real]:
        """Its numbers on a rank, in one replica's share, and how many parameters begin in the first share. (n,) each"""
        sizes = tuple(numbers([p.shape]) for p in sorted(bucket.parameters, key=lambda p: not p.whole))
        if sizes not in self._buckets:  # most are a layer's
            count = len(self.known["tp"])
            whole, share, *each = figures_of((bucket.size.value, bucket.share.value, *sizes), self.known, self._found, count)
            self._buckets[sizes] = whole, share, _pieces(share, each)
        return self._buckets[sizes]

    def table(self, form: Form, zero: int, here: slice) -> Table:
        """`VALUES` of the layouts `here`, which all have that ZeRO stage."""
        return _Maker(self, self.played[form, zero >= 2], zero, here).table()

    def spans(self, here: slice) -> tuple[Real, Real]:
        which = self._which[here]
        return self._nets[:, which], self._tops[:, which]


class _Maker:
    """The table of one form of chunk at one ZeRO stage."""

    def __init__(self, chunks: Chunks, played: Played, zero: int, here: slice) -> None:
        self.structure, self.played, self.zero = chunks.structure, played, zero
        self.known = {name: of[here] for name, of in chunks.known.items()}
        self.count = len(self.known["tp"])
        self.found: dict[Any, Any] = {}
        e, g = chunks.structure.sizes.e, chunks.structure.width
        self.reductions = Reductions(zero, e, g, played.weights, played.stretches["W"])
        self.nets, self.tops = chunks.spans(here)
        buckets = [chunks.bucket(bucket) for bucket, _ in played.weights]
        self.whole, self.share, self.pieces = ([of[here] for of in each] for each in zip(*buckets, strict=True))

    def figures(self, sizes: Any) -> list[Real]:
        return figures_of(sizes, self.known, self.found, self.count)

    def table(self) -> Table:
        told = _Told(self.stretches(), self.reductions)
        points, nets = self.follow(told)
        left = {name: self.under_way(n) for name, n in told.pending.items()}
        if self.zero < 2:
            left = dict.fromkeys(ACTIONS, np.zeros((3, self.count))) | {"I 1": nets["I 1"] - nets["I"]}
        else:  # a reduction is counted for as long as it lasts, not as what an action leaves
            for name, before in (("I", "W 1"), ("I over", "I"), ("I after B", "B")):
                nets[name] = nets[name] + left[before] - left[name]
        p = self.played
        messages = self.figures((p.given, p.handed, p.gradient_given, p.gradient_handed, p.shared, p.shared_owed))
        given, handed, gradient, back, shared, shared_owed = (self.once(size) for size in messages)
        around = nets["F"] - handed + given + gradient - back
        stands = {
            "given": given, "flight": nets["F"] - handed, "gradient given": gradient, "handed": handed, "gradient handed": back,
            "owed": around + nets["I"], "owed more": around + nets["I over"],
            **{f"after {name}": left[name] for name in ("B", "I 1", "I", "I over", "W", "W over")},
            **self.standing(), "shared": shared, "shared owed": shared_owed,
        }  # fmt: skip
        ends = np.stack([stands[name] for name in STANDS], axis=1)
        return Table(
            np.concatenate([points.parts, ends], axis=1),
            np.concatenate([points.starts, points.parts.shape[1] + np.arange(len(STANDS))]),
            np.concatenate([points.which, len(points.starts) + np.arange(len(STANDS))]),
            points.inner,
        )

    def once(self, size: Real) -> Real:
        return np.stack([size, np.zeros(self.count), np.zeros(self.count)])

    def under_way(self, bucket: int) -> Real:
        e = self.reductions.e.value
        return self.once((self.whole[bucket] + self.share[bucket]) * e if bucket >= 0 else np.zeros(self.count))

    def stretches(self) -> dict[str, list[Stretch]]:
        """With ZeRO 3 values are gathered and released, in blocks as large as gradients that wait; else nothing happens there."""
        which = {id(bucket): n for n, (bucket, _) in enumerate(self.played.weights)}

        def told(event: tuple[int, Any]) -> tuple[int, Any]:
            name = event[1].name if isinstance(event[1], Note) else ""
            if name not in (GATHERS, RELEASES):
                return event
            return (1 if name == GATHERS else -1), self.reductions.incoming[which[id(event[1].bucket)]]

        def happens(event: tuple[int, Any]) -> bool:
            return self.zero == 3 or event[0] != 0 or event[1].name not in (GATHERS, RELEASES)

        return {
            kind: [(layer, times, [told(event) for event in events if happens(event)]) for layer, times, events in stretches]
            for kind, stretches in self.played.stretches.items()
        }

    def follow(self, told: _Told) -> tuple[Table, dict[str, Real]]:
        """The highest points of actions, and what each action leaves, (3, n)."""
        rows, lines = _Rows(self.reductions, len(self.nets)), _Lines()
        which, found = list[int](), list[list[Stretch]]()
        for name in ACTIONS:
            stretches = told.stretches[name]
            same = [i for i, other in enumerate(found) if other is stretches]
            which += same or [len(found)]
            if same:
                continue
            found.append(stretches)
            lines.begin()
            for _, times, events in stretches:
                lines.add(_letter(times), [rows.of(sign, thing) for sign, thing in events if sign])
        e, width = self.reductions.e.value, self.reductions.width.value
        pairs = zip(self.whole, self.share, strict=True)
        blocks = np.stack([size for whole, share in pairs for size in (share * width, whole * width, whole * e)])
        nothing = np.zeros((1, self.count))
        nets = np.concatenate([nothing, self.nets, blocks, -blocks])
        tops = np.concatenate([nothing, self.tops, blocks, np.zeros_like(blocks)])
        return lines.followed(nets, tops, np.array(which))

    def standing(self) -> dict[str, Real]:
        """Parameters, gradients and the optimizer's, and what its step takes: as `memory.Stages.standing` and `step`."""
        workload, zero, width = self.structure.workload, self.zero, self.structure.width.value
        e, moments = WIDTHS[workload.precision], 8 if workload.optimizer == "adamw" else 4 if workload.momentum else 0
        states, norm, step = (np.zeros((3, self.count)) for _ in range(3))
        for (bucket, times), whole, share, pieces in zip(self.played.weights, self.whole, self.share, self.pieces, strict=True):
            part = _letter(times)
            states[part] += (share if zero == 3 else whole) * e + (share if zero >= 2 else whole) * width
            states[part] += share * (moments + (4 if e == 2 else 0)) + (4 if moments == 8 else 0)
            if width == 2:
                step[part] += share * 4
            if bucket.counted:
                norm[part] += (share * 4 if width == 2 else 0) + 8 * pieces
        return {"states": states, "norm": norm, "step": step}


def _pieces(share: Real, sizes: list[Real]) -> Any:
    """Of parameters that lie one behind the other, how many begin in the first share."""
    offset: Any = 0
    found: Any = 0
    for size in sizes:
        found, offset = found + (offset < share), offset + size
    return found


def _letter(times: Any) -> int:
    """0 for once, or 1 or 2 for the letter that says how often."""
    return 1 + LETTERS.index(times.atoms[0].name) if isinstance(times, Size) else 0


class _Rows:
    """Where in the figures a span is, or a block of ZeRO's: nothing, the spans, the blocks as they come and as they go."""

    def __init__(self, reductions: Reductions, spans: int) -> None:
        pairs = zip(reductions.under_way, reductions.incoming, strict=True)
        blocks = [block for under_way, one in pairs for block in (*(under_way or (None, None)), one)]
        self._first, self._count = 1 + spans, len(blocks)
        self._blocks = {id(block): i for i, block in enumerate(blocks)}

    def of(self, sign: int, thing: Any) -> int:
        if isinstance(thing, int):
            return 1 + thing
        return self._first + self._blocks[id(thing)] + (self._count if sign < 0 else 0)


class _Lines:
    """Actions, one behind the other, as runs of rows: what happens in a layer that stands for several is a run of its own."""

    def __init__(self) -> None:
        self.rows, self.starts, self.letters, self.actions = list[int](), list[int](), list[int](), list[int]()

    def begin(self) -> None:
        """Another action, before which nothing has happened."""
        self.actions.append(len(self.starts))
        self._run(0)
        self.rows.append(0)

    def _run(self, letter: int) -> None:
        self.starts.append(len(self.rows))
        self.letters.append(letter)

    def add(self, letter: int, rows: list[int]) -> None:
        if letter or self.letters[-1]:
            self._run(letter)
            self.rows.append(0)
        self.rows += rows

    def followed(self, nets: Real, tops: Real, which: NDArray[np.int64]) -> tuple[Table, dict[str, Real]]:
        """The highest points of actions, and what each leaves. `which`: of `ACTIONS`, which of those begun each is.

        Of a run that is there `t` times the highest point is in the first or in the last: t − 1 times what it leaves higher.
        Points are summed up for a run that is there once; so its own part is that, less what it leaves.
        """
        reached = nets[self.rows]
        after = reached.cumsum(0)
        points = np.maximum.reduceat(after - reached + tops[self.rows], self.starts, axis=0)
        ends = after[np.append(self.starts[1:], len(self.rows)) - 1]
        before = np.concatenate([np.zeros((1, ends.shape[1])), ends[:-1]])
        actions = list(zip(self.actions, [*self.actions[1:], len(self.starts)], strict=True))
        runs, firsts, inner, starts = list[int](), list[int](), list[int](), list[int]()
        passed: list[tuple[int, int, int]] = []  # row, letter, and a run of that letter that lies behind the row's point
        ended: list[tuple[int, int, int]] = []  # the same of what each action leaves
        for number, (first, stop) in enumerate(actions):
            starts.append(len(runs))
            behind = list[tuple[int, int]]()
            for run in range(first, stop):
                for again in (False, True)[: 1 + (self.letters[run] > 0)]:
                    behind += [(self.letters[run], run)] if again else []
                    passed += [(len(runs), *one) for one in behind]
                    runs.append(run)
                    firsts.append(first)
                    inner.append(self.letters[run])
            ended += [(number, *one) for one in behind]
        last = [stop - 1 for _, stop in actions]
        passed += [(len(runs) + number, *one) for number, *one in ended]  # type: ignore[misc]
        parts = np.zeros((3, len(runs) + len(last), ends.shape[1]))
        parts[0] = np.concatenate([points[runs] - before[firsts], ends[last] - before[self.actions]])
        for letter in {letter for _, letter, _ in passed}:
            chosen = np.zeros((parts.shape[1], len(ends)))
            chosen[tuple(np.array([(row, run) for row, which, run in passed if which == letter]).T)] = 1
            parts[letter] = chosen @ (ends - before)
            parts[0] -= parts[letter]
        of = np.array(inner)
        leaves = dict(zip(ACTIONS, parts[:, len(runs) + which].transpose(1, 0, 2), strict=True))
        inside = np.flatnonzero(of == 1), np.flatnonzero(of == 2)
        return Table(parts[:, : len(runs)], np.array(starts), which, inside), leaves
