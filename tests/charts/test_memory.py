from __future__ import annotations

import pytest

from engine.tables import CATEGORIES
from engine.topology import Mesh
from pages.charts import memory
from pages.charts.look import DARK, LIGHT, Look
from pages.charts.units import in_bytes
from tests.charts import made_up
from tests.charts.reading import colour_of, marks

KIB = 1024


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_every_rank_and_category_is_a_bar_of_its_colour(style: Look):
    table = made_up.memory_peak(Mesh(2, 2, 2))
    [(view, rows)] = marks(memory.peak(table, style).spec, "bar")
    assert {(r["rank"], r["category"], r["bytes"]) for r in rows} == set(
        table[["rank", "category", "bytes"]].itertuples(index=False, name=None)
    )
    assert colour_of(view) == {category: style.category[category] for category in CATEGORIES}


def test_the_title_names_the_fullest_and_the_leanest_rank():
    drawing = memory.peak(made_up.memory_peak(Mesh(2, 2, 2)), LIGHT)
    assert drawing.title == "Rank 0 is fullest: 42 KiB at its peak, against 21 KiB on rank 4"
    assert drawing.spec["description"] == drawing.title
    assert drawing.table["total"].tolist() == [42 * KIB] * 4 + [21 * KIB] * 4


def test_one_rank_is_compared_with_nobody():
    assert memory.peak(made_up.memory_peak(Mesh(1, 1, 1)), LIGHT).title == "Rank 0 is fullest: 42 KiB at its peak"


def test_the_total_stands_above_each_bar():
    [(_, rows)] = marks(memory.peak(made_up.memory_peak(Mesh(1, 1, 2)), LIGHT).spec, "text")
    assert [(r["rank"], r["said"]) for r in rows] == [(0, "42"), (1, "21")]


def test_what_is_empty_has_no_bar():
    table = made_up.memory_peak(Mesh(1, 1, 1))
    table.loc[table["category"] == "temporary", "bytes"] = 0
    [(_, rows)] = marks(memory.peak(table, LIGHT).spec, "bar")
    assert "temporary" not in {r["category"] for r in rows}


def test_the_curve_holds_every_row_of_its_rank_in_steps():
    table = made_up.memory_curve()
    drawing = memory.curve(table, 0, LIGHT)
    [(view, rows)] = marks(drawing.spec, "area")
    assert len(rows) == len(table)
    assert view["mark"]["interpolate"] == "step-after"
    assert view["encoding"]["y"]["title"] == "memory of rank 0 (KiB)"
    assert sum(r["amount"] for r in rows) == table["bytes"].sum() / KIB
    assert drawing.title == f"Rank 0 peaks at {in_bytes(13 * KIB)} during B chunk 0 microbatch 0"


def test_the_strip_has_one_bar_an_action_on_the_curves_time_axis():
    drawing = memory.curve(made_up.memory_curve(), 0, LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    # The step that ends the curve begins at its last instant, so there is no time to draw it over.
    assert [(r["label"], r["start"], r["end"]) for r in rows] == [("F0", 0, 4), ("B0", 4, 8)]
    assert view["encoding"]["x"]["title"] == "time from the step's start (ms)"
    assert drawing.spec["resolve"]["scale"]["x"] == "shared"


def test_the_pointer_tells_exact_bytes_of_every_category():
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
