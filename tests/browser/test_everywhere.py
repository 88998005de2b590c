"""Every page: deep links are valid on a new server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from pages.charts.words import Language, Words, words
from tests.browser.served import Watched, drawn, free_port, served
from tests.pages.stand_in import PAIR, saved

CHOICE = "gpt-tiny~dp2.tp2.pp2~gpipe~m6~b2~n20~r0.003~e7"
OTHER = "gpt-tiny~dp1.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0"
RUN = "a-saved-run"


class Link(NamedTuple):
    """A deep link, the name of its page, and a check in some language that the page shows what the link says."""

    path: str
    parameters: dict[str, str]
    called: str
    holds: Callable[[Page, Words], None]


def lab_holds(page: Page, say: Words) -> None:
    expect(page.get_by_role("spinbutton", name=say("Microbatches"), exact=True)).to_have_value("6")
    expect(page.locator("[data-rank='5'][aria-pressed=true]")).to_have_count(1)
    expect(page.locator(".st-key-drawing-traffic-predicted").get_by_role("radio", name=say("payload"))).to_be_checked()


def compare_holds(page: Page, say: Words) -> None:
    expect(page.get_by_text("dp2.tp2.pp2").first).to_be_visible()
    expect(page.get_by_text("dp1.tp2.pp2").first).to_be_visible()
    expect(page.locator("[class*=st-key-drawing-memory-] svg.marks")).to_have_count(2)


def plan_holds(page: Page, say: Words) -> None:
    expect(page.get_by_role("combobox", name=say("Model"), exact=True)).to_have_value("llama3-8b · Meta")
    expect(page.locator(".st-key-drawing-plan-front svg.marks")).to_be_visible()


def learn_holds(page: Page, say: Words) -> None:
    expect(page.get_by_role("heading", level=1, name=say("Pipeline parallelism"))).to_be_visible()
    expect(page.get_by_text("(3 − 1) ÷ (4 + 3 − 1)")).to_be_visible()


def runs_holds(page: Page, say: Words) -> None:
    expect(page.get_by_role("checkbox", name=re.compile(RUN))).to_be_checked()
    expect(page.get_by_role("checkbox", name=re.compile("another"))).to_have_count(0)  # it is not in the link


LINKS = {
    "start": Link("", {"spec": CHOICE, "rank": "5", "bytes": "payload"}, "Lab", lab_holds),
    "lab": Link("lab", {"spec": CHOICE, "rank": "5", "bytes": "payload"}, "Lab", lab_holds),
    "compare": Link("compare", {"with": f"{CHOICE}*{OTHER}"}, "Compare", compare_holds),
    "plan": Link(
        "plan", {"model": "llama3-8b", "device": "a100-80gb", "ranks": "64", "accounting": "zero2020"}, "Plan", plan_holds
    ),
    "learn": Link("learn", {"lesson": "5", "with": "schedule-gpipe~p-3~m-4"}, "Learn", learn_holds),
    "runs": Link("runs", {"find": "saved", "picked": RUN}, "Runs", runs_holds),
}
NAMES: list[str] = list(LINKS)


def told(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


# (language of the browser, language in the link, expected language), of each page in turn: tests/pages has every text.
WAYS: list[tuple[str, dict[str, str], Language]] = [
    ("en-US", {"lang": "zh"}, "zh"),
    ("zh-CN", {"lang": "en"}, "en"),
    ("zh-CN", {}, "zh"),
    ("en-US", {}, "en"),
    ("zh-CN", {"lang": "en"}, "en"),
    ("en-US", {"lang": "zh"}, "zh"),
]


@pytest.fixture(scope="module")
def port() -> int:
    """One port for all new servers, so that the browser fetches the app's scripts once."""
    return free_port()


@pytest.mark.parametrize("name", NAMES)
def test_a_deep_link_is_the_first_request_of_a_new_server(
    name: str, in_language: Callable[[str], BrowserContext], port: int, tmp_path: Path
):
    """In either language, requested by the link or by the browser."""
    for run in (RUN, "another"):
        saved(tmp_path, PAIR, run)
    link, (locale, chosen, language) = LINKS[name], WAYS[NAMES.index(name)]
    with served(tmp_path, port) as server:
        window, say, asked = Watched(in_language(locale)), words(language), link.parameters | chosen
        page = window.page
        page.goto(f"{server.url}/{link.path}?{urlencode(asked)}")
        drawn(page)
        expect(page.locator("html")).to_have_attribute("lang", {"en": "en", "zh": "zh-Hans"}[language])
        expect(page.get_by_test_id("stTopNavLink").filter(has_text=say(link.called))).to_be_visible()
        link.holds(page, say)
        expect(page.get_by_text("Page not found")).to_have_count(0)
        expect(page.get_by_test_id("stException")).to_have_count(0)
        kept = told(page)
        assert {key: kept.get(key) for key in asked} == asked
        window.close()
