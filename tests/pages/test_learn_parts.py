"""What lessons are made of, without their page: small models in numpy, terms that unfold, and scenes."""

from __future__ import annotations

import numpy as np
import pytest

from engine.schedule import SCHEDULES, in_flight, plan
from engine.spec import ScheduleName
from pages.charts.look import View, look
from pages.charts.words import LANGUAGES, Language, words
from pages.learn import ring, toys
from pages.learn.glossary import terms, unfolding
from pages.learn.lessons.data import overlapped, spread_of
from pages.learn.lessons.pipeline import layout_of, timed
from pages.learn.lessons.tensor import reduced
from pages.learn.ring import Cut
from pages.learn.routing import Routing
from pages.learn.scene import WIDTH
from pages.learn.scenes.pipeline import scene as pipeline_scene
from pages.learn.scenes.ring import scene as ring_scene
from pages.learn.scenes.zero import scene as zero_scene


@pytest.mark.parametrize("dp", [1, 2, 4, 8])
def test_the_average_of_the_replicas_gradients_is_the_gradient_of_the_whole_batch(dp: int):
    data, w = toys.Regression.drawn(8), np.array([0.5, 0.5, 0.5])
    mean = np.mean([data.part(index, dp).gradient(w) for index in range(dp)], axis=0)
    np.testing.assert_allclose(mean, data.gradient(w), rtol=1e-12)
    assert spread_of(toys.replicas(data, dp, 5, average=True)).max() == 0
    assert (spread_of(toys.replicas(data, dp, 5, average=False))[-1] > 0) == (dp > 1)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_slices_add_up_to_the_result_of_one_device(tp: int):
    layers = toys.TwoLayers.drawn(1)
    slices = layers.slices(tp)
    inner = np.maximum(layers.x @ layers.a, 0)
    np.testing.assert_array_equal(reduced(slices), inner @ layers.b)
    inner_gradient = (layers.gradient @ layers.b.T) * (inner > 0)
    np.testing.assert_array_equal(sum(s.input_partial for s in slices), inner_gradient @ layers.a.T)
    np.testing.assert_array_equal(np.hstack([s.a_gradient for s in slices]), layers.x.T @ inner_gradient)
    np.testing.assert_array_equal(np.vstack([s.b_gradient for s in slices]), inner.T @ layers.gradient)


# ------------------------------------------------------------------------------------------------------------ glossary


def test_a_term_in_bold_chinese_stays_bold():
    """There are no blanks around it, which Markdown would need."""
    shown = unfolding("切成**微批次**后", words("zh"), set())
    assert shown.startswith('切成<b><span class="ss-term" tabindex="0" aria-describedby="meaning-1">微批次<span')
    assert shown.endswith("</span></span></b>后")


@pytest.mark.parametrize("language", LANGUAGES)
def test_terms_unfold_where_they_occur_first(language: Language):
    say = words(language)
    term, meaning = next(iter(terms(say).items()))
    shown = unfolding(f"{term}, {term}, `{term}`", say, set())
    assert shown.count(f'<span class="ss-meaning" id="meaning-1" role="tooltip">{meaning}</span>') == 1
    assert shown.endswith(f", {term}, `{term}`")
    assert unfolding(term, say, {term.lower()}) == term


@pytest.mark.parametrize(
    ("language", "markdown"), [("en", "the activation functions"), ("zh", "称它为全分片数据并行"), ("zh", "MLP 的激活函数")]
)
def test_a_term_inside_another_word_is_not_marked(language: Language, markdown: str):
    assert unfolding(markdown, words(language), set()) == markdown


def test_a_plural_is_marked_whole_in_chinese_too():
    assert ">logits<span" in unfolding("一条序列的 logits 占", words("zh"), set())


