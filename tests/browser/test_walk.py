"""The timelines and the walk of one microbatch, in a real browser with a real run."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from engine.tables import RunResult
from tests.browser.served import LONG_MS, Server, Watched, drawn
from tests.browser.test_lab import bars, chart, finished, link, run_button

CHOICE = "gpt-tiny~dp1.tp2.pp2~1f1b~m4~b1~n3~r0.003~e0"


def walk(page: Page) -> Locator:
    return page.locator(".st-key-walk")


def frames(page: Page, name: str, width: str = "3.5") -> Locator:
    """The frames in a chart, around the current event."""
    return chart(page, name).locator(f"svg.marks path[stroke-width='{width}']")


def in_view(page: Page, name: str) -> bool:
    """Whether the bottom of the element is visible and not covered."""
    at: bool = page.locator(name).evaluate(
        "e => { const b = e.getBoundingClientRect(); return e.contains(document.elementFromPoint(b.x + 20, b.bottom - 5)); }"
    )
    return at


def test_a_microbatch_is_followed_before_a_run_and_through_it(server: Server, watched: Watched):
    page = watched.open(server, spec=CHOICE)
    expect(walk(page)).to_contain_text("Microbatch 0, event 1 of")
    page.get_by_role("button", name="Next").click()
    expect(walk(page)).to_contain_text("Rank 0 makes 5 calls of all_reduce along tp with rank 1")
    expect(frames(page, "textbook")).to_have_count(1)  # the pass that the calls are part of
    expect(frames(page, "traffic-predicted", "2.5")).to_have_count(1)  # the kind of call
    page.get_by_role("heading", name="4 ranks").scroll_into_view_if_needed()
    assert in_view(page, ".st-key-walk"), "it is told at the foot of the window, whichever chart one looks at"

    run_button(page).click()
    expect(finished(page)).to_be_visible(timeout=LONG_MS)
    drawn(page)
    expect(walk(page)).to_have_count(1)
    expect(page.get_by_text("As measured.")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    page.wait_for_url(re.compile("walk=0.2"))
    expect(walk(page)).to_contain_text("Rank 0 sends the activations of microbatch 0 to rank 2 at stage 1")
    expect(frames(page, "timeline")).to_have_count(1)
    expect(frames(page, "matrix")).to_have_count(1)  # who sends to whom
    page.keyboard.press("n")
    page.wait_for_url(re.compile("walk=0.3"))
    expect(page.locator("[data-rank='2'][aria-pressed='true']")).to_be_visible()
    expect(chart(page, "timeline").locator("svg.marks")).to_contain_text("rank 2 · stage 1 · chosen")
    expect(chart(page, "curve").get_by_role("heading")).to_contain_text("Rank 2 peaks at")

    page.reload()
    drawn(page)
    expect(walk(page)).to_contain_text("Microbatch 0, event 4 of")
    assert link(page, "rank") == "2"


def test_there_are_three_timelines_and_a_slow_stage_increases_the_bubble(server: Server, measured: RunResult, watched: Watched):
    page = watched.open(server, run="measured")
    chart(page, "timeline").get_by_role("radio", name="measured").click()
    expect(bars(page, "timeline")).to_have_count(4 + len(measured.tables["spans"]))
    chart(page, "timeline").get_by_role("radio", name="projected").click()
    expect(chart(page, "timeline").locator("svg.marks")).to_contain_text("stage 1 · ranks 2–3")
    chart(page, "timeline").get_by_role("radio", name="textbook").click()
    expect(chart(page, "timeline").get_by_role("heading")).to_have_text("The bubble takes 20.0% of 15 units of time")
    chart(page, "timeline").get_by_role("combobox", name="Slow one stage").click()
    page.get_by_role("option", name="slow stage 1").click()
    expect(chart(page, "timeline").get_by_role("heading")).to_have_text(
        "With stage 1 slowed 2×, the bubble takes 33.3% of 27 units of time; without, 20.0%"
    )
    assert (link(page, "timeline"), link(page, "slow-run")) == ("textbook", "1x2")
    chart(page, "timeline").get_by_role("radio", name="on one axis").click()
    for name in ("MEASURED", "PROJECTED", "TEXTBOOK"):
        expect(chart(page, "timeline").locator("svg.marks")).to_contain_text(name)
    cells = chart(page, "matrix").locator("svg.marks path[aria-roledescription='rect mark']")
    expect(cells.first).to_be_visible()


def test_a_part_of_a_long_step_can_be_brushed(server: Server, watched: Watched):
    page = watched.open(server, spec="gpt-tiny~dp1.tp1.pp2~1f1b~m1000~b1~n3~r0.003~e0")
    expect(chart(page, "textbook")).to_contain_text("Only 64 of 4,000 bars are drawn")
    strip = chart(page, "textbook-overview").locator("svg.marks")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    assert box
    page.mouse.move(box["x"] + 200, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + 240, box["y"] + 15, steps=4)
    page.mouse.up()
    expect(chart(page, "textbook").locator("svg.marks")).not_to_contain_text("F0")  # a later part of the step is drawn
    expect(chart(page, "textbook")).to_contain_text("of 4,000 bars are drawn")
