"""Small charts side by side: they share one scale, and equal values are reported."""

from __future__ import annotations

import pandas as pd

from engine.topology import Mesh
from pages.charts import multiples
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import marks


def domain(view: dict, axis: str) -> list[float]:
    return view["encoding"][axis]["scale"]["domain"]


def test_columns_use_the_given_scale():
    peak = made_up.memory_peak(Mesh({"pp": 2}))
    [(view, rows)] = marks(multiples.memory(peak, 84 * 1024, LIGHT).spec, "bar")
    assert domain(view, "y")[1] >= 84
    assert sum(row["amount"] for row in rows if row["rank"] == 0) == 42
    drawing = multiples.traffic(made_up.traffic(), 2, 8192, (("tp", "all_reduce"), ("dp", "all_gather")), LIGHT)
    [(view, rows)] = marks(drawing.spec, "bar")
    assert domain(view, "x")[1] >= 8
    assert {row["name"]: row["said"] for row in rows} == {"tp all_reduce": "4 KiB", "dp all_gather": "–"}


def test_with_very_many_ranks_each_stage_has_a_bar_and_the_table_has_all_ranks():
    drawing = multiples.memory(made_up.memory_peak(Mesh({"dp": 16, "tp": 4, "pp": 2})), 42 * 1024, LIGHT)
    [(_, rows)] = marks(drawing.spec, "bar")
    assert {row["rank"] for row in rows} == {0, 64}
    assert len(drawing.table) == 128


def test_a_sweep_names_the_smallest_value_or_says_that_all_are_equal():
    names = {"1": "one", "2": "two"}
    memory = pd.DataFrame({"category": ["gradients"] * 2, "bytes": [4096, 1024], "value": ["1", "2"]})
    drawing = multiples.sweep_memory(memory, "Setting", names, "1", LIGHT)
    assert drawing.title == "Least with two: 1 KiB"
    assert {row["name"]: row["weight"] for row in marks(drawing.spec, "text")[0][1]} == {"one": "bold", "two": "normal"}
    figures = pd.DataFrame({"value": ["1", "2"], "wire_bytes_per_rank": [2048.0, 2048.0], "bubble": [0.2, 0.2]})
    assert multiples.sweep_traffic(figures, "Setting", names, "1", LIGHT).title == "The same for every value: 2 KiB"
    assert multiples.sweep_bubble(figures, "Setting", names, "1", LIGHT).title == "The same for every value: 20.0%"
