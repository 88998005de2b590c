from __future__ import annotations

import pandas as pd
import pytest

from engine.schedule import plan
from engine.schedule.timeline import simulate, slowed
from engine.schedule.timeline import textbook as unit_times
from engine.spec import LayoutSpec, ScheduleName
from engine.topology import Mesh
from pages.charts import timeline
from pages.charts.critical import critical_path
from pages.charts.look import LIGHT, MAX_BARS
from tests.charts import made_up
from tests.charts.reading import colour_of, marks

LAYOUT = LayoutSpec(dp=2, pp=2)
MESH = Mesh({"dp": 2, "pp": 2})
MS = made_up.MS


def test_every_span_is_a_bar_in_its_lane():
    spans = made_up.spans(LAYOUT, 4)
    drawing = timeline.measured(spans, MESH, LIGHT)
    track, compute, comm, _, _ = marks(drawing.spec, "bar")
    assert len(track[1]) == MESH.size
    # Both lanes read the same data, each through its own filter.
    assert compute[1] == comm[1]
    assert len(compute[1]) == len(spans)
    assert [view["transform"][0]["filter"] for view, _ in (compute, comm)] == ["datum.lane == 'compute'", "datum.lane == 'comm'"]
    assert colour_of(compute[0]) == {name: LIGHT.lane[name] for name in ("forward (F)", "backward (B, I)", "send, receive")}
    # Stage 0 idles for 3 of 15 ms, between its passes; stage 1 before its first and after its last.
    assert {r["who"] for r in compute[1]} == {f"rank {r} · stage {r // 2} · idle 20.0%" for r in range(4)}


def test_labels_of_bars_name_the_pass_and_the_microbatch():
    [(_, rows)] = marks(timeline.measured(made_up.spans(LAYOUT, 4), MESH, LIGHT).spec, "text")
    assert {r["label"] for r in rows if r["lane"] == "compute"} == {f"{kind}{m}" for kind in "FB" for m in range(4)}
    assert {r["label"] for r in rows if r["lane"] == "comm"} == {""}


def test_the_bubble_is_given_as_a_share_of_total_and_of_ideal_time():
    # 1F1B, 2 stages, 4 microbatches: (pp − 1) ÷ (m + pp − 1) of total time, 1 ÷ 4 of ideal time, and 5 slots of 3 units.
    drawing = timeline.measured(made_up.spans(LAYOUT, 4), MESH, LIGHT)
    assert drawing.title == "The bubble takes 20.0% of 15 ms"
    assert "1 − busy ÷ (pp × makespan)" in drawing.reading
    assert "share of total time" in drawing.reading
    assert "(p − 1) ÷ m mean idle ÷ busy, a share of the ideal time: here 25.0%." in drawing.reading


def test_without_a_pipeline_there_is_no_bubble():
    title = timeline.measured(made_up.spans(LayoutSpec(), 2), Mesh({}), LIGHT).title
    assert title == "One stage, so no bubble: 0.0% of 6 ms is between passes"


def test_above_the_limit_the_first_part_or_the_brushed_part_is_drawn():
    once = made_up.spans(LAYOUT, 4)
    later = [once.assign(start_ns=once["start_ns"] + 20 * MS * i, end_ns=once["end_ns"] + 20 * MS * i) for i in range(100)]
    spans = pd.concat(later, ignore_index=True)
    drawing = timeline.measured(spans, MESH, LIGHT)
    assert len(marks(drawing.spec, "bar")[1][1]) == 32 * MESH.size  # as many as can be distinguished
    assert f"Only 128 of {len(spans):,} bars are drawn" in drawing.reading
    assert len(drawing.table) == len(spans)

    brushed = timeline.measured(spans, MESH, LIGHT, window=(40 * MS, 60 * MS))
    track, compute, *_ = marks(brushed.spec, "bar")
    assert len(compute[1]) == len(once)
    assert {(r["start"], r["end"]) for r in track[1]} == {(0.04, 0.06)}  # in seconds, because the whole step takes 2 s
    whole = timeline.measured(spans, MESH, LIGHT, window=(0, 2_000 * MS))
    assert len(marks(whole.spec, "bar")[1][1]) == MAX_BARS

    strip = timeline.overview(timeline.measured_panel(spans, MESH, LIGHT.say), LIGHT)
    assert strip is not None
    [(view, cells)] = marks(strip.spec, "rect")
    assert len(cells) <= MAX_BARS
    assert view["encoding"]["x"]["field"] == "start"
    # Each of 4 rows is busy for 12 of every 20 ms of 2 s, less the wait after the last.
    seconds = sum(c["busy"] * (c["end"] - c["start"]) for c in cells)
    assert seconds == pytest.approx(4 * 100 * 12e-3, rel=1e-6)


def test_a_step_that_is_drawn_whole_has_no_overview():
    assert timeline.overview(timeline.measured_panel(made_up.spans(LAYOUT, 4), MESH, LIGHT.say), LIGHT) is None


