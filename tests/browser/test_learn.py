"""The Learn page in a real browser: a lesson by its link, an answer by keyboard, and a real run that judges."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect

from engine import store
from tests.browser.served import LONG_MS, Server, Watched, drawn

_FITS = "() => { const e = document.querySelector('[data-testid=stMain]'); return e.scrollWidth <= e.clientWidth; }"


def lesson(watched: Watched, server: Server, link: str) -> Page:
    """Open a lesson by its link."""
    page = watched.open(server)
    page.goto(f"{server.url}/learn?{link}")
    drawn(page)
    return page


def parameter(page: Page, name: str) -> str:
    return parse_qs(urlsplit(page.url).query).get(name, [""])[0]


def test_open_a_lesson_by_link_answer_by_keyboard_and_see(server: Server, watched: Watched):
    page = lesson(watched, server, "lesson=5&with=schedule-gpipe~p-3~m-4")
    expect(page.get_by_role("heading", name="Pipeline parallelism", level=1)).to_be_visible()
    expect(page.get_by_text("(3 − 1) ÷ (4 + 3 − 1)")).to_be_visible()
    expect(page.locator(".st-key-drawing-lesson-timeline svg.marks")).to_be_visible()
    assert page.evaluate(_FITS)

    page.get_by_role("radio", name="stage 0").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Right: stage 0, with 4 microbatches in flight")).to_be_visible()
    expect(page.locator(".st-key-drawing-in-flight-answer svg.marks")).to_be_visible()
    expect(page.get_by_text("1 of 10 answered")).to_be_visible()
    expect(page).to_have_url(re.compile("with=schedule-gpipe~p-3~m-4~answer-stage0(&|$)"))

    page.get_by_role("button", name="Another question").click()
    expect(page.get_by_role("spinbutton", name="Your answer")).to_be_visible()
    expect(page).to_have_url(re.compile("with=schedule-gpipe~p-3~m-4~turn-1(&|$)"))
    page.get_by_role("button", name="The three together").first.click()
    expect(page.get_by_role("heading", name="The three together", level=1)).to_be_visible()
    expect(page).to_have_url(re.compile("lesson=6"))  # written after the whole lesson is drawn


def test_a_real_run_answers_the_lesson(server: Server, watched: Watched):
    page = lesson(watched, server, "lesson=6")
    page.get_by_text("on stage 0").click()
    page.get_by_role("button", name="Commit").click()
    page.get_by_role("button", name=re.compile("^Run it")).click()
    expect(page.get_by_text(re.compile("^(Right: stage 0|You said on stage 0; it is )"))).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".st-key-drawing-lesson-peak svg.marks")).to_be_visible()
    expect(page.get_by_text("to the byte and to the call", exact=True)).to_be_visible()
    result = store.load(server.home / parameter(page, "run"))
    assert (result.spec.layout.code, result.spec.parity) == ("dp2.tp2.pp2", True)
