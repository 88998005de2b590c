from __future__ import annotations

from pages.charts import traffic
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import colour_of, marks


def test_a_bar_is_the_mean_of_the_ranks_by_axis_collective_and_phase():
    drawing = traffic.kinds(made_up.traffic(), 2, "wire", LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    assert {(r["name"], r["bytes"], r["calls"]) for r in rows} == {
        ("tp all_reduce, forward", 4096, 2),
        ("pp send, forward", 1536, 0.5),
    }
    assert colour_of(view) == {axis: LIGHT.axis[axis] for axis in ("tp", "pp")}
    assert {r["said"] for r in rows} == {"4 KiB in 2 calls", "1.50 KiB in 0.5 calls"}
    assert drawing.title == "tp carries 72.7% of the 5.50 KiB that a rank sends in a step"


def test_payload_counts_what_is_received_as_well():
    drawing = traffic.kinds(made_up.traffic(), 2, "payload", LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert {r["name"] for r in rows} == {"tp all_reduce, forward", "pp send, forward", "pp recv, forward"}
    assert drawing.title == "tp carries 57.1% of the 7 KiB that a rank hands over in a step"


def test_every_rank_has_its_bars():
    drawing = traffic.by_rank(made_up.traffic(), 2, "wire", LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert {(r["rank"], r["axis"], r["bytes"]) for r in rows} == {(0, "tp", 4096), (0, "pp", 3072), (1, "tp", 4096), (1, "pp", 0)}
    assert drawing.title == "Rank 0 sends most: 7 KiB in a step, against 4 KiB on rank 1"


def test_the_table_is_the_whole_table():
    table = made_up.traffic()
    assert traffic.kinds(table, 2, "wire", LIGHT).table.equals(table.drop(columns="source"))


def test_a_single_rank_has_no_traffic():
    nothing = made_up.traffic().iloc[:0]
    assert traffic.kinds(nothing, 1, "wire", LIGHT).title == "Nothing passes between ranks"
    assert traffic.by_rank(nothing, 1, "wire", LIGHT).title == "Every rank sends the same: 0 B in a step"
