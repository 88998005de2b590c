"""Who sits where: rank ↔ (pp, dp, tp) coordinates, and the groups along each axis.

tp varies fastest, then dp, then pp, as in Megatron-LM: ranks that talk most are neighbours in a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Axis = Literal["dp", "tp", "pp"]
AXES: tuple[Axis, ...] = ("dp", "tp", "pp")
MOST_MEMBERS = 2**20  # members of the groups of one axis, counted once for each rank: all layouts of 1,024 ranks have no more


class Coordinate(NamedTuple):
    pp: int
    dp: int
    tp: int


@dataclass(frozen=True)
class Mesh:
    """A pp × dp × tp grid of ranks."""

    dp: int
    tp: int
    pp: int

    @property
    def size(self) -> int:
        return self.dp * self.tp * self.pp

    @property
    def all_listed(self) -> bool:
        """Whether tables have rows of every rank. Each rank's name its groups, so they grow as ranks × group."""
        return self.size * max(self.dp, self.tp, self.pp) <= MOST_MEMBERS

    @property
    def listed(self) -> range:
        """The ranks that tables have rows of: all, or of very many the first of each stage, whose others do the same."""
        return range(0, self.size, 1 if self.all_listed else self.dp * self.tp)

    def degree(self, axis: Axis) -> int:
        return getattr(self, axis)

    def rank(self, at: Coordinate) -> int:
        return (at.pp * self.dp + at.dp) * self.tp + at.tp

    def coordinate(self, rank: int) -> Coordinate:
        stage, rest = divmod(rank, self.dp * self.tp)
        return Coordinate(stage, *divmod(rest, self.tp))

    def group(self, rank: int, axis: Axis) -> tuple[int, ...]:
        """The ranks that differ from `rank` along `axis` only, itself included, in the axis's order."""
        at = self.coordinate(rank)
        return tuple(self.rank(at._replace(**{axis: i})) for i in range(self.degree(axis)))

    def groups(self, axis: Axis) -> list[tuple[int, ...]]:
        """Every group along `axis`; each rank is in exactly one."""
        return sorted({self.group(rank, axis) for rank in range(self.size)})
