"""What one chunk's passes do to memory, for very many layouts at once: played once with letters for sizes, then read off.

Layouts that differ in numbers alone share a play. Of each ledger those points are kept that can be its highest, whatever the
numbers: none has at least as much of every product of sizes. A point is a row of coefficients, for the chunk's ends and for each
of its inner layers: points · sizes is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.symbolic import Atoms, Size, later, letter, values
from engine.predict.tape.buckets import Bucket, Buckets, numbers
from engine.predict.tape.chunk import Sample, Shape
from engine.predict.tape.parts import Kit
from engine.predict.tape.passes import ChunkPasses, Counts, Passes, size_of
from engine.predict.tape.reducing import FRESH, MANY, State, Stretch
from engine.predict.tape.sizes import WIDTHS, Sizes
from engine.predict.tape.tape import Factors, Record, Tape
from engine.predict.terms import Factor
from engine.spec import ModelSpec, Recompute, WorkloadSpec

Real = NDArray[np.float64]

# The highest points of actions. "B 1": of a first one with ZeRO 2 and 3, of a last one with ZeRO 1; "I over": while W is owed.
# With ZeRO 1 and 0 the two that are "over" are like the others.
ACTIONS = ("F", "B", "B 1", "I", "I 1", "I over", "W", "W 1", "W over")
# What there is between actions: of a pass in flight what it was given and what it keeps; messages; of passes whose W is owed the
# first and each further one; whose reduction over dp an action leaves under way; states; the optimizer's step twice; what is
# handed on and kept as well.
STANDS = (
    "given", "flight", "gradient given", "handed", "gradient handed", "owed", "owed more", "after B", "after I 1",
    "after I", "after I over", "after W", "after W over", "states", "norm", "step", "shared",
)  # fmt: skip
VALUES = (*ACTIONS, *STANDS)
_GATHERED = "gathered weights of a layer"
_SMALL = 200_000  # multiplications
_LETTERS = ("t0", "t1")


def multiplied(one: Real, other: Real) -> Real:
    """(a, b) · (b, c), some columns at a time: products so small are not shared out among threads, which would wait for work."""
    at_once = max(1, _SMALL // one.size)
    if at_once >= other.shape[1]:
        return one @ other
    return np.concatenate([one @ other[:, i : i + at_once] for i in range(0, other.shape[1], at_once)], axis=1)


class Form(NamedTuple):
    """Which part of the model a chunk is. Of layers: none, one, or 2 for more, which are two and `t0` or `t1` between."""

    first: bool
    last: bool
    layers: int  # of an encoder, or of a model that is a decoder or an encoder alone
    ends: bool  # whether they are an encoder's last
    decoders: int

    @property
    def shape(self) -> Shape:
        def samples(count: int, decodes: bool, ends: bool, between: Any) -> list[Sample]:
            times = [1] * count if count < 2 else [1, between, 1]
            return [Sample(decodes, ends and i == len(times) - 1, n) for i, n in enumerate(times)]

        before = samples(self.layers, False, self.ends, letter("t0"))
        return Shape(self.first, self.last, (*before, *samples(self.decoders, True, self.last, letter("t1"))))


class Structure(NamedTuple):
    """All that changes which blocks there are."""

    model: ModelSpec
    workload: WorkloadSpec
    recompute: Recompute
    sequence: bool
    flags: tuple[bool, bool, bool, bool]  # see `Sizes.of`
    zero: int


@dataclass(frozen=True)
class Table:
    """`rows` of coefficients of `products`: first the ends' own, then of each layer `t0` and of each `t1`; (3 · rows, products).

    Value i of `VALUES` is the highest of the rows from `starts[i]` on. `inner`: rows that are there where `t0` or `t1` is not 0.
    """

    products: tuple[Atoms, ...]
    rows: Real
    starts: NDArray[np.int64]
    inner: tuple[NDArray[np.int64], NDArray[np.int64]]

    def sizes(self, known: dict[str, Any]) -> Real:
        """Each row's own part and parts for each of the layers between, (3, rows, n)."""
        found = multiplied(self.rows, values(list(self.products), known))
        return found.reshape(3, -1, found.shape[1])


@cache
def _played(structure: Structure, form: Form) -> tuple[Passes, list[tuple[Bucket, Any]], Any]:
    """`structure.zero` is 1 or 3: 0 and 2 are these without some blocks."""
    workload = structure.workload
    sizes = Sizes.of(
        structure.model, workload, letter("tp") if structure.flags[1] else 1, letter("B"), structure.sequence,
        structure.recompute, structure.flags,
    )  # fmt: skip
    width = Factor("g", WIDTHS[workload.accumulate if workload.precision == "bf16" else "fp32"])
    dp: Any = letter("dp")
    tape = Tape()
    buckets = Buckets(tape, sizes, Factor("dp", dp), structure.zero, True, width.value != sizes.e.value, width)
    player = ChunkPasses(Kit(tape, sizes, buckets), form.shape, frozenset("BIW"))
    return player.play(), player.chunk.weights(), width


