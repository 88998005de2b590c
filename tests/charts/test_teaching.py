from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pages.charts import teaching
from pages.charts.look import DARK, LIGHT, Look
from tests.charts.reading import colour_of, marks

TOLD = ("subject", "title", "reading")
GIB = 2**30


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_stacks_draw_every_part_in_its_colour_and_the_device(style: Look):
    rows = pd.DataFrame(
        {"bar": ["a", "a", "b"], "category": ["parameters", "optimizer", "optimizer"], "bytes": [GIB, 2 * GIB, GIB]}
    )
    drawing = teaching.stacks(rows, ("device", 2 * GIB), TOLD, style)
    [(view, drawn)] = marks(drawing.spec, "bar")
    assert sorted((r["bar"], r["category"], r["amount"]) for r in drawn) == [
        ("a", "optimizer", 2),
        ("a", "parameters", 1),
        ("b", "optimizer", 1),
    ]
    assert colour_of(view) == {code: style.category[code] for code in ("parameters", "optimizer")}
    [(_, line)] = marks(drawing.spec, "rule")
    assert [r["said"] for r in line] == ["device: 2 GiB"]
    assert drawing.table["total"].tolist() == [3 * GIB, GIB]


def test_curves_mark_the_readers_own_point():
    rows = pd.DataFrame({"x": [1, 2, 1, 2], "y": [0.5, 0.25, 1.0, 2.0], "series": ["falls", "falls", "rises", "rises"]})
    drawing = teaching.curves(rows, ("x", "y"), 2, {"falls": LIGHT.blue, "rises": LIGHT.pink}, TOLD, LIGHT)
    [(view, drawn)] = marks(drawing.spec, "line")
    assert len(drawn) == 4
    assert colour_of(view) == {"falls": LIGHT.blue, "rises": LIGHT.pink}
    said = [(view["mark"]["dy"] < 0, [r["y"] for r in rows]) for view, rows in marks(drawing.spec, "text")]
    assert said == [(True, [2.0]), (False, [0.25])]  # above the higher point, and below the lower
    assert drawing.table.columns.tolist() == ["x", "falls", "rises"]


def test_a_heat_map_has_empty_cells_for_nan_and_accepts_repeated_names():
    matrix = np.array([[1.0, np.nan], [0.25, 0.75]])
    drawing = teaching.heat(matrix, ["the", "the"], ["the", "the"], ("from", "at"), TOLD, LIGHT, written=True)
    [(_, cells)] = marks(drawing.spec, "rect")
    assert sorted((c["i"], c["j"], c["value"]) for c in cells) == [(0, 0, 1.0), (1, 0, 0.25), (1, 1, 0.75)]
    assert drawing.table.columns.tolist() == ["from", "the", "the (2)"]


def test_every_column_has_its_value_as_text():
    drawing = teaching.columns(pd.DataFrame({"name": ["stage 0", "stage 1"], "value": [2, 1]}), ("stage", "kept"), TOLD, LIGHT)
    [(_, bars)] = marks(drawing.spec, "bar")
    assert [(b["name"], b["value"]) for b in bars] == [("stage 0", 2), ("stage 1", 1)]
    assert drawing.table.columns.tolist() == ["stage", "kept"]
