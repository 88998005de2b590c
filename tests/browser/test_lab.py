"""The Lab page in a real browser, against real runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, TimeoutError, expect

from engine import store
from engine.predict.run import predict
from engine.tables import RunResult
from engine.topology import Mesh
from pages.charts import timeline
from pages.charts.look import LIGHT, lane
from pages.charts.units import in_bytes
from tests.browser.screenshots import settled
from tests.browser.served import LONG_MS, Server, Watched, drawn, served
from tests.patience import time_limits

SHORT = "gpt-tiny~dp1.tp2.pp2~1f1b~m2~b1~n3~r0.003~e0"
ENDLESS = "gpt-tiny~dp1.tp1.pp2~1f1b~m2~b1~n9999~r0.003~e0"

_FITS = "place => { const e = document.querySelector(`[data-testid=${place}]`); return e.scrollWidth <= e.clientWidth; }"


def link(page: Page, name: str) -> str:
    return parse_qs(urlsplit(page.url).query).get(name, [""])[0]


def field(page: Page, label: str) -> Locator:
    return page.get_by_role("spinbutton", name=label, exact=True)


def run_button(page: Page) -> Locator:
    return page.get_by_role("button", name=re.compile("^Run"))


def cancel_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Cancel")


def finished(page: Page) -> Locator:
    return page.get_by_role("heading", name=re.compile("^Measured: "))


def chart(page: Page, name: str) -> Locator:
    return page.locator(f".st-key-drawing-{name}")


def bars(page: Page, name: str) -> Locator:
    """The bars of a chart, by their descriptions for screen readers."""
    return chart(page, name).locator("svg.marks path[aria-roledescription='bar']")


def saved(server: Server, page: Page) -> RunResult:
    return store.load(server.home / link(page, "run"))


def test_pick_a_layout_run_it_and_see_three_charts(server: Server, watched: Watched):
    page = watched.open(server, spec="gpt-tiny~dp1.tp1.pp1~1f1b~m4~b2~n30~r0.003~e0")
    for label in ("Data (dp)", "Tensor (tp)", "Pipeline (pp)"):
        field(page, label).fill("2")
        field(page, label).press("Enter")
        expect(page.get_by_text("ranks, one process each")).to_be_visible()
    expect(page.get_by_text("8 ranks: 2 stages × 2 replicas × 2 slices")).to_be_visible()
    expect(page.locator(".ss-rank")).to_have_count(8)
    page.get_by_role("button", name="Run on 8 processes").click()
    expect(page.get_by_text(re.compile(r"Step \d+ of 30, loss \d\.\d{3}"))).to_be_visible(timeout=LONG_MS)
    expect(chart(page, "live").get_by_role("heading")).to_have_text(re.compile(r"Step \d+ of 30: the loss is \d\.\d{3}"))
    expect(chart(page, "live").locator("svg.marks path[aria-roledescription='line mark']")).to_have_count(1)
    expect(finished(page)).to_have_text("Measured: gpt-tiny on dp2.tp2.pp2, 1F1B", timeout=LONG_MS)
    drawn(page)

    assert chart(page, "loss").bounding_box()["y"] < page.locator(".ss-stage").first.bounding_box()["y"], "results come first"
    result = saved(server, page)
    peak = result.tables["memory_peak"]
    predicted = predict(result.spec).tables["memory_peak"]
    totals = peak.groupby("rank")["bytes"].sum()
    expect(chart(page, "memory-measured").get_by_role("heading")).to_contain_text(f" fullest: {in_bytes(totals.max())}")
    expect(bars(page, "memory-measured")).to_have_count(int((peak["bytes"] > 0).sum() + (predicted["bytes"] > 0).sum()))

    sent = result.tables["traffic"].groupby(["axis", "collective", "phase"])["wire_bytes"].sum()
    expect(bars(page, "traffic-measured")).to_have_count(int((sent > 0).sum()))
    expect(chart(page, "traffic-measured").locator("svg.marks")).to_contain_text("tp all_reduce, forward")

    chart(page, "timeline").get_by_role("radio", name="measured").click()
    expect(bars(page, "timeline")).to_have_count(8 + len(result.tables["spans"]))
    expect(chart(page, "timeline").get_by_role("heading")).to_have_text(
        timeline.measured(result.tables["spans"], Mesh({"dp": 2, "tp": 2, "pp": 2}), LIGHT).title
    )
    expect(chart(page, "timeline").locator("svg.marks")).to_contain_text("rank 7 · stage 1")

    expect(chart(page, "curve").locator("svg.marks path[aria-roledescription='area mark']")).to_have_count(6)
    expect(chart(page, "loss").locator("svg.marks path[aria-roledescription='line mark']")).to_have_count(1)
    expect(page.get_by_text("Not checked against the unsharded model")).to_be_visible()


def test_a_chart_has_its_numbers_and_its_controls(server: Server, measured: RunResult, watched: Watched):
    page = watched.open(server, run="measured")
    expect(page.get_by_text("Gradients equal to the unsharded model")).to_be_visible()
    third = page.get_by_role("option", name="rank 3")
    for limit in time_limits():  # on a busy machine, a redraw would close an open list
        drawn(page)
        chart(page, "curve").get_by_role("combobox").click()
        with suppress(AssertionError):
            expect(third).to_be_visible(timeout=1_000 * limit)
            break
    third.click()
    expect(chart(page, "curve").get_by_role("heading")).to_contain_text("Rank 3 peaks at")
    chart(page, "traffic-measured").get_by_role("radio", name="payload").click()
    expect(chart(page, "traffic-measured")).to_contain_text("the size of the tensors that a rank communicates")
    chart(page, "memory-measured").get_by_text("The numbers").click()
    expect(chart(page, "memory-measured").get_by_test_id("stDataFrame")).to_be_visible()


def test_a_run_survives_a_refresh_and_can_be_cancelled(server: Server, watched: Watched):
    page = watched.open(server, spec=ENDLESS)
    run_button(page).click()
    step = page.get_by_text(re.compile(r"Step \d+ of 9999, loss"))
    expect(step).to_be_visible(timeout=LONG_MS)
    run = link(page, "run")
    page.reload()
    expect(step).to_be_visible(timeout=LONG_MS)
    assert link(page, "run") == run
    before = step.inner_text()
    expect(step).not_to_have_text(before)
    cancel_button(page).click()
    expect(page.get_by_text(re.compile(r"^Cancelled\. It had finished \d+ of 9,999 steps; nothing was saved\.$"))).to_be_visible()
    expect(run_button(page)).to_be_enabled()
    assert not any(result.spec.workload.steps == 9999 for result in map(store.load, store.listing(server.home)))


def test_a_second_run_waits_its_turn(server: Server, watched: Watched, context: BrowserContext):
    page = watched.open(server, spec=ENDLESS)
    run_button(page).click()
    expect(page.get_by_text(re.compile(r"Step \d+ of 9999, loss"))).to_be_visible(timeout=LONG_MS)
    other = Watched(context)
    second = other.open(server, spec=SHORT)
    run_button(second).click()
    expect(second.get_by_text("Waiting: 1 run ahead in the queue")).to_be_visible()
    cancel_button(second).click()
    expect(second.get_by_text("Cancelled. It had finished 0 of 3 steps; nothing was saved.")).to_be_visible()
    cancel_button(page).click()
    expect(page.get_by_text(re.compile(r"^Cancelled\."))).to_be_visible()
    other.close()


def test_the_same_tab_queues_a_second_run_and_shows_it(server: Server, watched: Watched):
    page = watched.open(server, spec=ENDLESS)
    run_button(page).click()
    expect(page.get_by_text(re.compile(r"Step \d+ of 9999, loss"))).to_be_visible(timeout=LONG_MS)
    first = link(page, "run")
    for label, value in {"Steps": "3", "Tensor (tp)": "2"}.items():
        field(page, label).fill(value)
        field(page, label).press("Enter")
    page.get_by_role("button", name="Queue a run on 4 processes").click()
    expect(page.get_by_text("gpt-tiny · dp1.tp2.pp2 · 1F1B")).to_be_visible()
    assert link(page, "run") == first
    cancel_button(page).click()
    expect(page.get_by_text(re.compile(r"^Cancelled\."))).to_be_visible()
    page.get_by_role("button", name="Show", exact=True).click()
    expect(finished(page)).to_have_text("Measured: gpt-tiny on dp1.tp2.pp2, 1F1B", timeout=LONG_MS)
    expect(page.get_by_text("gpt-tiny · dp1.tp2.pp2 · 1F1B")).to_have_count(0)


def test_a_new_reader_sees_a_finished_run_by_one_press(server: Server, watched: Watched):
    page = watched.visit(server, "")
    expect(page.get_by_text("Shardscope trains a Transformer as real processes")).to_be_visible()
    page.get_by_role("button", name="See a finished run").click()
    expect(finished(page)).to_have_text("Measured: gpt-tiny on dp2.tp2.pp2, 1F1B")
    expect(chart(page, "loss").get_by_role("heading")).to_contain_text("The loss fell from")
    page.get_by_test_id("stTopNavLink").filter(has_text="Plan").click()
    page.get_by_test_id("stMain").get_by_role("link", name="Llama 3 8B on 8 H100").click()
    expect(page.get_by_role("heading", name=re.compile("llama3-8b on 8 × h100-80gb"))).to_be_visible(timeout=LONG_MS)


def test_an_invalid_choice_is_reported_and_a_button_corrects_it(server: Server, watched: Watched):
    page = watched.open(server)
    field(page, "Tensor (tp)").fill("3")
    field(page, "Tensor (tp)").press("Enter")
    sentence = page.get_by_text("tp=3 does not divide 4 heads; 1, 2 and 4 do.", exact=True)
    expect(sentence).to_be_visible()
    expect(run_button(page)).to_be_disabled()
    expect(page.get_by_text("Cannot run yet: tp=3 does not divide 4 heads")).to_be_visible()
    page.get_by_role("button", name="tp=4").click()
    expect(sentence).to_be_hidden()
    expect(field(page, "Tensor (tp)")).to_have_value("4")
    expect(page.get_by_role("button", name="Run on 16 processes")).to_be_enabled()
    assert "dp2.tp4.pp2" in link(page, "spec")


def test_an_expander_stays_open_when_its_label_changes(server: Server, watched: Watched):
    page = watched.open(server)
    page.get_by_text("Memory optimizations").click()
    recompute = page.get_by_role("combobox", name="Recompute in backward")
    recompute.scroll_into_view_if_needed()  # scrolling would close an open list, as would a redraw
    settled(page)
    marked = page.get_by_role("option", name="full", exact=True).and_(page.locator("[data-focused=true]"))
    renamed = page.get_by_text("Memory optimizations: recompute full")
    for _ in range(5):  # on a busy machine a redraw may come late, and close the list before it is marked or before Enter
        recompute.fill("full")
        with suppress(TimeoutError):
            marked.wait_for(timeout=LONG_MS / 10)
            # A click may scroll to the option first, which closes the list. Enter does not.
            recompute.press("Enter")
            renamed.wait_for(timeout=LONG_MS / 10)
            break
    expect(renamed).to_be_visible()
    expect(recompute).to_be_visible()
    expect(recompute).to_have_value("full")
    page.get_by_text("The formula for rank").click()
    page.locator("[data-rank='5']").click()
    expect(page.get_by_text("The formula for rank 5")).to_be_visible()
    expect(page.locator(".ss-formula").first).to_be_visible()


def test_going_back_restores_the_previous_choice(server: Server, watched: Watched):
    page = watched.open(server)
    before = link(page, "spec")
    page.get_by_role("combobox", name="Pipeline schedule").click()
    page.get_by_role("option", name="Naive").click()
    expect(page.get_by_text("One microbatch in the whole pipeline")).to_be_visible()
    page.wait_for_url(re.compile("~naive~"))
    page.go_back()
    expect(page.get_by_text("Fill the pipeline, then one forward for one backward")).to_be_visible()
    assert link(page, "spec") == before


@pytest.fixture(scope="module")
def fresh(server: Server) -> Iterator[Server]:
    """A new server with the runs of another."""
    with served(server.home) as fresh:
        yield fresh


def test_links_open_on_a_fresh_server(fresh: Server, measured: RunResult, watched: Watched):
    page = watched.open(fresh, run="measured")
    expect(finished(page)).to_have_text("Measured: gpt-tiny on dp1.tp2.pp2, 1F1B")
    most = measured.tables["memory_peak"].groupby("rank")["bytes"].sum().max()
    expect(chart(page, "memory-measured").get_by_role("heading")).to_contain_text(f" fullest: {in_bytes(most)}")
    expect(bars(page, "memory-measured").first).to_be_visible()
    assert "~dp1.tp2.pp2~1f1b~m4~b1~n3~" in link(page, "spec")

    choice = "gpt.l6.h96.a6.v300.s48.f0~dp1.tp3.pp2~gpipe~m8~b1~n5~r0.01~e7~k4.2~p"
    watched.open(fresh, spec=choice)
    for label, value in {"Layers": "6", "Heads": "6", "Tensor (tp)": "3", "Microbatches": "8", "Steps": "5"}.items():
        expect(field(page, label)).to_have_value(value)
    expect(page.get_by_role("combobox", name="Pipeline schedule")).to_have_value("GPipe")
    assert link(page, "spec") == choice

    watched.open(fresh, spec="gpt-tiny~dp2~2f2b", run="../../etc")
    expect(page.get_by_text("The link names the schedule “2f2b”")).to_be_visible()
    expect(page.get_by_text("The run in this link was not found")).to_be_visible()


def test_a_server_that_showed_a_run_stays_small_and_does_not_load_torch(fresh: Server, measured: RunResult, watched: Watched):
    expect(finished(watched.open(fresh, run="measured"))).to_be_visible()
    process = psutil.Process(fresh.pid)
    assert process.memory_info().rss <= 250 * 2**20
    assert not any("libtorch" in mapped.path for mapped in process.memory_maps())


def test_an_uploaded_text_is_trained_on(server: Server, watched: Watched, tmp_path: Path):
    prose = tmp_path / "prose.txt"
    prose.write_text("Übung macht den Meister. " * 200, encoding="utf-8")
    wrong = tmp_path / "wrong.txt"
    wrong.write_bytes(b"caf\xe9 " * 100)
    page = watched.open(server, spec=SHORT)
    page.get_by_text("Advanced").click()
    page.locator("input[type=file]").set_input_files(wrong)
    expect(page.get_by_text("wrong.txt: the text is not UTF-8: byte 3 makes no sense")).to_be_visible()
    page.locator("input[type=file]").set_input_files(prose)
    expect(page.get_by_text(re.compile("Training on the uploaded text [0-9a-f]{16}, 5,200 bytes"))).to_be_visible()
    page.wait_for_url(re.compile("~x[0-9a-f]{16}"))
    run_button(page).click()
    expect(finished(page)).to_be_visible(timeout=LONG_MS)
    path = saved(server, page).spec.workload.text
    assert path is not None
    assert Path(path).read_bytes() == prose.read_bytes()


def test_nothing_is_wider_than_the_window(server: Server, watched: Watched):
    newest = store.listing(server.home)[0].name
    choices = {
        "gpt-small~dp2.tp8.pp1~1f1b": newest,
        "gpt.l16.h64.a4.v256.s64.f0~dp1.tp1.pp16~1f1b": "",
        "gpt-tiny~dp4.tp3.pp2~1f1b": "",
    }
    for spec, run in choices.items():
        page = watched.open(server, spec=spec, run=run)
        for width in (1280, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            for place in ("stMain", "stSidebarContent"):
                expect(page.get_by_test_id(place)).to_be_visible()
                page.wait_for_function(_FITS, arg=place)


_CUT = """() => [...document.querySelectorAll('[class*=st-key-drawing-] svg.marks text')].filter(text => {
    const chart = text.closest('[data-testid=stVegaLiteChart]').getBoundingClientRect(), own = text.getBoundingClientRect();
    return getComputedStyle(text).opacity !== '0' && own.width && (own.right > chart.right + 2 || own.left < chart.left - 2);
}).map(text => text.textContent)"""
_COVERED = """button => {
    const at = button.getBoundingClientRect();
    return !button.contains(document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2));
}"""


def test_on_a_phone_nothing_is_covered_or_cut(server: Server, measured: RunResult, watched: Watched):
    watched.page.set_viewport_size({"width": 390, "height": 844})
    page = watched.open(server, run="measured")
    expect(finished(page)).to_be_visible()
    page.wait_for_function(_FITS, arg="stMain")
    for name in ("loss", "memory-measured", "traffic-measured", "matrix", "timeline"):
        expect(chart(page, name).locator("svg.marks")).to_be_visible()
    with suppress(TimeoutError):
        page.wait_for_function(f"() => ({_CUT})().length === 0")
    assert page.evaluate(f"({_CUT})()") == []
    assert not page.get_by_test_id("stExpandSidebarButton").evaluate(_COVERED)


def test_charts_take_the_colours_of_a_new_theme(server: Server, watched: Watched):
    page = watched.open(server)
    forward = chart(page, "textbook").locator(f"svg.marks path[fill='{LIGHT.lane[lane('F')]}']")
    expect(forward.first).to_be_visible()
    page.emulate_media(color_scheme="dark")
    expect(forward).to_have_count(0)