class _Events(NamedTuple):
    """A part of a ledger: what its blocks are multiplied with (0 for once, 1 or 2 for `t0` or `t1`), and of each block its
    product's column, its signed coefficient, and whether it is gathered weights.
    """

    which: int
    columns: NDArray[np.int64]
    coefficients: Real
    gathered: NDArray[np.bool_]


class _Rows:
    """Coefficients by product and by what they are multiplied with."""

    def __init__(self, most: int) -> None:
        self.columns: dict[Atoms, int] = {}
        self.most = most
        self._known: dict[int, tuple[int, int]] = {}
        self._found: dict[Factors, tuple[int, int]] = {}

    def column(self, size: Any) -> tuple[int, int]:
        """Which product it is and how often."""
        atoms, coefficient = (size.atoms, size.coefficient) if isinstance(size, Size) else ((), int(size))
        return self.columns.setdefault(atoms, len(self.columns)), coefficient

    def row(self, amounts: Iterable[tuple[Any, Any]]) -> Real:
        """The sum of times × sizes. (3, products)"""
        out = np.zeros((3, self.most))
        for times, size in amounts:
            column, coefficient = self.column(size)
            which, many = _which(times)
            out[which, column] += many * coefficient
        return out

    def counts(self, counts: Counts) -> Real:
        return self.row((count, size_of(key.factors)) for key, count in counts.items())

    def read(self, stretches: list[Stretch]) -> list[_Events]:
        """What happens in an action, as arrays. Most blocks are in several actions."""
        found = []
        for _, times, events in stretches:
            blocks = [(sign, record) for sign, record in events if sign]
            if blocks:
                columns, sizes = np.array([self._known.get(id(r)) or self._look_up(r) for _, r in blocks], np.int64).T
                signs = np.array([sign for sign, _ in blocks])
                gathered = np.array([record.name == _GATHERED for _, record in blocks])
                found.append(_Events(_which(times)[0], columns, signs * sizes.astype(float), gathered))
        return found

    def _look_up(self, record: Record) -> tuple[int, int]:
        if record.factors not in self._found:
            self._found[record.factors] = self.column(size_of(record.factors))
        self._known[id(record)] = self._found[record.factors]
        return self._found[record.factors]

    def follow(self, parts: list[_Events], all_of_it: bool) -> tuple[Real, tuple[Any, Any]]:
        """What a ledger leaves, (3, products), and its points, (points, 3, products): local maxima.

        Of each point also whether it is in an inner layer: 0 if not, else 1 or 2. Unless `all_of_it`, nothing is gathered.
        """
        base = np.zeros((3, self.most))
        rows, inner = [np.zeros((1, 3, self.most))], [np.zeros(1, np.int64)]
        for which, *blocks, gathered in parts:
            there = ~gathered | all_of_it
            columns, coefficients = (column[there] for column in blocks)
            if not len(columns):
                continue
            reached = np.zeros((len(columns), self.most))
            reached[np.arange(len(columns)), columns] = coefficients
            reached = reached.cumsum(0)
            tops = reached[(coefficients > 0) & np.append(coefficients[1:] < 0, True)]
            if len(tops):
                here = np.repeat(base[None], len(tops), 0)
                here[:, 0] += tops
                rows.append(here)
                if which:  # the same when the layer comes for the last time
                    again = here.copy()
                    again[:, 0] -= reached[-1]
                    again[:, which] += reached[-1]
                    rows.append(again)
                inner.append(np.full(sum(len(r) for r in rows) - sum(len(i) for i in inner), which))
            base[which] += reached[-1]
        return base, (np.concatenate(rows), np.concatenate(inner))


def _which(times: Any) -> tuple[int, int]:
    """0 and the number, or 1 or 2 for the letter that it is, and how often."""
    if isinstance(times, Size):
        return 1 + _LETTERS.index(times.atoms[0].name), times.coefficient
    return 0, times


def _kept(rows: Any, inner: Any) -> tuple[Any, Any]:
    """The points that can be highest: no other has at least as much of everything, wherever they are."""
    flat = np.concatenate([rows.reshape(len(rows), -1), (inner != 1)[:, None], (inner != 2)[:, None]], axis=1)
    kept = undominated(flat[:, (flat != flat[0]).any(0)])
    return rows[kept], inner[kept]


def undominated(rows: Any) -> Any:
    """Numbers of the rows that are not, in every column, at most as large as another row."""
    left, kept = np.argsort(-rows.sum(1), kind="stable"), []
    while len(left):
        best = left[0]
        kept.append(best)
        left = left[(rows[left] > rows[best]).any(1)]
    return np.array(kept)