@pytest.mark.parametrize(("schedule", "bubble"), [("naive", "50.0%"), ("gpipe", "20.0%"), ("1f1b", "20.0%")])
def test_the_textbook_draws_every_pass_of_the_schedule(schedule: ScheduleName, bubble: str):
    layout = LayoutSpec(pp=2, schedule=schedule)
    drawing = timeline.textbook(made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT)
    track, (view, rows), *_ = marks(drawing.spec, "bar")
    assert len(track[1]) == 2
    assert sorted((r["row"], r["label"]) for r in rows) == sorted(
        (f"textbook {s}", f"{k}{m}") for s in (0, 1) for k in "FB" for m in range(4)
    )
    assert {r["who"] for r in rows} == {f"stage {s} · idle {bubble}" for s in (0, 1)}
    assert f"The bubble takes {bubble} of " in drawing.title
    assert view["encoding"]["x"]["axis"]["title"] == "units of time"


@pytest.mark.parametrize(("schedule", "chunks", "kinds"), [("interleaved", 2, "FB"), ("zb-h1", 1, "FIW"), ("zb-v", 2, "FIW")])
def test_chunks_and_split_backward_passes_are_distinguished(schedule: ScheduleName, chunks: int, kinds: str):
    layout = LayoutSpec(pp=2, schedule=schedule, chunks=chunks)
    drawing = timeline.textbook(made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT)
    _, (_, rows), *_ = marks(drawing.spec, "bar")
    assert {r["kind"] for r in rows} >= set(kinds)
    assert {r["turn"] for r in rows} == set(range(chunks))
    assert ("paler" in drawing.reading) == (chunks > 1)
    assert ("halves of B" in drawing.reading) == ("W" in kinds)


def test_the_critical_path_is_outlined_in_textbook_and_measured_timelines():
    # Forward with the first microbatch, back with the last, without waiting: 15 units of 15.
    layout = LayoutSpec(pp=2)
    drawing = timeline.textbook(made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT)
    _, _, (_, path), _ = marks(drawing.spec, "bar")
    assert sum(r["end"] - r["start"] for r in path if r["critical"]) == 15
    spans = made_up.spans(layout, 4)
    found = spans.loc[sorted(critical_path(spans, Mesh({"pp": 2})))].sort_values("start_ns")
    assert found["start_ns"].iloc[0] == 0
    assert found["end_ns"].iloc[-1] == 15 * MS
    assert found["start_ns"].iloc[1:].tolist() == found["end_ns"].iloc[:-1].tolist()


def test_a_slow_stage_increases_the_bubble_and_the_title_has_both_values():
    layout = LayoutSpec(pp=2)
    schedule = plan(layout, 4)
    plain, slow = simulate(schedule, unit_times(layout)), simulate(schedule, slowed(unit_times(layout), 1, 2.0))
    drawing = timeline.textbook(slow.timed, ["stage 0", "stage 1"], LIGHT, timeline.Slowed(1, 2.0, plain.bubble))
    # Stage 1 works for 4 × 6 of 1 + 24 + 2 units and stage 0 for 12: 1 − 36 ÷ 54.
    assert drawing.title == "With stage 1 slowed 2×, the bubble takes 33.3% of 27 units of time; without, 20.0%"


def test_several_timelines_share_a_time_axis_and_have_headings():
    layout = LayoutSpec(pp=2)
    panels = [
        timeline.measured_panel(made_up.spans(layout, 4), Mesh({"pp": 2}), LIGHT.say),
        timeline.replayed_panel("projected", made_up.textbook(layout, 4), ["stage 0", "stage 1"], LIGHT.say, unit_ns=0.5 * MS),
    ]
    drawing = timeline.draw(panels, LIGHT)
    track, (view, rows), *_ = marks(drawing.spec, "bar")
    assert {(r["start"], r["end"]) for r in track[1]} == {(0.0, 15.5)}
    assert max(r["end"] for r in rows if r["row"].startswith("projected")) == 7.5
    assert drawing.title == "measured: bubble 20.0% of 15 ms · projected: bubble 20.0% of 7.50 ms"
    assert '"measured": "MEASURED"' in view["encoding"]["y"]["axis"]["labelExpr"]


def test_with_very_many_rows_the_first_are_drawn():
    layout = LayoutSpec(pp=200)
    timed = made_up.textbook(layout, 2)
    drawing = timeline.textbook(timed, [f"stage {stage}" for stage in range(200)], LIGHT)
    assert {row["row"] for row in drawing.spec["datasets"]["bars"]} <= {timeline.row_key("textbook", s) for s in range(128)}
    assert len(drawing.spec["datasets"]["tracks"]) == 128
    assert "The first 128 of 200 rows are drawn." in drawing.reading
    assert "The bubble takes" in drawing.title, "of all of them"
