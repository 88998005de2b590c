from __future__ import annotations

from pages.charts import loss
from pages.charts.look import LIGHT
from tests.charts import made_up
from tests.charts.reading import marks


def test_every_step_is_a_point_and_the_title_has_the_ends():
    drawing = loss.loss(made_up.steps([5.5, 4.25, 3.0]), LIGHT)
    [(view, rows)] = marks(drawing.spec, "line")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 5.5), (2, 4.25), (3, 3.0)]
    assert view["mark"]["point"]
    assert drawing.title == "The loss fell from 5.500 to 3.000 in 3 steps"


def test_the_curve_of_a_run_in_progress_has_room_for_all_its_steps():
    drawing = loss.growing([5.5, 4.25], 20, LIGHT)
    [(view, rows)] = marks(drawing.spec, "line")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 5.5), (2, 4.25)]
    assert view["encoding"]["x"]["scale"]["domain"] == [1, 20]
    assert drawing.title == "Step 2 of 20: the loss is 4.250"
    assert loss.growing([], 20, LIGHT).title == "Waiting for the first step"


def test_the_title_does_not_say_that_a_rising_loss_fell():
    assert loss.loss(made_up.steps([3.0, 3.5]), LIGHT).title == "The loss did not fall: it went from 3.000 to 3.500 in 2 steps"