class _Told:
    """A chunk's actions in the states that most find it in, and the reduction that each leaves under way."""

    def __init__(self, passes: Passes, zero: int) -> None:
        self.passes, self.stretches, self.pending = passes, dict[str, list[Stretch]](), dict[str, int]()
        self._tell("F", "F", FRESH)
        if zero < 2:  # a reduction lasts until all are over
            left = 1 if zero else MANY
            for name, kind, state in (
                ("B", "B", State(left=MANY)), ("B 1", "B", State(left=left)), ("I", "I", State(left=MANY)),
                ("I 1", "I", State(left=left)), ("W", "W", State(owed=1, left=MANY)), ("W 1", "W", State(owed=1, left=left - 1)),
            ):  # fmt: skip
                self._tell(name, kind, state)
            self.stretches |= {"I over": self.stretches["I"], "W over": self.stretches["W"]}
            return
        first = self._tell("B 1", "B", FRESH)
        self._tell("B", "B", State(first))
        first = self._tell("I 1", "I", FRESH)
        before = self._tell("W 1", "W", State(first, owed=1))
        halved = self._tell("I", "I", State(before))
        self._tell("W", "W", State(halved, owed=1))
        over = self._tell("I over", "I", State(halved, owed=1))
        self._tell("W over", "W", State(over, owed=MANY))

    def _tell(self, name: str, kind: str, state: State) -> int:
        found, self.pending[name] = self.passes.reductions.told(kind, self.passes.segments.get(kind, []), state)
        self.stretches[name] = found
        return self.pending[name]


@cache
def table(structure: Structure, form: Form) -> Table:
    """What the chunk's passes do, by `VALUES`."""
    zero = structure.zero
    passes, weights, width = _played(structure._replace(zero=3 if zero >= 2 else 1), form)
    made, told = _Rows(128), _Told(passes, zero)
    followed = {name: made.follow(made.read(found), zero != 2) for name, found in told.stretches.items()}
    nets = {name: net for name, (net, _) in followed.items()}
    under_way = {name: made.row((1, size_of(r.factors)) for r in passes.reductions.before(n)) for name, n in told.pending.items()}
    if zero < 2:
        under_way = {name: np.zeros_like(nets["F"]) for name in ACTIONS}
        under_way["I 1"] = nets["I 1"] - nets["I"]
    else:  # a reduction is counted for as long as it lasts, not as what an action leaves
        for name, before in (("I", "W 1"), ("I over", "I")):
            nets[name] = nets[name] + under_way[before] - under_way[name]
    given, handed, back = made.counts(passes.given), made.counts(passes.handed), made.counts(passes.gradient_handed["I"])
    gradient = made.counts(passes.gradient_given["I"])
    around = nets["F"] - handed + given + gradient - back
    stands = {
        "given": given, "flight": nets["F"] - handed, "gradient given": gradient, "handed": handed, "gradient handed": back,
        "owed": around + nets["I"], "owed more": around + nets["I over"],
        **{f"after {name}": under_way[name] for name in ("B", "I 1", "I", "I over", "W", "W over")},
        **_standing(made, structure, weights, width),
        "shared": made.row([(len(passes.shared), size_of(key.factors)) for key in [*passes.given, *passes.handed][:1]]),
    }  # fmt: skip
    groups = [_kept(*followed[a][1]) for a in ACTIONS] + [(stands[name][None], np.zeros(1, np.int64)) for name in STANDS]
    inner = np.concatenate([i for _, i in groups])
    rows = np.concatenate([rows for rows, _ in groups])[:, :, : len(made.columns)]
    return Table(
        products=tuple(made.columns),
        rows=np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(-1, len(made.columns)),
        starts=np.cumsum([0, *(len(rows) for rows, _ in groups)])[:-1],
        inner=(np.flatnonzero(inner == 1), np.flatnonzero(inner == 2)),
    )


def _standing(made: _Rows, structure: Structure, weights: list[tuple[Bucket, Any]], width: Factor) -> dict[str, Real]:
    """Parameters, gradients and the optimizer's, and what its step takes: as `memory.Stages.standing` and `step`."""
    workload, zero = structure.workload, structure.zero
    e, moments = WIDTHS[workload.precision], 8 if workload.optimizer == "adamw" else 4 if workload.momentum else 0
    states: list[tuple[Any, Any]] = []
    norm: list[tuple[Any, Any]] = []
    step: list[tuple[Any, Any]] = []
    for bucket, times in weights:
        whole, share = bucket.size.value, bucket.share.value
        states += [(times, (share if zero == 3 else whole) * e), (times, (share if zero >= 2 else whole) * width.value)]
        states += [(times, share * (moments + (4 if e == 2 else 0))), (times, 4 if moments == 8 else 0)]
        if width.value == 2:
            step.append((times, share * 4))
        if bucket.counted:
            norm += [(times, share * 4)] if width.value == 2 else []
            sizes = [numbers([p.shape]) for p in sorted(bucket.parameters, key=lambda p: not p.whole)]
            norm.append((times, 8 * later(_pieces, share, *sizes)))
    return {"states": made.row(states), "norm": made.row(norm), "step": made.row(step)}


def _pieces(share: Any, *sizes: Any) -> Any:
    """Of parameters that lie one behind the other, how many begin in the first share."""
    offset, found = 0, 0
    for size in sizes:
        found, offset = found + (offset < share), offset + size
    return found
