from __future__ import annotations

import pytest

from engine.spec import LayoutSpec
from engine.topology import Mesh
from pages.charts import beside, memory, timeline, traffic
from pages.charts.look import LIGHT, View, look
from pages.charts.roles import CHOSEN, PALE, roles_of
from tests.charts import made_up
from tests.charts.reading import marks

MESH = Mesh({"dp": 2, "tp": 2, "pp": 2})


def test_peers_differ_from_the_chosen_rank_along_one_axis():
    assert roles_of(MESH, 3) == {0: "none", 1: "dp", 2: "tp", 3: "self", 4: "none", 5: "none", 6: "none", 7: "pp"}


@pytest.mark.parametrize("rank", range(MESH.size))
def test_every_axis_has_its_peers(rank: int):
    found = list(roles_of(MESH, rank).values())
    assert (found.count("self"), found.count("tp"), found.count("dp"), found.count("pp")) == (1, 1, 1, 1)


def test_the_chosen_rank_is_outlined_and_named_and_others_are_pale():
    drawing = beside.memory(None, made_up.predicted_memory(MESH), None, "", LIGHT, roles_of(MESH, 3))
    (bars, rows), (_, frames) = marks(drawing.spec, "bar")
    assert {r["rank"] for r in rows if r["opaque"] == 1} == {1, 2, 3, 7}
    assert {r["opaque"] for r in rows} == {1, PALE}
    assert {f["rank"]: f["outline"] for f in frames} == {1: 1.2, 2: 1.2, 3: 2.5, 7: 1.2}
    assert '"3": ["3", "stage 0", "chosen"]' in bars["encoding"]["x"]["axis"]["labelExpr"]


def test_without_a_chosen_rank_nothing_is_pale_and_one_can_be_chosen():
    for drawing in (
        beside.memory(None, made_up.predicted_memory(MESH), None, "", LIGHT),
        traffic.by_rank(made_up.traffic(), 2, "wire", LIGHT),
        timeline.measured(made_up.spans(LayoutSpec(dp=2, pp=2), 4), Mesh({"dp": 2, "pp": 2}), LIGHT),
    ):
        assert CHOSEN in {param["name"] for param in drawing.spec["params"]}
        assert {r["opaque"] for _, rows in marks(drawing.spec, "bar") for r in rows if "opaque" in r} == {1}


def test_rows_of_the_timeline_have_their_role():
    mesh = Mesh({"dp": 2, "pp": 2})
    drawing = timeline.measured(made_up.spans(LayoutSpec(dp=2, pp=2), 4), mesh, look(View("light", "zh")), roles_of(mesh, 0))
    bars = marks(drawing.spec, "bar")[1][1]
    rows = {r["rank"]: r["who"].rpartition(" · ")[0] for r in bars}  # without the rank's idle share
    assert rows == {
        0: "rank 0 · 阶段 0 · 已选",
        1: "rank 1 · 阶段 0 · 同 dp 组",
        2: "rank 2 · 阶段 1 · 同 pp 组",
        3: "rank 3 · 阶段 1",
    }


def test_charts_offer_no_editor_on_another_machine():
    assert memory.curve(made_up.memory_curve(), 0, LIGHT).spec["usermeta"]["embedOptions"] == {"actions": False}


def test_roles_of_very_many_ranks_are_computed_on_demand():
    mesh = Mesh({"dp": 65_536, "tp": 1024, "pp": 1024})
    roles = roles_of(mesh, mesh.size - 1)
    assert (roles[0], roles[mesh.size - 2], roles[mesh.size - 1]) == ("none", "tp", "self")
    assert len(roles) == mesh.size
