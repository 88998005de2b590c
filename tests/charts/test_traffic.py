from __future__ import annotations

import pandas as pd

from pages.charts import traffic
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import marks


def test_every_rank_has_its_bars():
    drawing = traffic.by_rank(made_up.traffic(), 2, "wire", LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert {(r["rank"], r["axis"], r["bytes"]) for r in rows} == {(0, "tp", 4096), (0, "pp", 3072), (1, "tp", 4096), (1, "pp", 0)}
    assert drawing.title == "Rank 0 sends most: 7 KiB in a step, against 4 KiB on rank 1"


def test_ranks_that_tie_are_named_together():
    one = made_up.traffic()
    both = pd.concat([one, one.assign(rank=one["rank"] + 2)], ignore_index=True)
    title = traffic.by_rank(both, 4, "wire", LIGHT).title
    assert title == "Ranks 0, 2 send most: 7 KiB each in a step, against 4 KiB on ranks 1, 3"


def test_numbers_that_are_written_alike_make_no_difference():
    rows = made_up.traffic()
    near = rows[rows["axis"] == "tp"].assign(wire_bytes=[1_500_000, 1_500_008])
    assert traffic.by_rank(near, 2, "wire", LIGHT).title == "All ranks send nearly the same: 1.43 MiB in a step"


def test_a_single_rank_has_no_traffic():
    nothing = made_up.traffic().iloc[:0]
    assert traffic.by_rank(nothing, 1, "wire", LIGHT).title == "Every rank sends the same: 0 B in a step"
