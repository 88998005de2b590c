from __future__ import annotations

from pages.charts import experts
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import marks


def test_each_expert_of_the_last_step_is_a_cell_with_its_share():
    drawing = experts.by_expert(made_up.expert_load(), LIGHT)
    [(_, rows)] = marks(drawing.spec, "rect")
    assert {(r["layer"], r["expert"]): r["share"] for r in rows} == {
        **{(0, expert): 1 for expert in range(4)},
        **{(1, expert): 4 if expert == 3 else 0 for expert in range(4)},
    }
    assert drawing.title == "Expert 3 of layer 1 got 4 times an even share"


def test_ranks_wait_in_each_layer_for_the_one_with_the_most_tokens():
    """In step 2: 20 + 40 tokens on the fullest ranks, where the mean is 20 + 20."""
    drawing = experts.by_step(made_up.expert_load(), LIGHT)
    [(_, rows)] = marks(drawing.spec, "line")
    assert [(r["step"], r["times"]) for r in rows] == [(1, 1), (2, 1.5)]
    assert drawing.title == "The fullest rank computes 1.50 times an even share"


def test_the_titles_of_a_balanced_step_say_so():
    even = made_up.expert_load().query("step == 1")
    assert experts.by_expert(even, LIGHT).title == "Every expert got the same number of tokens"
    assert experts.by_step(even, LIGHT).title == "No rank waits for another’s experts"
