"""The Learn page in a real browser: a lesson by its link, an answer by keyboard, and a real run that judges."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Browser, Locator, Page, expect

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
    expect(page.get_by_text("1 of 12 answered")).to_be_visible()
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


def at(scene: Locator) -> int:
    """The step that a scene shows."""
    return int(scene.get_attribute("data-step") or -1)


def test_a_scene_plays_when_it_is_seen_and_can_be_paused_and_stepped(server: Server, browser: Browser):
    context = browser.new_context(locale="en-US", reduced_motion="no-preference")
    window = Watched(context)
    page = lesson(window, server, "lesson=4")
    scene = page.locator(".ss-motion")
    scene.scroll_into_view_if_needed()
    expect(scene).to_have_attribute("data-playing", "yes")
    expect(scene).not_to_have_attribute("data-step", "0")
    scene.get_by_role("button", name="Pause").click()
    expect(scene).to_have_attribute("data-playing", "no")
    step = at(scene)
    scene.get_by_role("button", name="Step forward").click()
    expect(scene).to_have_attribute("data-step", str(step + 1))
    scene.get_by_role("button", name="Step back").click()
    expect(scene).to_have_attribute("data-step", str(step))
    scene.get_by_role("slider", name="Step").press("End")
    expect(scene).to_have_attribute("data-step", "6")
    expect(scene.get_by_text("every rank gets the total z")).to_be_visible()
    scene.get_by_role("button", name="Play").click()  # from the start again
    expect(scene).to_have_attribute("data-playing", "yes")
    scene.get_by_role("button", name="Pause").click()
    assert at(scene) < 6
    window.close()
    context.close()


def test_nothing_moves_for_a_reader_who_wants_no_motion(server: Server, watched: Watched):
    """As all windows of these tests do."""
    page = lesson(watched, server, "lesson=5&with=schedule-1f1b~p-4~m-6")
    scene = page.locator(".ss-motion")
    scene.scroll_into_view_if_needed()
    expect(scene).to_have_attribute("data-playing", "no")
    expect(scene.get_by_text("Activations kept by each stage: 4, 3, 2, 1.")).to_be_visible()  # the step that tells most
    moved = scene.locator("svg > g").last
    assert moved.evaluate("e => getComputedStyle(e).transitionDuration") in ("0s", "0s, 0s")
    step = at(scene)
    scene.get_by_role("button", name="Step forward").click()
    expect(scene).to_have_attribute("data-step", str(step + 1))


def test_pointing_at_a_product_marks_its_row_and_column_and_a_term_unfolds(server: Server, watched: Watched):
    page = lesson(watched, server, "lesson=4&with=tp-2~matrix-1~step-columns")
    product = page.locator(".ss-product").first
    cell = product.locator(".ss-out tr:nth-child(2) td:nth-child(1)")
    cell.hover()
    for marked in (".ss-left tr:nth-child(2) td", ".ss-right td:nth-child(1)"):
        for part in product.locator(marked).all():
            expect(part).to_have_css("outline-style", "solid")
    expect(product.locator(".ss-left tr:nth-child(1) td").first).to_have_css("outline-style", "none")
    assert cell.get_attribute("data-sum") == "relu((−2)·(−1) + (−2)·(−1) + 2·1 + 3·3)"
    term = page.locator(".ss-term").first
    expect(term.locator(".ss-meaning")).to_be_hidden()
    term.focus()
    expect(term.locator(".ss-meaning")).to_be_visible()
    expect(term).to_have_accessible_description(term.locator(".ss-meaning").inner_text())
    page.keyboard.press("Escape")
    expect(term.locator(".ss-meaning")).to_be_hidden()
    term.blur()
    term.focus()
    expect(term.locator(".ss-meaning")).to_be_visible()


def test_a_link_opens_a_task_with_the_settings_of_who_sent_it(server: Server, watched: Watched):
    page = lesson(watched, server, "lesson=5&with=schedule-1f1b~p-4~m-8~task.schedule-interleaved×2~task.microbatches-32")
    task = page.locator(".st-key-task")
    expect(task.get_by_text("Solved.")).to_be_visible()
    task.get_by_role("slider", name="Microbatches m").press("ArrowLeft")
    expect(task.get_by_text("Solved.")).to_be_hidden()
    page.wait_for_url("**task.schedule-interleaved*")  # the setting that is the first one again is left out
    assert "task.microbatches-16" not in page.url


def test_on_a_narrow_page_every_lesson_fits(server: Server, watched: Watched):
    page = lesson(watched, server, "lesson=1")
    page.set_viewport_size({"width": 390, "height": 844})
    for number in range(1, 13):
        page.goto(f"{server.url}/learn?lesson={number}")
        drawn(page)
        assert page.evaluate(_FITS), f"lesson {number}"
