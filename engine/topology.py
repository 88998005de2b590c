"""Who sits where: rank ↔ (pp, dp, tp) coordinates, and the groups along each axis.

tp varies fastest, then dp, then pp, as in Megatron-LM: ranks that talk most are neighbours in a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Axis = Literal["dp", "tp", "pp"]
AXES: tuple[Axis, ...] = ("dp", "tp", "pp")


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
