from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from engine.tables import table
from engine.topology import Mesh
from pages.charts import matrix
from pages.charts.look import LIGHT, MAX_BARS
from pages.charts.roles import roles_of
from tests.charts import made_up
from tests.charts.reading import colour_of, marks


def cells(traffic: pd.DataFrame, mesh: Mesh, measure: matrix.Measure = "wire") -> list[dict]:
    views = marks(matrix.matrix(traffic, mesh, measure, LIGHT).spec, "rect")
    return next(rows for _, rows in views if rows and "strength" in rows[0])


def of_a_layout(mesh: Mesh) -> pd.DataFrame:
    """Every rank all-reduces 100 bytes along tp and dp, and sends 10 to the next stage, which receives them."""
    rows = []
    for rank in range(mesh.size):
        same = {"rank": rank, "phase": "forward", "calls": 1}
        for axis, wire in (("tp", 100), ("dp", 40)):
            group = mesh.group(axis, rank)
            if len(group) > 1:
                named = ",".join(map(str, group))
                rows.append(same | {"axis": axis, "collective": "all_reduce", "group": named, "wire_bytes": wire})
        stages = mesh.group("pp", rank)
        at = mesh.coordinate(rank).pp
        for collective, other in (("send", at + 1), ("recv", at - 1)):
            if 0 <= other < mesh.pp:
                pair = f"{stages[min(at, other)]},{stages[max(at, other)]}"
                sent = 10 * (collective == "send")
                rows.append(same | {"axis": "pp", "collective": collective, "group": pair, "wire_bytes": sent})
    return table("traffic", [row | {"payload_bytes": 100} for row in rows], "measured")


def test_a_collective_goes_round_the_ring_and_a_send_to_its_receiver():
    # Three replicas: each to the next, the last to the first.
    sent = matrix.links(of_a_layout(Mesh({"dp": 3, "pp": 2})), "wire")
    assert sorted(sent[sent["axis"] == "dp"][["sender", "receiver", "bytes"]].itertuples(index=False, name=None)) == [
        (0, 1, 40), (1, 2, 40), (2, 0, 40), (3, 4, 40), (4, 5, 40), (5, 3, 40),
    ]  # fmt: skip
    assert sorted(sent[sent["axis"] == "pp"][["sender", "receiver", "bytes"]].itertuples(index=False, name=None)) == [
        (0, 3, 10), (1, 4, 10), (2, 5, 10),
    ]  # fmt: skip


def test_the_matrix_has_every_wire_byte_and_all_payload_that_is_sent():
    mesh = Mesh({"dp": 2, "tp": 2, "pp": 4})
    traffic = of_a_layout(mesh)
    assert sum(c["bytes"] for c in cells(traffic, mesh)) == traffic["wire_bytes"].sum()
    handed = traffic[traffic["collective"] != "recv"]["payload_bytes"].sum()
    assert sum(c["bytes"] for c in cells(traffic, mesh, "payload")) == handed


def test_a_cell_has_the_colour_of_its_axis_and_the_rank_that_a_click_chooses():
    mesh = Mesh({"dp": 2, "tp": 2, "pp": 2})
    drawing = matrix.matrix(of_a_layout(mesh), mesh, "wire", LIGHT)
    [view] = [view for view, rows in marks(drawing.spec, "rect") if rows and "strength" in rows[0]]
    assert colour_of(view) == {axis: LIGHT.axis[axis] for axis in ("tp", "pp", "dp")}
    found = {(c["from"], c["to"]): (c["axis"], c["rank"]) for c in cells(of_a_layout(mesh), mesh)}
    assert found[2, 3] == ("tp", 2)
    assert found[1, 3] == ("dp", 1)
    assert found[3, 7] == ("pp", 3)
    assert drawing.title == "The 8 busiest links carry 100 B each along tp: 69.0% of all bytes"


def test_links_whose_bytes_are_written_alike_are_counted_together():
    mesh = Mesh({"dp": 2, "tp": 2, "pp": 2})
    sent = of_a_layout(mesh)
    scaled = sent.assign(wire_bytes=sent["wire_bytes"] * 100_000)
    few = scaled.index[scaled["axis"] == "tp"][:2]
    scaled.loc[few, "wire_bytes"] += 1
    assert matrix.matrix(scaled, mesh, "wire", LIGHT).title.startswith("The 8 busiest links carry 9.54 MiB each along tp: 69.0%")


def test_a_call_is_marked_in_the_cell_that_counts_its_bytes():
    mesh = Mesh({"dp": 3, "pp": 2})
    there = matrix.marks(4, "all_reduce", (3, 4, 5), mesh, LIGHT)["marked"]
    assert there == [{"from": 4, "y2": 5, "to": 5, "x2": 6}]
    sent, received = (matrix.marks(rank, name, (1, 4), mesh, LIGHT) for rank, name in ((1, "send"), (4, "recv")))
    assert sent == received == {"marked": [{"from": 1, "y2": 2, "to": 4, "x2": 5}]}


def test_the_chosen_ranks_row_and_column_are_framed():
    mesh = Mesh({"tp": 2})
    views = marks(matrix.matrix(made_up.traffic(), mesh, "wire", LIGHT, roles_of(mesh, 1)).spec, "rect")
    assert views[-1][1] == [{"from": 1, "y2": 2, "to": 0, "x2": 2}, {"from": 0, "y2": 2, "to": 1, "x2": 2}]


@pytest.mark.parametrize(
    ("mesh", "first", "last"),
    [
        (Mesh({"dp": 4, "tp": 4, "pp": 4}), "0", "63"),  # each rank its row
        (Mesh({"dp": 4, "tp": 8, "pp": 8}), "0–7", "248–255"),  # each node
        (Mesh({"dp": 8, "tp": 8, "pp": 16}), "stage 0", "stage 15"),  # each stage
        (Mesh({"dp": 2, "tp": 8, "pp": 128}), "stages 0–2", "stages 126–127"),  # a few stages together
    ],
)
def test_many_ranks_share_rows_and_no_byte_is_lost(mesh: Mesh, first: str, last: str):
    traffic = of_a_layout(mesh)
    drawing = matrix.matrix(traffic, mesh, "wire", LIGHT)
    [labels] = re.findall(r"\[(.*)\]\[floor", json.dumps(drawing.spec, ensure_ascii=False))[:1]
    names = re.findall(r"'([^']*)'", labels)
    assert (names[0], names[-1]) == (first, last)
    found = cells(traffic, mesh)
    assert len(found) <= MAX_BARS
    assert sum(c["bytes"] for c in found) == traffic["wire_bytes"].sum()


def test_a_matrix_without_traffic_says_so():
    assert matrix.matrix(made_up.traffic().iloc[:0], Mesh({}), "wire", LIGHT).title == "No communication between ranks"
