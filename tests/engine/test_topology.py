"""Ranks, coordinates and groups of the mesh."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec import LayoutSpec
from engine.topology import AXES, AXES_AS_WRITTEN, AXES_BY_FREQUENCY, Axis, Coordinate, Mesh, strides

degrees = st.fixed_dictionaries({axis: st.integers(1, 5) for axis in AXES})
meshes = st.builds(Mesh, degrees, order=st.permutations(AXES))
axes = st.sampled_from(AXES)


def test_tp_varies_fastest_then_cp_then_dp_then_pp() -> None:
    """As in Megatron-LM. Written out, because everything that uses a rank's number relies on it."""
    mesh = Mesh({"dp": 2, "tp": 3, "pp": 2})
    places = [mesh.coordinate(rank) for rank in range(mesh.size)]
    assert [(at.pp, at.dp, at.tp) for at in places] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2),
        (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2),
    ]  # fmt: skip
    assert mesh.groups("tp") == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert mesh.groups("dp") == [(0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)]
    assert mesh.groups("pp") == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert {axis: mesh.stride(axis) for axis in mesh} == {"tp": 1, "cp": 3, "dp": 3, "pp": 6}
    assert Mesh({"dp": 2, "cp": 2, "tp": 2}).groups("cp") == [(0, 2), (1, 3), (4, 6), (5, 7)]


def test_collectives_over_dp_are_of_all_ranks_with_the_same_parameters() -> None:
    """Written out: Megatron-LM's dp-cp group."""
    mesh = Mesh({"dp": 2, "cp": 2, "tp": 2, "pp": 2})
    assert mesh.replica_group(5) == mesh.members("dp", 5) == (1, 3, 5, 7)
    assert [mesh.replica(rank) for rank in (1, 3, 5, 7)] == [0, 1, 2, 3]
    assert (mesh.replicas, mesh.degree("dp"), mesh.spacing("dp")) == (4, 4, 2)
    assert (mesh.members("cp", 5), mesh.degree("cp"), mesh.spacing("cp")) == ((5, 7), 2, 2)
    assert mesh.code == "dp2.cp2.tp2.pp2"


def test_a_group_can_be_cut_into_parts_of_neighbours() -> None:
    mesh = Mesh({"tp": 4, "dp": 2})
    assert [mesh.neighbours("tp", rank, 2) for rank in (0, 1, 3, 6)] == [(0, 1), (0, 1), (2, 3), (6, 7)]
    assert mesh.neighbours("tp", 5, 4) == mesh.group("tp", 5)
    assert mesh.neighbours("tp", 5, 1) == (5,)


def test_every_list_of_axes_has_all_of_them_once() -> None:
    assert sorted(AXES) == sorted(AXES_AS_WRITTEN) == sorted(AXES_BY_FREQUENCY)
    assert len(set(AXES)) == len(AXES)
    assert set(LayoutSpec.model_fields).issuperset(AXES)  # each has its degree in the layout


def test_a_mesh_is_a_mapping_from_axis_to_degree_in_the_order_of_ranks() -> None:
    mesh = Mesh({"pp": 4, "dp": 2})
    assert list(mesh.items()) == [("tp", 1), ("cp", 1), ("dp", 2), ("pp", 4)]
    assert mesh == Mesh({"dp": 2, "tp": 1, "pp": 4}) == LayoutSpec(dp=2, pp=4).mesh
    assert (mesh.code, mesh.product) == ("dp2.tp1.pp4", "2 × 1 × 4")
    assert LayoutSpec.degrees(mesh.code) == dict(mesh)


def test_in_another_order_the_first_axis_varies_fastest() -> None:
    mesh = Mesh({"dp": 2, "tp": 3}, order=("dp", "tp", "cp", "pp"))
    assert [(at.dp, at.tp) for at in map(mesh.coordinate, range(6))] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert mesh != Mesh({"dp": 2, "tp": 3})


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="the axes are tp, cp, dp, pp"):
        Mesh({"xp": 2})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the axes are tp, cp, dp, pp"):
        Mesh({}, order=("tp", "dp"))


@given(meshes)
def test_every_rank_has_one_coordinate_and_every_coordinate_one_rank(mesh: Mesh) -> None:
    places = [mesh.coordinate(rank) for rank in range(mesh.size)]
    assert [mesh.rank(at) for at in places] == list(range(mesh.size))
    every = (Coordinate(dict(zip(AXES, at, strict=True))) for at in product(*(range(mesh[axis]) for axis in AXES)))
    assert set(places) == set(every)
    assert mesh.size == len(places) == prod(mesh.values())


@given(meshes, axes)
def test_coordinates_of_many_ranks_equal_those_of_each(mesh: Mesh, axis: Axis) -> None:
    assert mesh.index(axis, np.arange(mesh.size)).tolist() == [mesh.coordinate(rank)[axis] for rank in range(mesh.size)]


@given(st.lists(degrees, min_size=1, max_size=5))
def test_strides_of_many_meshes_equal_those_of_each(several: list[dict[Axis, int]]) -> None:
    found = strides({axis: np.array([one[axis] for one in several]) for axis in AXES_AS_WRITTEN})
    for axis in AXES:
        assert np.broadcast_to(found[axis], len(several)).tolist() == [Mesh(one).stride(axis) for one in several]


@given(meshes, axes)
def test_the_groups_along_an_axis_are_a_partition_of_the_ranks(mesh: Mesh, axis: Axis) -> None:
    groups = mesh.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.size))
    assert {len(group) for group in groups} == {mesh[axis]}


@given(meshes, axes)
def test_the_members_of_a_group_differ_along_its_axis_only(mesh: Mesh, axis: Axis) -> None:
    groups = mesh.groups(axis)
    for rank in range(mesh.size):
        group = mesh.group(axis, rank)
        assert rank in group
        assert group in groups
        assert [mesh.coordinate(member)[axis] for member in group] == list(range(mesh[axis]))
        assert list(group) == [mesh.peer(axis, rank, index) for index in range(mesh[axis])]
        assert all(mesh.differing_axes(rank, member) == (() if member == rank else (axis,)) for member in group)


@given(meshes)
def test_two_groups_of_different_axes_share_at_most_one_rank(mesh: Mesh) -> None:
    for one, other in (("dp", "tp"), ("tp", "pp"), ("dp", "pp")):
        for rank in range(mesh.size):
            assert set(mesh.group(one, rank)) & set(mesh.group(other, rank)) == {rank}  # type: ignore[arg-type]
