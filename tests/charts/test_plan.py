"""Charts of a plan: ranges of axes, layouts that do not fit, and the parts of a step."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import vl_convert

from engine.predict.memory import memory
from engine.spec import LayoutSpec, RunSpec
from pages.charts import heatmap, plan
from pages.charts.look import LIGHT
from pages.plan.found import MOST_POINTS, Found
from pages.plan.found import found as found_of
from pages.plan.request import Request
from tests.charts.reading import marks, views

REQUEST = Request(model="gpt3-13b", ranks=64, batch=128, accounting="korthikanti2022")


@pytest.fixture(scope="module")
def found() -> Found:
    return found_of(REQUEST)


def test_the_front_fills_its_axes_and_its_table_has_the_drawn_layouts(found: Found):
    drawing = plan.front(found.layouts, found.count, found.feasible, found.device.memory_bytes, "h100-80gb", 0, LIGHT)
    points = next((view, rows) for view, rows in marks(drawing.spec, "point") if "shape" in view["encoding"])
    steps = [row["step_s"] for row in points[1]]
    low, high = points[0]["encoding"]["y"]["scale"]["domain"]
    assert (low, high) == (pytest.approx(min(steps) / 1.12), pytest.approx(max(steps) * 1.12))
    assert max(steps) < 50 * min(steps)
    assert 3 <= len(points[0]["encoding"]["y"]["axis"]["values"]) <= 12
    fastest = REQUEST.plan().layouts["step_s"].min()  # of all layouts; it does not fit, and is not in the chart's sample
    front = found.layouts[found.layouts["pareto"] & (found.layouts["step_s"] <= 40 * fastest)]
    assert {row["row"] for row in points[1] if row["pareto"]} == set(front.index)
    assert len(drawing.table) == len(points[1]) <= 1.5 * MOST_POINTS < found.count
    assert any(view["mark"]["type"] == "rule" for view in views(drawing.spec))


def test_stages_that_do_not_fit_are_named_together():
    held = [peak.bytes for peak in memory(RunSpec(layout=LayoutSpec(pp=2))).peaks]
    totals = [sum(one.values()) for one in held]
    small = plan.stages(held, min(totals) - 1, 0, "tiny", LIGHT)
    assert small.title.startswith("It does not fit on stages 0–1: stage 0 needs ")
    large = plan.stages(held, 10 * max(totals), 0, "big", LIGHT)
    assert large.title.startswith("It fits: stage 0 is fullest")
    assert plan.ranges([4, 0, 1, 2, 7, 8]) == "0–2, 4, 7–8"


def test_what_is_kept_free_is_a_band_below_the_capacity():
    held = [peak.bytes for peak in memory(RunSpec(layout=LayoutSpec(pp=2))).peaks]
    most = max(sum(one.values()) for one in held)
    close = plan.stages(held, most + 10, 11, "close", LIGHT)
    assert close.title.startswith("It does not fit on stage 0, which needs ")
    assert "The grey band is kept free" in close.reading
    [(_, rows)] = marks(close.spec, "rect")
    assert [row["text"] for row in rows] == ["11 B kept free"]
    assert "11 B kept free" in vl_convert.vegalite_to_svg(json.loads(json.dumps(close.spec)))
    assert not marks(plan.stages(held, most, 0, "exact", LIGHT).spec, "rect")
    alone = plan.stages([{"parameters": 2**30}], 2**30 + 5, 6, "one", LIGHT)
    assert alone.title == "It does not fit: each rank needs 1 GiB beside 6 B and has 1.00 GiB"


def test_the_parts_of_a_step_add_up():
    parts = {"compute": 3.0, "tp": 1.0, "cp": 0.0, "ep": 0.0, "pp": 0.0, "dp": 0.5, "update": 0.25, "idle": 0.25}
    drawing = plan.step_parts({"1 · dp1.tp1.pp1": parts}, LIGHT)
    assert drawing.title == "60.0% of the step is compute; the rest is waiting"
    [(_, rows)] = marks(drawing.spec, "bar")
    assert sum(row["seconds"] for row in rows) == 5.0


def test_a_cell_without_a_layout_has_the_reason():
    cells = pd.DataFrame(
        {
            "model": ["a", "b", "c"], "ranks": [1] * 3, "layout": ["dp1.tp1.pp1", "dp1.tp1.pp1", ""],
            "mfu": [0.5, *2 * [float("nan")]], "memory_bytes": [2**30, 2**40, 0], "reason": ["", "needs more", "no layout"],
        }
    )  # fmt: skip
    drawing = heatmap.heatmap(cells, LIGHT)
    [(_, good), (_, bad)] = marks(drawing.spec, "rect")
    assert [(row["text"], row["why"]) for row in (*good, *bad)] == [
        ("50%", "fits"), ("too large", "needs more"), ("–", "no layout"),
    ]  # fmt: skip
    assert drawing.title == "1 of 3 combinations fit"
    assert "too large" in vl_convert.vegalite_to_svg(json.loads(json.dumps(drawing.spec)))  # raises for an invalid spec
