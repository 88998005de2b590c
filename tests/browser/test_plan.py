"""Plan in a real browser: from a question to a layout that is opened in the Lab, and one that does not fit."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.served import Server, Watched, drawn

LINK = "plan?model=gpt2-1.5b&device=mi300x&ranks=8&batch=16&accounting=korthikanti2022"


def test_a_layout_is_picked_exported_and_opened_and_what_does_not_fit_says_why(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/{LINK}&row=2")
    drawn(page)
    expect(page.get_by_role("heading", name="gpt2-1.5b on 8 × mi300x: it fits")).to_be_visible()
    expect(page.get_by_text("Number 3 of the")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Settings for Megatron-LM").click()
    assert "--tensor-model-parallel-size" in Path(waiting.value.path()).read_text()

    page.get_by_text("Published figures beside ours").click()
    expect(page.get_by_text("None is of this model or device; here are all.")).to_be_visible()
    drawn(page)

    count = page.get_by_role("spinbutton", name="How many")
    count.fill("1")
    count.press("Enter")
    expect(page).to_have_url(re.compile("ranks=1(&|$)"))
    expect(page.get_by_text("The fastest of the")).to_be_visible()
    assert "row=" not in page.url
    drawn(page)

    page.get_by_test_id("stMain").get_by_role("link", name="Open in the Lab").click()
    expect(page).to_have_url(re.compile("spec=gpt2-1.5b~dp1.tp1.pp1"))
    assert "device=mi300x" in page.url


def test_the_keyboard_chooses_another_layout(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/{LINK}")
    drawn(page)
    expect(page.get_by_text("The fastest of the")).to_be_visible()
    layout = page.get_by_role("combobox", name="Layout")
    layout.press("ArrowDown")
    expect(page.get_by_role("option").first).to_be_visible()
    layout.press("ArrowDown")
    layout.press("Enter")
    expect(page).to_have_url(re.compile("row=2(&|$)"))  # each press went one further
    expect(page.get_by_text("Number 3 of the")).to_be_visible()
