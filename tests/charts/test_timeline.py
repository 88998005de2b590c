from __future__ import annotations

import pandas as pd
import pytest

from engine.spec import LayoutSpec, ScheduleName
from engine.topology import Mesh
from pages.charts import timeline
from pages.charts.look import LIGHT, MAX_BARS
from tests.charts import made_up
from tests.charts.reading import colour_of, marks

LAYOUT = LayoutSpec(dp=2, pp=2)
MESH = Mesh(2, 1, 2)


def test_every_span_is_a_bar_in_its_lane():
    spans = made_up.spans(LAYOUT, 4)
    drawing = timeline.measured(spans, MESH, LIGHT)
    track, compute, comm = marks(drawing.spec, "bar")
    assert len(track[1]) == MESH.size
    # Both lanes read the same data, each through its own filter.
    assert compute[1] == comm[1]
    assert len(compute[1]) == len(spans)
    assert [view["transform"][0]["filter"] for view, _ in (compute, comm)] == ["datum.lane == 'compute'", "datum.lane == 'comm'"]
    assert colour_of(compute[0]) == {name: LIGHT.lane[name] for name in ("forward (F)", "backward (B, I)", "send, receive")}
    assert {r["row"] for r in compute[1]} == {"rank 0 · stage 0", "rank 1 · stage 0", "rank 2 · stage 1", "rank 3 · stage 1"}


def test_bars_say_which_pass_of_which_microbatch():
    [(_, rows)] = marks(timeline.measured(made_up.spans(LAYOUT, 4), MESH, LIGHT).spec, "text")
    assert {r["label"] for r in rows if r["lane"] == "compute"} == {f"{kind}{m}" for kind in "FB" for m in range(4)}
    assert {r["label"] for r in rows if r["lane"] == "comm"} == {""}


def test_the_bubble_in_the_title_is_the_tables():
    # 1F1B, 2 stages, 4 microbatches: (pp − 1) ÷ (m + pp − 1) of total time, and 5 slots of 3 units.
    drawing = timeline.measured(made_up.spans(LAYOUT, 4), MESH, LIGHT)
    assert drawing.title == "The bubble takes 20.0% of 15 ms"
    assert "1 − busy ÷ (pp × makespan)" in drawing.reading
    assert "share of total time" in drawing.reading


def test_without_a_pipeline_there_is_no_bubble():
    title = timeline.measured(made_up.spans(LayoutSpec(), 2), Mesh(1, 1, 1), LIGHT).title
    assert title == "One stage, so no bubble: 0.0% of 6 ms is between passes"


def test_above_the_limit_the_first_window_is_drawn_and_the_chart_says_so():
    spans = pd.concat([made_up.spans(LAYOUT, 4)] * 100, ignore_index=True)
    drawing = timeline.measured(spans, MESH, LIGHT)
    [_, (_, rows), _] = marks(drawing.spec, "bar")
    assert len(rows) == MAX_BARS
    assert f"Only the first 3,000 of {len(spans):,} bars are drawn" in drawing.reading
    assert len(drawing.table) == len(spans)


@pytest.mark.parametrize(("schedule", "bubble"), [("naive", "50.0%"), ("gpipe", "20.0%"), ("1f1b", "20.0%")])
def test_the_textbook_draws_every_pass_of_the_schedule(schedule: ScheduleName, bubble: str):
    layout = LayoutSpec(pp=2, schedule=schedule)
    drawing = timeline.textbook(made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT)
    [track, (view, rows)] = marks(drawing.spec, "bar")
    assert len(track[1]) == 2
    assert sorted((r["row"], r["label"]) for r in rows) == sorted(
        (f"stage {s}", f"{k}{m}") for s in (0, 1) for k in "FB" for m in range(4)
    )
    assert f"The bubble takes {bubble} of " in drawing.title
    assert view["encoding"]["x"]["axis"]["title"] == "units of time"


@pytest.mark.parametrize(("schedule", "chunks", "kinds"), [("interleaved", 2, "FB"), ("zb-h1", 1, "FIW"), ("zb-v", 2, "FIW")])
def test_chunks_and_split_backward_passes_are_told_apart(schedule: ScheduleName, chunks: int, kinds: str):
    layout = LayoutSpec(pp=2, schedule=schedule, chunks=chunks)
    drawing = timeline.textbook(made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT)
    [_, (_, rows)] = marks(drawing.spec, "bar")
    assert {r["kind"] for r in rows} >= set(kinds)
    assert {r["turn"] for r in rows} == set(range(chunks))
    assert ("paler" in drawing.reading) == (chunks > 1)
    assert ("halves of B" in drawing.reading) == ("W" in kinds)


def test_a_long_textbook_is_cut_and_says_so():
    layout = LayoutSpec(pp=4)
    drawing = timeline.textbook(made_up.textbook(layout, 400), [f"stage {s}" for s in range(4)], LIGHT)
    [_, (_, rows)] = marks(drawing.spec, "bar")
    assert len(rows) == MAX_BARS
    assert "Only the first 3,000 of 3,200 bars are drawn." in drawing.reading
