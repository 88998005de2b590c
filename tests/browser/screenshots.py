"""Pictures of the pages, to look at: `python -m tests.browser.screenshots --all FOLDER [--language zh] [--only compare learn-5]`.

With --all PAGE-WIDTH-THEME.png of every page and every lesson, at 1280 and 1920 pixels, light and dark, each as high as what is
on it. With --readme the pictures in README.md, into docs/: lab.png, lab-dark.png, compare.png, plan.png and learn.png. Both show
one real run, on one server.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

from pages.charts.words import LANGUAGES
from tests.browser.served import CHROMIUM_FLAGS, PATIENCE_MS, ROOT, Server, Watched, drawn, served

CHOICE = "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0~p"
GPIPE, DEEP = "gpt-tiny~dp2.tp2.pp2~gpipe~m4~b2~n20~r0.003~e0", "gpt-tiny~dp1.tp2.pp4~1f1b~m4~b2~n20~r0.003~e0"
RUN = "RUN"  # in a link: the name of the run that all pictures show
LESSONS = len(list((ROOT / "pages/learn/lessons").glob("[a-z]*.py")))
LONG_MS = 120_000
HIGHEST = 9_000  # pixels of a picture
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
WIDTHS = (1280, 1920)

# Path and parameters of each page.
PAGES: Mapping[str, tuple[str, dict[str, str]]] = {
    "lab-before": ("", {"spec": CHOICE}),
    "lab-chosen": ("", {"spec": CHOICE, "rank": "5"}),
    "lab-after": ("", {"run": RUN, "spec": CHOICE}),
    "lab-misfit": ("", {"spec": "gpt-tiny~dp4.tp3.pp2~1f1b"}),
    "compare": ("compare", {"with": f"run:{RUN}*{GPIPE}*{DEEP}"}),
    "plan": ("plan", {"model": "gpt3-175b", "device": "h100-80gb", "ranks": "1024"}),
    **{f"learn-{number}": ("learn", {"lesson": str(number)}) for number in range(1, LESSONS + 1)},
    "runs": ("runs", {"picked": RUN}),
}
EMPTY = "runs-empty"
README: Mapping[str, tuple[str, Theme, int]] = {  # file → page, theme, height
    "lab.png": ("lab-after", "light", 1500),
    "lab-dark.png": ("lab-after", "dark", 1500),
    "compare.png": ("compare", "light", 1100),
    "plan.png": ("plan", "light", 1100),
    "learn.png": ("learn-5", "light", 1100),
}


def settled(page: Page) -> None:
    """Wait until the server has nothing more to draw and every chart is drawn."""
    drawn(page)
    charts = page.get_by_test_id("stVegaLiteChart")
    expect(charts.locator("svg.marks")).to_have_count(charts.count(), timeout=LONG_MS)
    page.evaluate("document.fonts.ready")


def run_once(window: Watched, server: Server) -> str:
    """A run of `CHOICE`; its name."""
    page = window.open(server, spec=CHOICE)
    page.get_by_role("button", name=re.compile("^Run|运行$")).click()
    page.wait_for_url(re.compile("run=[0-9]{8}"), timeout=LONG_MS)  # the name of its folder, once it is saved
    settled(page)
    return parse_qs(urlsplit(page.url).query)["run"][0]


def reach(page: Page, server: Server, name: str, run: str) -> None:
    """Open a page, as high as what is on it."""
    path, link = PAGES[name]
    asked = {key: value.replace(RUN, run) for key, value in link.items()}
    page.goto(f"{server.url}/{path}?{urlencode(asked)}", timeout=LONG_MS)
    settled(page)
    stretch(page)


def stretch(page: Page) -> None:
    """Streamlit scrolls inside of the page, so that a picture of the whole page would end with the window."""
    assert page.viewport_size
    tall = page.evaluate(
        "Math.max(...['stMain', 'stSidebarContent'].map(e => document.querySelector(`[data-testid=${e}]`)?.scrollHeight ?? 0))"
    )
    page.set_viewport_size({"width": page.viewport_size["width"], "height": min(HIGHEST, max(720, int(tall)))})
    settled(page)
    page.mouse.move(0, 0)


def shoot(page: Page, path: Path, height: int | None = None) -> None:
    assert page.viewport_size
    size = page.viewport_size
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": size["width"], "height": min(height or HIGHEST, size["height"])})


def every_page(browser: Browser, server: Server, folder: Path, locale: str, only: list[str]) -> None:
    run = ""
    for theme in THEMES:
        context = browser.new_context(color_scheme=theme, reduced_motion="reduce", locale=locale)
        for width in WIDTHS:
            window = Watched(context, width, 900)
            if not run:
                window.page.goto(f"{server.url}/runs")
                settled(window.page)
                shoot(window.page, folder / f"{EMPTY}-{width}-{theme}.png")
                run = run_once(window, server)
            for name in only or PAGES:
                reach(window.page, server, name, run)
                shoot(window.page, folder / f"{name}-{width}-{theme}.png")
                window.page.set_viewport_size({"width": width, "height": 900})
            window.close()
        context.close()


def for_readme(browser: Browser, server: Server, folder: Path, locale: str) -> None:
    run = ""
    for file, (name, theme, height) in README.items():
        context = browser.new_context(color_scheme=theme, reduced_motion="reduce", locale=locale)
        window = Watched(context, 1280, 900)
        run = run or run_once(window, server)
        reach(window.page, server, name, run)
        shoot(window.page, folder / file, height)
        window.close()
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", type=Path, metavar="FOLDER", help="every page, width and theme")
    what.add_argument("--readme", action="store_true", help="the pictures in README.md, into docs/")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="what the browser asks for")
    parser.add_argument("--only", nargs="+", choices=list(PAGES), default=[], help="with --all: these pages alone")
    asked = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    locale = {"en": "en-US", "zh": "zh-CN"}[asked.language]
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        if asked.readme:
            for_readme(browser, server, ROOT / "docs", locale)
        else:
            asked.all.mkdir(parents=True, exist_ok=True)
            every_page(browser, server, asked.all, locale, asked.only)
        browser.close()


if __name__ == "__main__":
    main()
