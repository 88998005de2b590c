"""Ranks, coordinates and groups of the mesh."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.topology import AXES, Axis, Coordinate, Mesh

degrees = st.integers(1, 5)
meshes = st.builds(Mesh, dp=degrees, tp=degrees, pp=degrees)
axes = st.sampled_from(AXES)


def test_tp_varies_fastest_then_dp_then_pp() -> None:
    """As in Megatron-LM. Written out, since everything that names a rank relies on it."""
    mesh = Mesh(dp=2, tp=3, pp=2)
    assert [tuple(mesh.coordinate(rank)) for rank in range(mesh.size)] == [
        # pp, dp, tp
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2),
        (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2),
    ]  # fmt: skip
    assert mesh.groups("tp") == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert mesh.groups("dp") == [(0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)]
    assert mesh.groups("pp") == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]


@given(meshes)
def test_every_rank_has_one_coordinate_and_every_coordinate_one_rank(mesh: Mesh) -> None:
    places = [mesh.coordinate(rank) for rank in range(mesh.size)]
    assert [mesh.rank(at) for at in places] == list(range(mesh.size))
    assert set(places) == {Coordinate(p, d, t) for p in range(mesh.pp) for d in range(mesh.dp) for t in range(mesh.tp)}
    assert mesh.size == mesh.dp * mesh.tp * mesh.pp


@given(meshes, axes)
def test_the_groups_along_an_axis_are_a_partition_of_the_ranks(mesh: Mesh, axis: Axis) -> None:
    groups = mesh.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.size))
    assert {len(group) for group in groups} == {mesh.degree(axis)}


@given(meshes, axes)
def test_the_members_of_a_group_differ_along_its_axis_only(mesh: Mesh, axis: Axis) -> None:
    groups = mesh.groups(axis)
    for rank in range(mesh.size):
        group = mesh.group(rank, axis)
        assert rank in group
        assert group in groups
        assert [getattr(mesh.coordinate(member), axis) for member in group] == list(range(mesh.degree(axis)))
        assert len({mesh.coordinate(member)._replace(**{axis: 0}) for member in group}) == 1


@given(meshes)
def test_two_groups_of_different_axes_share_at_most_one_rank(mesh: Mesh) -> None:
    for one, other in (("dp", "tp"), ("tp", "pp"), ("dp", "pp")):
        for rank in range(mesh.size):
            assert set(mesh.group(rank, one)) & set(mesh.group(rank, other)) == {rank}  # type: ignore[arg-type]
