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

from engine.predict.buckets import REDUCING, Bucket, Buckets, numbers
from engine.predict.chunk import Sample, Shape
from engine.predict.parts import Kit
from engine.predict.passes import ChunkPasses, Counts, Ledger, Passes, size_of
from engine.predict.sizes import WIDTHS, Sizes
from engine.predict.symbolic import Atoms, Size, later, letter, values
from engine.predict.tape import Tape
from engine.predict.terms import Factor
from engine.spec import ModelSpec, Recompute, WorkloadSpec

Real = NDArray[np.float64]

# The highest points of actions. "B 1": of a first one with ZeRO 2 and 3, of a last one with ZeRO 1; "I over": while W is owed.
ACTIONS = ("F", "B", "B 1", "I", "I 1", "I over", "W", "W 1", "W over")
# What there is between actions: of a pass in flight what it was given and what it keeps; messages; of passes whose W is owed the
# first and each further one; what a first or last action leaves beside; states; the optimizer's step twice; what is handed on
# and kept as well.
STANDS = (
    "given", "flight", "gradient given", "handed", "gradient handed", "owed", "owed more", "B left", "I left", "W left", "states",
    "norm", "step", "shared",
)  # fmt: skip
VALUES = (*ACTIONS, *STANDS)
_GATHERED = "gathered weights of a layer"
_LETTERS = ("t0", "t1")


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
    """`rows` of coefficients of `products`: the ends' own, of each layer `t0` and of each `t1`; (rows, 3, products).

    Value i of `VALUES` is the highest of the rows from `starts[i]` on. `inner`: rows that are there where `t0` or `t1` is not 0.
    """

    products: tuple[Atoms, ...]
    rows: Real
    starts: NDArray[np.int64]
    inner: tuple[NDArray[np.int64], NDArray[np.int64]]

    def sizes(self, known: dict[str, Any]) -> Real:
        """Each row's own part and parts for each of the layers between, (3, rows, n)."""
        found = values(list(self.products), known)
        rows = self.rows.transpose(1, 0, 2)
        return rows @ found


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
    player = ChunkPasses(Kit(tape, sizes, buckets), form.shape, frozenset("BIW"), 2)
    return player.play(), player.chunk.weights(), width


class _Rows:
    """Coefficients by product and by what they are multiplied with."""

    def __init__(self) -> None:
        self.columns: dict[Atoms, int] = {}

    def column(self, size: Any) -> tuple[int, int]:
        """Which product it is and how often."""
        atoms, coefficient = (size.atoms, size.coefficient) if isinstance(size, Size) else ((), int(size))
        return self.columns.setdefault(atoms, len(self.columns)), coefficient

    def row(self, amounts: Iterable[tuple[Any, Any]]) -> Real:
        """The sum of times × sizes."""
        out = np.zeros((3, 64))
        for times, size in amounts:
            column, coefficient = self.column(size)
            which, many = _which(times)
            out[which, column] += many * coefficient
        return out

    def counts(self, counts: Counts) -> Real:
        return self.row((count, size_of(key.factors)) for key, count in counts.items())

    def net(self, parts: _Parts) -> Real:
        return self.row((times, sign * size) for times, events in parts for sign, size in events)

    def points(self, parts: _Parts) -> tuple[Any, Any]:
        """Local maxima of a ledger, and of each whether it is in an inner layer: 0 if not, else 1 or 2."""
        base, rows, inner = np.zeros((3, 64)), [np.zeros((3, 64))], [0]
        for times, events in parts:
            which, _ = _which(times)
            one, tops = np.zeros(64), []
            for i, (sign, size) in enumerate(events):
                column, coefficient = self.column(size)
                one[column] += sign * coefficient
                if sign > 0 and (i + 1 == len(events) or events[i + 1][0] < 0):
                    tops.append(one.copy())
            for top in tops:
                rows.append(base.copy())
                rows[-1][0] += top
                inner.append(which)
                if which:  # the same when the layer comes for the last time
                    rows.append(rows[-1].copy())
                    rows[-1][0] -= one
                    rows[-1][which] += one
                    inner.append(which)
            base[which] += one
        return np.stack(rows), np.array(inner)


_Parts = list[tuple[Any, list[tuple[int, Any]]]]


def _which(times: Any) -> tuple[int, int]:
    """0 and the number, or 1 or 2 for the letter that it is, and how often."""
    if isinstance(times, Size):
        return 1 + _LETTERS.index(times.atoms[0].name), times.coefficient
    return 0, times


def _undominated(rows: Any, inner: Any) -> Any:
    """Numbers of the rows that can be highest: no other has at least as much of everything, wherever they are."""
    flat = np.concatenate([rows.reshape(len(rows), -1), (inner != 1)[:, None], (inner != 2)[:, None]], axis=1)
    left, kept = np.argsort(-flat.sum(1), kind="stable"), []
    while len(left):
        best = left[0]
        kept.append(best)
        left = left[(flat[left] > flat[best]).any(1)]
    return np.array(kept)


@cache
def table(structure: Structure, form: Form) -> Table:
    """What the chunk's passes do, by `VALUES`."""
    zero = structure.zero
    passes, weights, width = _played(structure._replace(zero=3 if zero >= 2 else 1), form)
    made = _Rows()
    hidden = _GATHERED if zero == 2 else None

    def parts(ledger: Ledger) -> _Parts:
        return [(t, [(sign, size_of(key.factors)) for sign, key in e if key.name != hidden]) for t, e in ledger.parts]

    ledgers = {name: parts(ledger) for name, ledger in passes.ledgers.items()}
    variant = "first" if zero >= 2 else "last" if zero == 1 else ""
    actual = {a: a.replace("1", variant).strip() for a in ACTIONS}
    actual = {a: name if name in ledgers else a.split()[0] for a, name in actual.items()}
    points = {name: made.points(ledgers[name]) for name in set(actual.values())}
    nets = {name: made.net(ledgers[name]) for name in set(actual.values())}
    given, handed, back = made.counts(passes.given), made.counts(passes.handed), made.counts(passes.gradient_handed)
    gradient = made.counts(passes.gradient_given["I"])
    around = nets["F"] - handed + given + gradient - back
    stands = {
        "given": given, "flight": nets["F"] - handed, "gradient given": gradient, "handed": handed, "gradient handed": back,
        "owed": around + nets["I"], "owed more": around + nets[actual["I over"]],
        **{f"{kind} left": nets[actual[f"{kind} 1"]] - nets[kind] for kind in "BIW"},
        **_standing(made, structure, weights, width),
        "shared": made.row([(passes.shared, size_of(key.factors)) for key in [*passes.given, *passes.handed][:1]]),
    }  # fmt: skip
    groups = [_kept(*points[actual[a]]) for a in ACTIONS] + [(stands[name][None], np.zeros(1, np.int64)) for name in STANDS]
    inner = np.concatenate([i for _, i in groups])
    count = len(made.columns)
    return Table(
        products=tuple(made.columns),
        rows=np.concatenate([rows for rows, _ in groups])[:, :, :count],
        starts=np.cumsum([0, *(len(rows) for rows, _ in groups)])[:-1],
        inner=(np.flatnonzero(inner == 1), np.flatnonzero(inner == 2)),
    )


def _kept(rows: Any, inner: Any) -> tuple[Any, Any]:
    kept = _undominated(rows, inner)
    return rows[kept], inner[kept]


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


__all__ = ["ACTIONS", "REDUCING", "STANDS", "VALUES", "Form", "Structure", "Table", "table"]
