"""The device mesh: its axes, and rank ↔ coordinate, groups and strides along each axis.

Code that iterates over axes takes them from here. It names dp, tp or pp only where it means that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Axis = Literal["tp", "cp", "dp", "pp"]
# In the order of ranks: the first varies fastest, as in Megatron-LM, so that ranks that communicate most are neighbours in a
# node.
AXES: tuple[Axis, ...] = get_args(Axis)
# Of traffic there is one more: ep, the ranks that share the experts of a layer. They are neighbours along dp.
CallAxis = Literal[Axis, "ep"]
EP: CallAxis = "ep"
CALL_AXES: tuple[CallAxis, ...] = (*AXES, EP)
# In the short form of a layout, in links, and in a product of degrees.
AXES_AS_WRITTEN: tuple[Axis, ...] = ("dp", "cp", "tp", "pp")
WRITTEN_IF_USED: tuple[Axis, ...] = ("cp",)  # short form and product leave them out where their degree is 1
AXES_BY_FREQUENCY: tuple[Axis, ...] = ("tp", "cp", "pp", "dp")  # the one with most calls in a step first: the order of legends
CALL_AXES_BY_FREQUENCY: tuple[CallAxis, ...] = (*AXES_BY_FREQUENCY, EP)
# Ranks that differ along these only hold the same parameters: Megatron-LM's dp-cp group. Gradients, the norm and the loss are
# summed over all of them, and ZeRO shards over all of them. Their calls count as dp's; so a layout with cp = 1 is a special case.
REPLICATED: tuple[Axis, ...] = ("dp", "cp")  # from slow to fast
MOST_MEMBERS = 2**20  # ranks × members of a rank's group along one axis; no layout of 1,024 ranks has more


class Subgroups(NamedTuple):
    """How ranks along an axis form groups of their own."""

    key_copies: int = 1  # tp ranks that hold the same key head, see `ModelSpec.key_copies`
    ep: int = 1  # neighbours along dp that share the experts
    zero_replicas: int = 1  # groups of ranks over which ZeRO shards, see `LayoutSpec.zero_replicas`


NO_SUBGROUPS = Subgroups()

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
    def cp(self) -> int:
        return self._numbers["cp"]

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
        return ".".join(f"{axis}{self[axis]}" for axis in self.written)

    @property
    def product(self) -> str:
        """The size as a product: "2 × 2 × 2"."""
        return " × ".join(str(self[axis]) for axis in self.written)

    @property
    def written(self) -> tuple[Axis, ...]:
        """The axes that names of a layout and of its ranks have."""
        return tuple(axis for axis in AXES_AS_WRITTEN if self[axis] != 1 or axis not in WRITTEN_IF_USED)

    @property
    def replicas(self) -> int:
        """The ranks that hold the same parameters, see `REPLICATED`."""
        return prod(self[axis] for axis in REPLICATED)

    @property
    def all_listed(self) -> bool:
        """Whether tables have rows of every rank. Rows contain the members of groups, so their size is ranks × group."""
        return self.size * max(self.replicas, *self.values()) <= MOST_MEMBERS

    @property
    def listed(self) -> range:
        """The ranks that have rows in tables: all; if there are very many, the first rank of each stage, which represents the
        others.
        """
        return range(0, self.size, 1 if self.all_listed else self.stride("pp"))

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

    def replica(self, rank: int) -> int:
        """The index of a rank among those that hold the same parameters."""
        return self.replica_group(rank).index(rank)

    def replica_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same parameters as `rank`, itself included: those that differ along `REPLICATED` only."""
        first = rank - sum(self.index(axis, rank) * self._strides[axis] for axis in REPLICATED)
        slow, fast = (range(0, self[axis] * self._strides[axis], self._strides[axis]) for axis in REPLICATED)
        return tuple(first + far + near for far in slow for near in fast)

    def shard_group(self, rank: int, replicas: int) -> tuple[int, ...]:
        """The ranks that shard ZeRO's states with `rank`, itself included: neighbours in `replica_group`.

        `replicas`: how many such groups there are.
        """
        group = self.replica_group(rank)
        count = len(group) // replicas
        first = group.index(rank) // count * count
        return group[first : first + count]

    def shard_replicas(self, rank: int, replicas: int) -> tuple[int, ...]:
        """The ranks that hold the same shard as `rank`, one of each such group."""
        group = self.replica_group(rank)
        count = len(group) // replicas
        return group[group.index(rank) % count :: count]

    def members(self, axis: Axis, rank: int) -> tuple[int, ...]:
        """The ranks of collectives over `axis`: the group of the axis, and over dp all ranks with the same parameters."""
        return self.replica_group(rank) if axis == "dp" else self.group(axis, rank)

    def degree(self, axis: CallAxis) -> int:
        """How many `members` there are. Ranks that share experts are along dp."""
        return self.replicas if axis == "dp" or axis == "ep" else self[axis]

    def spacing(self, axis: Axis) -> int:
        """The difference in rank between neighbours among `members`, where dp and cp follow each other in the order of ranks."""
        return min(self._strides[one] for one in REPLICATED) if axis == "dp" else self._strides[axis]

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
