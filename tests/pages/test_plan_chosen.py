"""Plan without a browser: the layout that is chosen, the usual first try beside it, and how many devices are enough."""

from __future__ import annotations

import re
from dataclasses import replace

from engine.planner.explain import why
from pages.plan.found import found
from pages.plan.request import of_link
from tests.pages.opened import text
from tests.pages.test_plan import SMALL, linked, page


def test_the_heading_speaks_of_the_layout_that_is_chosen() -> None:
    asked = SMALL | {"model": "gpt3-13b"}
    plan = found(of_link(asked))
    assert 0 < plan.feasible < plan.count
    assert re.search(r"gpt3-13b on 8 × h100-80gb: dp\S+ fits", text(page(**asked)))
    misfit = text(page(**asked, row=str(plan.count - 1)))
    assert re.search(r"gpt3-13b on 8 × h100-80gb: dp\S+ does not fit", misfit)
    assert re.search(r"[\d,]+ other layouts fit; the best is number 1|What to change, cheapest first", misfit)


def test_the_baseline_is_zero_3_over_all_devices_and_is_told_beside_the_best() -> None:
    plan = found(of_link(SMALL))
    assert plan.baseline is not None
    row = plan.layout(plan.baseline)
    assert (row["dp"], row["tp"], row["pp"], row["zero"]) == (8, 1, 1, 3)
    assert row["recompute"] != "none"
    assert "The usual first try, ZeRO 3 over all devices" in text(page())
    odd = found(of_link(SMALL | {"batch": "12"}))
    assert odd.baseline is None
    assert "is not possible with this batch" in text(page(batch="12"))


def test_a_batch_does_not_stay_when_there_are_far_fewer_devices() -> None:
    app = page(ranks="1024", batch="1536")
    next(n for n in app.number_input if n.label == "Number").set_value(8).run()
    assert linked(app)["batch"] == "16"
    app = page(ranks="64", batch="128")
    next(n for n in app.number_input if n.label == "Number").set_value(32).run()
    assert linked(app)["batch"] == "128", "four sequences a device are usual"


def test_where_nothing_fits_the_number_of_devices_that_is_enough_is_a_link() -> None:
    asked = SMALL | {"model": "gpt3-13b", "ranks": "1", "batch": "2"}
    assert found(of_link(asked)).feasible == 0
    app = page(**asked)
    [enough] = [link for link in app.get("page_link") if link.proto.label.startswith("With ")]
    count = int(re.search(r"With (\d+) devices it fits", enough.proto.label)[1])
    assert found(replace(of_link(asked), ranks=count, batch=2 * count)).feasible
    assert not found(replace(of_link(asked), ranks=count // 2, batch=count)).feasible


def test_a_batch_that_changes_with_the_number_of_devices_is_named() -> None:
    asked = SMALL | {"model": "gpt3-13b", "ranks": "1", "batch": "1"}
    [enough] = [link for link in page(**asked).get("page_link") if link.proto.label.startswith("With ")]
    count, batch = map(int, re.search(r"With (\d+) devices and a batch of (\d+) it fits", enough.proto.label).groups())
    assert batch != 1
    assert found(replace(of_link(asked), ranks=count, batch=batch)).feasible


def test_a_reason_never_says_that_a_difference_is_nothing() -> None:
    plan = found(of_link(SMALL)).plan
    for row in range(1, 6):
        assert not any("0.000 s less" in str(r) or "0.000 s more" in str(r) for r in why(plan, 0, row))
