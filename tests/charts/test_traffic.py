from __future__ import annotations

from pages.charts import traffic
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import marks


def test_every_rank_has_its_bars():
    drawing = traffic.by_rank(made_up.traffic(), 2, "wire", LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert {(r["rank"], r["axis"], r["bytes"]) for r in rows} == {(0, "tp", 4096), (0, "pp", 3072), (1, "tp", 4096), (1, "pp", 0)}
    assert drawing.title == "Rank 0 sends most: 7 KiB in a step, against 4 KiB on rank 1"


def test_a_single_rank_has_no_traffic():
    nothing = made_up.traffic().iloc[:0]
    assert traffic.by_rank(nothing, 1, "wire", LIGHT).title == "Every rank sends the same: 0 B in a step"
