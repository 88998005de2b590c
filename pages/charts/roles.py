"""One rank is chosen: what each rank is to it. Charts mark that by outline, by paleness and in words, never by hue alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from engine.topology import Axis, Mesh
from pages.charts.words import Words

Role = Literal["self", "tp", "dp", "pp", "none"]
Roles = Mapping[int, Role]
PALE = 0.3  # how opaque is what has nothing to do with the chosen rank
CHOSEN = "chosen"  # the selection that a chart declares when a rank can be chosen in it, by the field "rank"


def roles_of(mesh: Mesh, rank: int) -> dict[int, Role]:
    """What every rank of the mesh is to `rank`: itself, a peer along one axis, or neither."""
    found: dict[int, Role] = dict.fromkeys(range(mesh.size), "none")
    axes: tuple[Axis, ...] = ("pp", "dp", "tp")
    for axis in axes:
        found |= dict.fromkeys(mesh.group(rank, axis), axis)
    return found | {rank: "self"}


def told(role: Role, say: Words) -> str:
    """A role in a word or two; empty for none."""
    return {
        "self": say("chosen"),
        "tp": say("tp peer"),
        "dp": say("dp peer"),
        "pp": say("pp peer"),
        "none": "",
    }[role]


def opacity(rank: int, roles: Roles | None) -> float:
    return PALE if roles and roles[rank] == "none" else 1.0


def outline(rank: int, roles: Roles | None) -> float:
    """The width of a bar's outline, in pixels: thick for the chosen rank, thinner for its peers; 0 for the others."""
    return {"self": 2.5, "none": 0.0}.get(roles[rank], 1.2) if roles else 0.0
