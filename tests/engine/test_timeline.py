"""Predicted timelines: the simulator agrees with papers and with a run's times, and finds the critical path."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from engine.predict.spans import projected, spans_table
from engine.schedule import SCHEDULES, Action, bubble, plan
from engine.schedule.timeline import Durations, Timeline, simulate, slowed, textbook
from engine.spec import SCHEDULE_FACTS, LayoutSpec, RunSpec, ScheduleName, WorkloadSpec
from engine.tables import SCHEMAS
from tests.runs import Runs, small

PIPELINES = [  # schedule, p, m, v: from those that just fill the pipeline to many microbatches
    (name, p, m, v)
    for name, facts in SCHEDULE_FACTS.items()
    for v in ((facts.chunks,) if facts.chunks else (2, 3, 4))
    for p in (1, 2, 3, 5, 8)
    for m in (p, 2 * p, 3 * p, 6 * p)
    if m >= facts.closed_from(p)
]


def textbook_of(name: ScheduleName, p: int, m: int, v: int) -> Timeline:
    layout = LayoutSpec(pp=p, schedule=name, chunks=v)
    return simulate(plan(layout, m), textbook(layout))


def test_the_bubble_in_textbook_times_equals_the_papers() -> None:
    for name, p, m, v in PIPELINES:
        timeline = textbook_of(name, p, m, v)
        assert timeline.bubble == pytest.approx(SCHEDULE_FACTS[name].bubble_share(p, m, v), abs=1e-12), (name, p, m, v)
        assert timeline.bubble == pytest.approx(bubble(timeline.timed, p), abs=1e-12)
        assert timeline.busy == pytest.approx([3 * m] * p), "every stage does 3 units a microbatch"


def test_the_bubble_of_1f1b_as_a_share_of_ideal_time_is_p_minus_1_over_m() -> None:
    assert textbook_of("1f1b", 4, 12, 1).bubble_of_ideal == pytest.approx(3 / 12)
    assert textbook_of("interleaved", 4, 12, 2).bubble_of_ideal == pytest.approx(3 / 24)


def alike(chunks: int, f: float, i: float, w: float) -> Durations:
    times = {"F": f, "B": i + w, "I": i, "W": w}
    return Durations({(kind, chunk): time for kind, time in times.items() for chunk in range(chunks)})  # type: ignore[misc]


def uneven(random: np.random.Generator, layout: LayoutSpec) -> Durations:
    """Different times for each chunk, and for messages."""
    chunks = range(layout.pp * layout.chunks)
    compute = {(kind, c): float(random.integers(1, 12)) for kind in ("F", "B", "I", "W") for c in chunks}
    messages = {(flow, c): float(random.integers(0, 6)) for flow in ("activation", "gradient") for c in chunks}
    ends = {("step", stage): float(random.integers(0, 9)) for stage in range(layout.pp)}
    return Durations(compute, messages, ends)  # type: ignore[arg-type]


def some_layouts(count: int, seed: int) -> list[tuple[LayoutSpec, np.random.Generator]]:
    random = np.random.default_rng(seed)
    names = [SCHEDULES[i % len(SCHEDULES)] for i in range(count)]
    chunks = [SCHEDULE_FACTS[name].chunks or 3 for name in names]
    return [(LayoutSpec(pp=int(random.integers(1, 6)), schedule=n, chunks=v), random) for n, v in zip(names, chunks, strict=True)]


def test_the_critical_path_is_as_long_as_the_step() -> None:
    """Following what each action waited for, the times of its actions and messages add up to the makespan."""
    for layout, random in some_layouts(70, seed=7):
        durations = uneven(random, layout)
        timeline = simulate(plan(layout, 2 * layout.pp * int(random.integers(1, 3))), durations)
        path = timeline.critical_path
        length = 0.0
        for before, action in zip((None, *path), path, strict=False):
            hop = before is not None and before.stage != action.stage
            if action.action.kind == "recv" and hop:
                assert before is not None
                assert before.action.kind == "send"
                length += durations(before.stage, before.action)  # the message's way
            elif action.action.kind not in ("send", "recv"):
                assert not hop, "only a message leads from stage to stage"
                length += durations(action.stage, action.action)
        assert (path[0].start, path[-1].end) == (0, timeline.makespan)
        assert length == pytest.approx(timeline.makespan), layout


def like_a_model(random: np.random.Generator, layout: LayoutSpec) -> Durations:
    """Layers alike, what is at the two ends on top, and every message as long as the others."""
    last = layout.pp * layout.chunks - 1
    ends = {0: float(random.integers(0, 2)), last: float(random.integers(0, 7))}
    f, more, under_way = float(random.integers(8, 13)), float(random.integers(0, 4)), float(random.integers(0, 3))
    layers = alike(last + 1, f, f + more, f).compute
    compute = {(kind, chunk): time + ends.get(chunk, 0) for (kind, chunk), time in layers.items()}
    messages = {(flow, chunk): under_way for flow in ("activation", "gradient") for chunk in range(last + 1)}
    return Durations(compute, messages)  # type: ignore[arg-type]


def test_a_slow_stage_makes_the_others_wait() -> None:
    layout = LayoutSpec(pp=4)
    even = textbook(layout)
    before, after = (simulate(plan(layout, 8), d) for d in (even, slowed(even, 2, 2.0)))
    assert after.busy == pytest.approx([24, 24, 48, 24])
    assert after.bubble > before.bubble
    assert after.idle[0] > before.idle[0] + 20
    twice = simulate(plan(layout, 8), slowed(slowed(even, 2, 2.0), 2, 0.5))
    assert twice.timed == before.timed
    # Filling the pipeline, then only the slow stage, then draining.
    assert sum(t.stage == 2 for t in after.critical_path) > len(after.critical_path) / 2


def test_a_projection_gives_each_action_its_measured_time(runs: Runs) -> None:
    """As if each rank had its own device: a stage's ranks are averaged, and nothing of the wall clock is left."""
    spec = small("dp2.pp2", "1f1b", microbatches=3)
    spans = runs.result(spec).tables["spans"]
    timeline = simulate(plan(spec.layout, 3), projected(spec, spans))
    compute = spans[spans["lane"] == "compute"]
    passes = compute[compute["kind"].isin(["F", "B"])]
    for stage, busy in enumerate(timeline.busy):
        assert busy == pytest.approx(passes[passes["rank"] // 2 == stage]["cpu_ns"].sum() / 2)
    assert max(timeline.busy) <= timeline.pipeline <= sum(timeline.busy)
    drawn = spans_table(spec, timeline)
    same = ["rank", "kind", "chunk", "microbatch"]
    assert sorted(map(tuple, drawn[same].to_numpy())) == sorted(map(tuple, compute[same].to_numpy()))
    step = drawn[(drawn["rank"] == 3) & (drawn["kind"] == "step")].iloc[0]
    assert step["cpu_ns"] == round(compute[(compute["rank"] >= 2) & (compute["kind"] == "step")]["cpu_ns"].mean())


def test_a_predicted_timeline_has_the_form_of_a_measured_one() -> None:
    """Each rank of a stage has its rows; in a huge layout, a stage's first rank stands for the others."""
    for dp, ranks in ((2, range(8)), (64, range(0, 256, 64))):
        spec = RunSpec(layout=LayoutSpec(dp=dp, pp=4), workload=WorkloadSpec(microbatches=5))
        table = spans_table(spec, simulate(plan(spec.layout, 5), textbook(spec.layout)), unit_ns=1e6)
        assert list(table.columns) == list(SCHEMAS["spans"])
        assert list(table.dtypes) == [pd.Series(dtype=t).dtype for t in SCHEMAS["spans"].values()]
        assert list(table["rank"].unique()) == list(ranks)
        assert table[table["kind"] == "B"].eval("end_ns - start_ns").unique().tolist() == [2_000_000]
        assert table.groupby("rank")["start_ns"].apply(lambda starts: starts.is_monotonic_increasing).all()


def test_a_message_delays_its_receiver_and_not_its_sender() -> None:
    layout = LayoutSpec(pp=2, schedule="gpipe")
    durations = Durations(alike(2, 1.0, 1.0, 1.0).compute, {("activation", 0): 5.0})
    first = {t.stage: t for t in simulate(plan(layout, 1), durations).timed if t.action.kind == "F"}
    assert (first[0].end, first[1].start) == (1.0, 6.0)
    assert Action("send", 0, 0, "activation", 1) in [t.action for t in simulate(plan(layout, 1), durations).spans(0)]
