"""The device mesh: its axes, and rank ↔ coordinate, groups and strides along each axis.

Code that iterates over axes takes them from here. It names dp, tp or pp only where it means that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Axis = Literal["tp", "dp", "pp"]
# In the order of ranks: the first varies fastest, as in Megatron-LM, so that ranks that communicate most are neighbours in a
# node.
AXES: tuple[Axis, ...] = get_args(Axis)
# Of traffic there is one more: ep, the ranks that share the experts of a layer. They are neighbours along dp.
CallAxis = Literal[Axis, "ep"]
EP: CallAxis = "ep"
CALL_AXES: tuple[CallAxis, ...] = (*AXES, EP)
AXES_AS_WRITTEN: tuple[Axis, ...] = ("dp", "tp", "pp")  # in the short form of a layout, in links, and in a product of degrees
AXES_BY_FREQUENCY: tuple[Axis, ...] = ("tp", "pp", "dp")  # the one with most calls in a step first: the order of legends
MOST_MEMBERS = 2**20  # ranks × members of a rank's group along one axis; no layout of 1,024 ranks has more

_Ranks = TypeVar("_Ranks", int, "NDArray[np.int64]")


class _ByAxis(Mapping[Axis, int]):
    """A whole number for each axis. Immutable."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Mapping[Axis, int], order: Sequence[Axis], default: int) -> None:
        if set(order) != set(AXES) or not set(AXES).issuperset(numbers):
            raise ValueError(f"the axes are {', '.join(AXES)}, not {', '.join([*order, *numbers])}")
        self._numbers = {axis: numbers.get(axis, default) for axis in order}

    def __getitem__(self, axis: Axis) -> int:
        return self._numbers[axis]

    def __iter__(self) -> Iterator[Axis]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and tuple(self.items()) == tuple(other.items())  # the order counts too

    def __hash__(self) -> int:
        return hash(tuple(self._numbers.items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{axis}={number}' for axis, number in self.items())})"

    @property
    def columns(self) -> dict[str, int]:
        """The numbers as columns of a table's row."""
        return dict[str, int](self._numbers.items())

    @property
    def tp(self) -> int:
        return self._numbers["tp"]

    @property
    def dp(self) -> int:
        return self._numbers["dp"]

    @property
    def pp(self) -> int:
        return self._numbers["pp"]


class Coordinate(_ByAxis):
    """The coordinate of a rank: its index along each axis, from 0. An axis that is left out is 0."""

    __slots__ = ()

    def __init__(self, places: Mapping[Axis, int]) -> None:
        super().__init__(places, AXES, 0)


class Mesh(_ByAxis):
    """The mesh of ranks: an ordered mapping axis → degree. The first axis varies fastest with the rank."""

    __slots__ = ("_strides",)

    def __init__(self, degrees: Mapping[Axis, int], order: Sequence[Axis] = AXES) -> None:
        """An axis that is left out has degree 1. Raises `ValueError` for an unknown axis, or if `order` lacks an axis."""
        super().__init__(degrees, order, 1)
        self._strides = strides(self, order)

    @property
    def size(self) -> int:
        return prod(self.values())

    @property
    def code(self) -> str:
        """The short form, such as dp2.tp2.pp2. `LayoutSpec.degrees` reads it."""
        return ".".join(f"{axis}{self[axis]}" for axis in AXES_AS_WRITTEN)

    @property
    def product(self) -> str:
        """The size as a product: "2 × 2 × 2"."""
        return " × ".join(str(self[axis]) for axis in AXES_AS_WRITTEN)

    @property
    def all_listed(self) -> bool:
        """Whether tables have rows of every rank. Rows contain the members of groups, so their size is ranks × group."""
        return self.size * max(self.values()) <= MOST_MEMBERS

    @property
    def listed(self) -> range:
        """The ranks that have rows in tables: all; if there are very many, the first rank of each stage, which represents the
        others.
        """
        return range(0, self.size, 1 if self.all_listed else self.stride("pp"))

    def along(self, axis: CallAxis) -> int:
        """The degree of an axis of calls. Ranks that share experts are along dp."""
        return self["dp" if axis == "ep" else axis]

    def stride(self, axis: Axis) -> int:
        """The difference in rank between neighbours along `axis`. Along pp, in the usual order, it is the ranks of a stage."""
        return self._strides[axis]

    def index(self, axis: Axis, rank: _Ranks) -> _Ranks:
        """The index of a rank along `axis`; for an array of ranks, of each, (n,)."""
        return rank // self._strides[axis] % self._numbers[axis]

    def coordinate(self, rank: int) -> Coordinate:
        return Coordinate({axis: self.index(axis, rank) for axis in self})

    def rank(self, at: Mapping[Axis, int]) -> int:
        """The rank at a coordinate. An axis that is left out is 0."""
        return sum(place * self._strides[axis] for axis, place in at.items())

    def peer(self, axis: Axis, rank: int, index: int) -> int:
        """The rank at `index` along `axis`, with the coordinates of `rank` along all other axes."""
        return rank + (index - self.index(axis, rank)) * self._strides[axis]

    def group(self, axis: Axis, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` along `axis` only, itself included, in the axis's order."""
        first, step = self.peer(axis, rank, 0), self._strides[axis]
        return tuple(range(first, first + self[axis] * step, step))

    def neighbours(self, axis: Axis, rank: int, count: int) -> tuple[int, ...]:
        """The part of its group with `rank`, if the group is cut into parts of `count` ranks each, in order."""
        group = self.group(axis, rank)
        first = self.index(axis, rank) // count * count
        return group[first : first + count]

    def groups(self, axis: Axis) -> list[tuple[int, ...]]:
        """All groups along `axis`. Each rank is in one of them."""
        return [self.group(axis, rank) for rank in range(self.size) if self.index(axis, rank) == 0]

    def differing_axes(self, rank: int, other: int) -> tuple[Axis, ...]:
        """The axes along which two ranks have different coordinates."""
        return tuple(axis for axis in self if self.index(axis, rank) != self.index(axis, other))


def strides(degrees: Mapping[Axis, Any], order: Sequence[Axis] = AXES) -> dict[Axis, Any]:
    """The difference in rank between neighbours along each axis. The first axis of `order` varies fastest.

    Degrees are numbers, or arrays for many meshes, (n,).
    """
    found: dict[Axis, Any] = {}
    step: Any = 1
    for axis in order:
        found[axis] = step
        step = step * degrees[axis]
    return found
