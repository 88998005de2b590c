from __future__ import annotations

from engine.tables import CATEGORIES
from pages.charts import memory
from pages.charts.look import LIGHT
from pages.charts.units import in_bytes
from tests.charts import made_up
from tests.charts.reading import marks

KIB = 1024


def test_the_curve_has_every_row_of_its_rank():
    table = made_up.memory_curve()
    drawing = memory.curve(table, 0, LIGHT)
    [(view, rows)] = marks(drawing.spec, "area")
    assert len(rows) == len(table)
    assert view["mark"]["interpolate"] == "step-after"
    assert view["encoding"]["y"]["title"] == "memory of rank 0 (KiB)"
    assert sum(r["amount"] for r in rows) == table["bytes"].sum() / KIB
    assert drawing.title == f"Rank 0 peaks at {in_bytes(13 * KIB)} during backward of microbatch 0"


def test_the_strip_has_a_bar_for_each_action_on_the_time_axis_of_the_curve():
    drawing = memory.curve(made_up.memory_curve(), 0, LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    # The step that ends the curve begins at its last instant, so there is no time to draw it over.
    assert [(r["label"], r["start"], r["end"]) for r in rows] == [("F0", 0, 4), ("B0", 4, 8)]
    assert view["encoding"]["x"]["title"] == "time from the step's start (ms)"
    assert drawing.spec["resolve"]["scale"]["x"] == "shared"


def test_the_tooltip_has_exact_bytes_of_every_category():
    [(view, rows)] = marks(memory.curve(made_up.memory_curve(), 0, LIGHT).spec, "rule")
    assert [row["total"] for row in rows] == [KIB * (5 + a) for a in (0, 4, 8, 4, 0)]
    assert {f"{c}:Q".removesuffix(":Q") for c in CATEGORIES} <= {t["field"] for t in view["encoding"]["tooltip"]}


def test_the_peak_is_marked_and_an_action_can_be_pointed_at():
    table = made_up.memory_curve()
    spec = memory.curve(table, 0, LIGHT).spec
    [(_, summit)] = marks(spec, "point")
    assert summit == [{"time": 4.0, "amount": 13.0, "said": "peak 13 KiB"}]
    # Backward begins at 4 ms, the step at 8 ms; "gather" is not in the curve.
    assert memory.marks(table, 0, "B chunk 0 microbatch 0") == {"marked": [{"t_ns": 4_000_000, "end_ns": 8_000_000}]}
    assert memory.marks(table, 0, "gather") == {"marked": []}
    assert spec["datasets"]["marked"] == [{"t_ns": None, "end_ns": None}]
