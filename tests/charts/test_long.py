"""Every chart draws a run of 16 ranks, 256 microbatches and 10,000 steps with as few marks as a browser needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pandas as pd
import pytest

from engine.predict.run import predict
from engine.tables import CATEGORIES
from pages.charts import beside, loss, matrix, memory, multiples, timeline, traffic
from pages.charts.drawing import Drawing
from pages.charts.look import LIGHT, MAX_BARS
from pages.charts.roles import roles_of
from pages.charts.units import in_bytes
from tests.charts.long import MESH, PEAK_RANK, SPEC, long_run
from tests.charts.reading import marks

MARKS = ("area", "bar", "line", "point", "rect", "rule", "text", "tick")


def whole_step() -> Drawing:
    drawn = timeline.overview(timeline.measured_panel(long_run().tables["spans"], MESH, LIGHT.say), LIGHT)
    assert drawn is not None
    return drawn


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "memory beside": lambda: beside.memory(
        long_run().tables["memory_peak"], predict(SPEC).tables["memory_peak"], None, "", LIGHT
    ),
    "memory alone": lambda: multiples.memory(long_run().tables["memory_peak"], 2**30, LIGHT),
    "curve": lambda: memory.curve(long_run().tables["memory_curve"], PEAK_RANK, LIGHT),
    "traffic beside": lambda: beside.traffic(
        long_run().tables["traffic"], predict(SPEC).tables["traffic"], MESH.size, "wire", None, LIGHT
    ),
    "by rank": lambda: traffic.by_rank(long_run().tables["traffic"], MESH.size, "wire", LIGHT, roles_of(MESH, 1)),
    "matrix": lambda: matrix.matrix(long_run().tables["traffic"], MESH, "wire", LIGHT, roles_of(MESH, 1)),
    "timeline": lambda: timeline.measured(long_run().tables["spans"], MESH, LIGHT, roles_of(MESH, 1)),
    "overview": whole_step,
    "loss": lambda: loss.loss(long_run().tables["steps"], LIGHT),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_view_has_no_more_marks_than_a_browser_can_pan(name: str) -> None:
    spec = DRAWINGS[name]().spec
    drawn = [len(rows) for kind in MARKS for _, rows in marks(spec, kind)]
    assert 0 < max(drawn) <= MAX_BARS


def totals_of_the_curve() -> pd.Series[int]:
    """Total bytes by instant. If actions take no time, there are several totals, and the highest counts."""
    curve = long_run().tables["memory_curve"]
    mine = curve[curve["rank"] == PEAK_RANK].reset_index(drop=True)
    points = mine.groupby(mine.index // len(CATEGORIES)).agg({"t_ns": "first", "bytes": "sum"})
    return points.groupby("t_ns")["bytes"].max()


def test_a_thinned_curve_has_its_peak_and_says_what_is_left_out() -> None:
    curve, totals = long_run().tables["memory_curve"], totals_of_the_curve()
    drawing = memory.curve(curve, PEAK_RANK, LIGHT)
    [(_, pointers)] = marks(drawing.spec, "rule")
    assert len(pointers) < len(totals)
    assert max(row["total"] for row in pointers) == totals.max()
    assert in_bytes(totals.max()) in drawing.title
    assert f"{len(pointers):,} of {len(totals):,} moments are drawn" in drawing.reading
    assert len(drawing.table) >= len(totals)  # the table has all rows


def test_a_thinned_curve_holds_the_highest_of_every_stretch() -> None:
    curve, totals = long_run().tables["memory_curve"], totals_of_the_curve()
    [(_, pointers)] = marks(memory.curve(curve, PEAK_RANK, LIGHT).spec, "rule")
    drawn = {row["t_ns"]: row["total"] for row in pointers}
    times = sorted(drawn)
    for start, end in zip(times[:-40:40], times[40::40], strict=False):
        assert totals.loc[start:end].max() == max(drawn[t] for t in times if start <= t <= end)


def test_the_strip_of_actions_covers_the_whole_step() -> None:
    curve = long_run().tables["memory_curve"]
    [(_, bars)] = marks(memory.curve(curve, PEAK_RANK, LIGHT).spec, "bar")
    assert bars[0]["start"] == 0
    assert all(one["end"] == pytest.approx(other["start"]) for one, other in itertools.pairwise(bars))
    for bar in bars:  # an interval has the name and the times of its longest action
        assert bar["start"] <= bar["began"] <= bar["ended"] <= bar["end"] + 1e-9
    assert any(bar["ended"] - bar["began"] < bar["end"] - bar["start"] for bar in bars)


def test_a_thinned_loss_keeps_its_ends_and_extremes() -> None:
    steps = long_run().tables["steps"].copy()
    steps.loc[5_000, "loss"] = 9.0  # one step is an outlier
    steps.loc[5_001, "loss"] = math.nan  # and the next is NaN
    [(_, rows)] = marks(loss.loss(steps, LIGHT).spec, "line")
    assert (rows[0]["step"], rows[-1]["step"]) == (1, 10_000)
    assert max(row["loss"] for row in rows) == 9.0


def test_with_too_many_ranks_some_are_drawn_and_the_title_is_about_all() -> None:
    passed = long_run().tables["traffic"]
    one = passed[passed["rank"] == 0]
    several = one.loc[one.index.repeat(3_000)].assign(rank=list(range(3_000)) * len(one))
    several.loc[several["rank"] == 1, "wire_bytes"] *= 2
    drawing = traffic.by_rank(several, 3_000, "wire", LIGHT)
    assert max(len(rows) for _, rows in marks(drawing.spec, "bar")) <= MAX_BARS
    assert drawing.title.startswith("Rank 1 sends most")
    assert "750 of 3,000 ranks are drawn." in drawing.reading
