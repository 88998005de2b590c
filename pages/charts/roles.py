"""One rank is chosen: what each rank is to it. Charts mark that by outline, by paleness and in words, never by hue alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from engine.topology import Axis, Mesh
from pages.charts.words import Words

Role = Axis | Literal["self", "none"]
PALE = 0.3  # how opaque is what has nothing to do with the chosen rank
CHOSEN = "chosen"  # the selection that a chart declares when a rank can be chosen in it, by the field "rank"


class Roles(Mapping[int, Role]):
    """What every rank of the mesh is to the `chosen` one: itself, a peer along one axis, or neither. Told when it is asked."""

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


def told(role: Role, say: Words) -> str:
    """A role in a word or two; empty for none."""
    if role == "none":
        return ""
    return say("chosen") if role == "self" else say("{axis} peer", axis=role)


def opacity(rank: int, roles: Roles | None) -> float:
    return PALE if roles and roles[rank] == "none" else 1.0


def outline(rank: int, roles: Roles | None) -> float:
    """The width of a bar's outline, in pixels: thick for the chosen rank, thinner for its peers; 0 for the others."""
    return {"self": 2.5, "none": 0.0}.get(roles[rank], 1.2) if roles else 0.0
