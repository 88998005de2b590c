"""Plan in a real browser: from the form to a layout in the Lab, and a layout that does not fit."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.served import LONG_MS, Server, Watched, drawn

LINK = "plan?model=gpt2-1.5b&device=mi300x&ranks=8&batch=16&accounting=korthikanti2022"


def test_a_layout_is_chosen_exported_and_opened_and_a_misfit_has_its_reason(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/{LINK}&row=2")
    drawn(page)
    expect(page.get_by_role("heading", name=re.compile("gpt2-1.5b on 8 × mi300x: dp.* fits"))).to_be_visible()
    expect(page.get_by_text("Number 3 of the")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Settings for Megatron-LM").click()
    assert "--tensor-model-parallel-size" in Path(waiting.value.path()).read_text()

    page.get_by_text("Comparison with published figures").click()
    expect(page.get_by_text("None is for this model or device; all are listed.")).to_be_visible()
    drawn(page)

    count = page.get_by_role("spinbutton", name="Number")
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
    expect(page).to_have_url(re.compile("row=2(&|$)"))  # each key press moved one entry
    expect(page.get_by_text("Number 3 of the")).to_be_visible()


def test_a_link_restores_serving_in_another_language(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/plan?model=gpt3-13b&device=h100-80gb&ranks=4&for=serving")
    drawn(page)
    expect(page.get_by_role("heading", name="Serving gpt3-13b on 4 × h100-80gb: it fits")).to_be_visible()
    many = page.get_by_role("spinbutton", name="Concurrent")
    many.fill("64")
    many.press("Enter")
    expect(page).to_have_url(re.compile("sequences=64(&|$)"))
    drawn(page)  # a later redraw would close an open list
    layout = page.get_by_role("combobox", name="Layout")
    layout.press("ArrowDown")
    expect(page.get_by_role("option").first).to_be_visible()
    layout.press("ArrowDown")
    layout.press("Enter")
    expect(page.get_by_text("Number 3 of the")).to_be_visible()
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.goto(f"{page.url}&lang=zh")
    drawn(page)
    expect(page.get_by_role("heading", name="在 4 × h100-80gb 上部署 gpt3-13b 推理：放得下")).to_be_visible()
    expect(page.get_by_role("spinbutton", name="并发")).to_have_value("64")
    assert "row=2" in page.url
    page.get_by_role("radio", name="训练").or_(page.get_by_role("button", name="训练")).first.click()
    expect(page).not_to_have_url(re.compile("for=serving"))


def test_a_dry_run_shows_its_progress_and_can_be_cancelled(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/plan?model=gpt3-175b&device=h100-80gb&ranks=1024&accounting=korthikanti2022")
    drawn(page)
    page.get_by_role("button", name="Start the dry run").click()
    expect(page.get_by_text(re.compile(r"[\d,]+ of [\d,]+ actions · \d+ s"))).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("The dry run was cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Start the dry run")).to_be_enabled()
