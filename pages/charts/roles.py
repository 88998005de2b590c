"""The relation of every rank to the chosen rank. Charts show it by outline, opacity and words, never by hue alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from engine.topology import Axis, Mesh
from pages.charts.words import Words

Role = Axis | Literal["self", "none"]
PALE = 0.3  # opacity of ranks that are not in a group with the chosen rank
CHOSEN = "chosen"  # name of the Vega selection, on the field "rank", in charts in which a rank can be chosen


class Roles(Mapping[int, Role]):
    """Rank → its relation to the `chosen` rank: itself, a peer along one axis, or neither. Computed on demand."""

    def __init__(self, mesh: Mesh, chosen: int) -> None:
        self.mesh, self.chosen = mesh, chosen

    def __getitem__(self, rank: int) -> Role:
        if not 0 <= rank < self.mesh.size:
            raise KeyError(rank)
        axes = self.mesh.differing_axes(rank, self.chosen)
        if len(axes) > 1:
            return "none"
        return axes[0] if axes else "self"

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.mesh.size))

    def __len__(self) -> int:
        return self.mesh.size


def roles_of(mesh: Mesh, rank: int) -> Roles:
    return Roles(mesh, rank)


def role_name(role: Role, say: Words) -> str:
    """The name of a role; empty for none."""
    if role == "none":
        return ""
    return say("chosen") if role == "self" else say("{axis} peer", axis=role)


def opacity(rank: int, roles: Roles | None) -> float:
    return PALE if roles and roles[rank] == "none" else 1.0


def outline(rank: int, roles: Roles | None) -> float:
    """The width of a bar's outline in pixels: thick for the chosen rank, thinner for its peers, 0 for others."""
    return {"self": 2.5, "none": 0.0}.get(roles[rank], 1.2) if roles else 0.0
