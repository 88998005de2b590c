"""The two languages in a real browser: which one a reader gets, and what stays when it is switched."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.served import Server, Watched, drawn

CHOICE = "gpt-tiny~dp2.tp2.pp2~interleaved~m6~b2~n20~r0.003~e0~c2~z1~afull"


def link(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def switch(page: Page, to: str) -> None:
    page.locator(".st-key-language").get_by_role("radio", name=to).click()


# Texts that are the same in every language: names, kinds of actions, and the languages' own names. The last two are icons, which
# are text too.
_WORDS = "GPipe|ZeRO|rank|token|English|Ctrl|send|recv|reduce|gather|step|function"
NAMES = re.compile(rf"\b({_WORDS}|config\.json|[a-z]+(_[a-z]+)+)\b")


def seen(page: Page) -> str:
    """All visible text of form and page."""
    return page.evaluate(
        """() => [...document.querySelectorAll("[data-testid=stMain], [data-testid=stSidebarContent]")].flatMap((root) => {
            const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = [];
            while (walker.nextNode()) {
                const parent = walker.currentNode.parentElement;
                if (!parent.closest("style, script, [data-testid=stIconMaterial]") && parent.checkVisibility())
                    found.push(walker.currentNode.data);
            }
            return found;
        }).join("\\n")"""
    )


def test_switching_the_language_changes_every_text_and_no_choice(server: Server, watched: Watched):
    page = watched.open(server, spec=CHOICE, rank="3")
    assert link(page) == {"spec": CHOICE, "rank": "3"}  # a language that was not chosen is not in the link
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator(".ss-rank[aria-pressed=true] b")).to_have_text("3")

    switch(page, "中文")
    expect(page.get_by_text("8 个 rank：2 个阶段 × 2 个副本 × 2 个切片")).to_be_visible()
    expect(page.get_by_role("button", name="用 8 个进程运行")).to_be_visible()
    expect(page.get_by_role("combobox", name="流水线调度")).to_have_value("交错式 1F1B")
    expect(page.get_by_text("节省内存的手段：ZeRO 1、完全重计算")).to_be_visible()
    expect(page.locator(".st-key-drawing-textbook svg.marks")).to_contain_text("阶段 0 · 在途")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page.locator(".ss-rank[aria-pressed=true] b")).to_have_text("3")
    page.wait_for_url(re.compile("lang=zh"))
    assert link(page) == {"spec": CHOICE, "rank": "3", "lang": "zh"}
    assert set(re.findall(r"[A-Za-z]{4,}", NAMES.sub("", seen(page)))) == set()

    page.reload()
    drawn(page)
    expect(page.get_by_role("combobox", name="流水线调度")).to_have_value("交错式 1F1B")
    switch(page, "English")
    expect(page.get_by_role("combobox", name="Pipeline schedule")).to_have_value("Interleaved 1F1B")
    page.wait_for_url(re.compile("lang=en"))
    assert link(page) == {"spec": CHOICE, "rank": "3", "lang": "en"}


def test_a_misfit_is_shown_in_the_readers_language(server: Server, watched: Watched):
    page = watched.open(server, spec="gpt-tiny~dp1.tp3.pp1~1f1b", lang="zh")
    expect(page.get_by_text("tp=3 不能整除 4 个头；1, 2 和 4 可以。", exact=True)).to_be_visible()
    page.get_by_role("button", name="tp=4").click()
    expect(page.get_by_role("button", name="用 4 个进程运行")).to_be_enabled()


def test_browsers_of_other_languages_get_english_or_chinese(server: Server, browser: Browser):
    """test_everywhere.py has browsers of the two languages."""
    for locale, greeting in (("zh-TW", "模型切分"), ("de-DE", "Model placement")):
        context: BrowserContext = browser.new_context(locale=locale, reduced_motion="reduce")
        window = Watched(context)
        page = window.open(server)
        expect(page.get_by_text(greeting).first).to_be_visible()
        assert "lang" not in link(page)
        window.close()
        context.close()


def test_a_rank_is_chosen_by_keyboard_and_marked_everywhere(server: Server, watched: Watched):
    page = watched.open(server, spec="gpt-tiny~dp2.tp2.pp2~1f1b")
    page.locator("[data-rank='5']").focus()
    page.keyboard.press("Enter")
    expect(page.locator("[data-rank='5'][aria-pressed=true]")).to_be_focused()
    for rank, role in {4: "tp", 7: "dp", 1: "pp", 0: "none"}.items():
        expect(page.locator(f"[data-rank='{rank}']")).to_have_attribute("data-role", role)
    page.wait_for_url(re.compile("rank=5"))
    page.keyboard.press("Enter")
    expect(page.locator("[aria-pressed=true]")).to_have_count(0)
    page.wait_for_url(lambda url: "rank=" not in url)