# -------------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pipelines_scene_keeps_what_the_schedule_keeps(schedule: ScheduleName):
    """At each stage, the most squares at a time are the microbatches in flight, in chunks."""
    layout = layout_of(schedule, 4, 16)
    scene = pipeline_scene(timed(layout, 16), look(View("light", "en")))
    kept = [[int(part) for part in said.removesuffix(".").rpartition(": ")[2].split(", ")] for said in scene.said]
    most = [max(counts[stage] for counts in kept) for stage in range(4)]
    assert most == [in_flight(plan(layout, 16), stage) for stage in range(4)]
    assert kept[-1] == [0, 0, 0, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pipelines_scene_has_a_circle_for_each_pass(schedule: ScheduleName):
    found = timed(layout_of(schedule, 4, 16), 16)
    scene = pipeline_scene(found, look(View("light", "en")))
    circles = [thing for thing in scene.things if "<circle" in thing.svg]
    assert all([step for step, *_ in thing.at] == sorted({step for step, *_ in thing.at}) for thing in scene.things)
    passes = [one for one in found.timed if one.action.kind in "FBIW"]
    times = sorted({one.start for one in passes} | {max(one.end for one in passes)})
    for step, time in enumerate(times):
        at = [next((entry for entry in reversed(thing.at) if entry[0] <= step), (0, 0.0, 0.0, 0.0)) for thing in circles]
        stages = sorted(int(x // (WIDTH / 4)) for _, x, _, opacity in at if opacity)
        assert stages == sorted(one.stage for one in passes if one.start <= time < one.end)


@pytest.mark.parametrize("zero", range(4))
def test_zeros_scene_ends_as_it_began(zero: int):
    """After a step each replica holds what it held before it."""
    scene = zero_scene(zero, look(View("light", "en")))

    def held(step: int) -> list[tuple[float, float]]:
        at = [next((entry for entry in reversed(thing.at) if entry[0] <= step), thing.at[0]) for thing in scene.things]
        return sorted((x, y) for _, x, y, opacity in at if opacity)

    assert held(0) == held(len(scene.said) - 1)
    assert len(held(0)) == {0: 64, 1: 40, 2: 40, 3: 16}[zero]


@pytest.mark.parametrize("cut", ["order", "ends"])
@pytest.mark.parametrize("cp", [2, 4])
def test_a_ring_computes_every_visible_block_once(cp: int, cut: Cut):
    """With a chunk from each end, as the engine cuts, all ranks have the same work in every pass."""
    done = [block for step in range(cp) for rank in range(cp) for block in ring.blocks(rank, step, cp, cut)]
    assert sorted(done) == [(query, key) for query in range(2 * cp) for key in range(query + 1)]
    loads = [{ring.work(rank, step, cp, cut) for rank in range(cp)} for step in range(cp)]
    assert all(len(load) == 1 for load in loads) == (cut == "ends")
    squares = [thing for thing in ring_scene(cp, cut, look(View("light", "en"))).things if "<text" not in thing.svg]
    assert len(squares) == len(done)


def test_a_row_in_parts_is_the_row_as_a_whole():
    draw = np.random.default_rng(0)
    scores, values, row = draw.normal(size=12), draw.normal(size=12), ring.Running()
    for part in (slice(0, 5), slice(5, 8), slice(8, 12)):
        row.add(scores[part], values[part])
    assert row.mixed == pytest.approx(np.exp(scores) @ values / np.exp(scores).sum())


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_every_choice_of_an_expert_is_sent_or_dropped(capacity: float):
    routing = Routing.drawn(2, 2.0, capacity)
    sent = sum(routing.sent(rank, other) for rank in range(2) for other in range(2))
    assert sent + len(routing.dropped) == 12 * 2
    assert bool(routing.dropped) == bool(capacity)
    if capacity:
        assert max(routing.load(expert) for expert in range(4)) == 12 * 2 * capacity / 4


@pytest.mark.parametrize("encoding", ["sinusoidal", "learned", "rotary"])
def test_with_rotary_positions_a_score_depends_on_the_distance_alone(encoding: str):
    here, there = (toys.scores_by_distance(encoding, first, 16, 32) for first in (0, 20))
    assert np.allclose(here, there) == (encoding == "rotary")


def test_all_communication_is_hidden_or_exposed():
    for ratio in (0.25, 1.0, 2.0):
        for at_once in (True, False):
            bars = overlapped(ratio, at_once)
            total = sum(bar.end - bar.start for bar in bars if bar.kind in ("hidden", "exposed"))
            assert total == pytest.approx(8 * 2 * ratio)
            assert any(bar.kind == "hidden" for bar in bars) == at_once
            ends = max(bar.end for bar in bars if bar.kind == "backward")
            assert all((bar.end <= ends) == (bar.kind == "hidden") for bar in bars if bar.kind in ("hidden", "exposed"))
