"""Pictures of the pages, to look at: `python -m tests.browser.screenshots --all FOLDER [--language zh] [--only compare learn-5]`.

With --all, PAGE-WIDTH-THEME.png of every page, and of every lesson before and after the answer, at 1280, 1920 and 390 pixels,
light and dark, as high as the content. With --readme the pictures in README.md and docs/pages.md, into docs/. Both show real
runs, on one server.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

from pages.charts.words import LANGUAGES
from tests.browser.chromium import HOW_TO_HAVE_IT, chromium
from tests.browser.served import CHROMIUM_FLAGS, LONG_MS, PATIENCE_MS, ROOT, Server, Watched, served

CHOICE = "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0~p"
GPIPE, DEEP = "gpt-tiny~dp2.tp2.pp2~gpipe~m4~b2~n20~r0.003~e0", "gpt-tiny~dp1.tp2.pp4~1f1b~m4~b2~n20~r0.003~e0"
# Text from the trained weights. Its link has the prompt "The pipeline " and the temperature 0.8.
WRITES = "gpt-mini~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e1~yVGhlIHBpcGVsaW5lIA~w100~v0.8~s~jtrained"
# In a link: placeholder for the names of the runs in the pictures.
RUNS = {"RUN": CHOICE, "SECOND": GPIPE, "THIRD": DEEP, "TEXT": WRITES}
LESSONS = len(list((ROOT / "pages/learn/lessons").glob("[a-z]*.py")))
HIGHEST = 9_000  # pixels of a picture
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
WIDTHS = (1280, 1920, 390)

# Path and parameters of each page.
PAGES: Mapping[str, tuple[str, dict[str, str]]] = {
    "runs-empty": ("runs", {}),
    "welcome": ("", {}),
    "lab-example": ("", {"run": "example"}),
    "lab-before": ("", {"spec": CHOICE}),
    "lab-chosen": ("", {"spec": CHOICE, "rank": "5"}),
    "lab-after": ("", {"run": "RUN", "spec": CHOICE}),
    "lab-text": ("", {"run": "TEXT", "spec": WRITES}),
    "lab-misfit": ("", {"spec": "gpt-tiny~dp4.tp3.pp2~1f1b"}),
    "compare": ("compare", {"with": f"run:RUN*{GPIPE}*{DEEP}", "sweep": "layout.zero"}),
    "compare-runs": ("compare", {"with": "run:RUN*run:SECOND*run:THIRD", "sweep": "workload.microbatches"}),
    "plan": ("plan", {"model": "gpt3-175b", "device": "h100-80gb", "ranks": "1024", "row": "4"}),
    "plan-serving": ("plan", {"model": "gpt3-175b", "device": "h100-80gb", "ranks": "16", "for": "serving"}),
    "plan-misfit": ("plan", {"model": "gpt3-175b", "device": "h100-80gb", "ranks": "16", "batch": "64"}),
    **{f"learn-{number}": ("learn", {"lesson": str(number)}) for number in range(1, LESSONS + 1)},
    "runs": ("runs", {"picked": "RUN"}),
}
EMPTY = "runs-empty"  # without runs
README: Mapping[str, tuple[str, Theme, int]] = {  # file → page, theme, height
    "lab.png": ("lab-after", "light", 1500),
    "lab-dark.png": ("lab-after", "dark", 1500),
    "compare.png": ("compare", "light", 1100),
    "plan.png": ("plan", "light", 1100),
    "learn.png": ("learn-5", "light", 1100),
    "runs.png": ("runs", "light", 560),
    "written.png": ("lab-text", "light", 760),
}


# Whether everything is drawn and unchanged since the last call: charts take the width of a new window with a delay.
_STILL = """() => {
    const charts = [...document.querySelectorAll('[data-testid=stVegaLiteChart]')];
    const sizes = charts.map(chart => chart.querySelector('svg.marks')?.getBoundingClientRect().width);
    const busy = document.querySelector('[data-testid=stApp]')?.dataset.testScriptState !== 'notRunning'
        || document.querySelector('[data-testid=stSkeleton], [data-testid=stSpinner], [data-stale=true]');
    const seen = JSON.stringify([sizes, document.querySelector('[data-testid=stMain]')?.scrollHeight, innerWidth, innerHeight]);
    const still = !busy && !sizes.includes(undefined) && seen === window.shardscopeSeen;
    window.shardscopeSeen = seen;
    return still;
}"""
_LOOK_EACH_MS = 150


def settled(page: Page) -> None:
    """Wait until the server and all charts have finished drawing, at their final width."""
    page.wait_for_function(_STILL, polling=_LOOK_EACH_MS, timeout=LONG_MS)
    page.evaluate("document.fonts.ready")


def run_once(window: Watched, server: Server, choice: str) -> str:
    """Run `choice` and return the name of the run."""
    page = window.open(server, spec=choice)
    page.get_by_role("button", name=re.compile("^Run|运行$")).click()
    page.wait_for_url(re.compile("run=[0-9]{8}"), timeout=LONG_MS)  # the name of its folder, once it is saved
    settled(page)
    return parse_qs(urlsplit(page.url).query)["run"][0]


def reach(page: Page, server: Server, name: str, runs: Mapping[str, str]) -> None:
    """Open a page in a window as high as its content."""
    path, link = PAGES[name]
    asked = {key: _named(value, runs) for key, value in link.items()}
    page.goto(f"{server.url}/{path}?{urlencode(asked)}", timeout=LONG_MS)
    settled(page)
    stretch(page)


def _named(text: str, runs: Mapping[str, str]) -> str:
    for stands_for, name in runs.items():
        text = text.replace(stands_for, name)
    return text


def stretch(page: Page, width: int | None = None) -> None:
    """Make the window as high as the content. Streamlit scrolls inside the page, so a full-page picture would be cut off."""
    assert page.viewport_size
    wide = width or page.viewport_size["width"]
    if width:
        page.set_viewport_size({"width": wide, "height": 900})
        settled(page)
    tall = page.evaluate(
        "Math.max(...['stMain', 'stSidebarContent'].map(e => document.querySelector(`[data-testid=${e}]`)?.scrollHeight ?? 0))"
    )
    page.set_viewport_size({"width": wide, "height": min(HIGHEST, max(720, int(tall)))})
    settled(page)
    page.mouse.move(0, 0)


def answer(page: Page) -> None:
    """Give the first answer to a lesson's question."""
    question = page.locator(".st-key-predict")
    if question.get_by_role("radio").count():
        question.locator("[data-testid=stRadioOption], label:has(input[type=radio])").first.click()
    else:
        question.get_by_role("spinbutton").fill("100")
    question.locator("button[kind=primaryFormSubmit]").click()
    expect(question.locator("button[kind=primaryFormSubmit]")).to_have_count(0)


def delete(page: Page) -> None:
    page.get_by_role("button", name=re.compile("Delete|删除")).click()
    expect(page.locator(".st-key-runs-gone")).to_be_visible()


def undo(page: Page) -> None:
    page.locator(".st-key-runs-gone").get_by_role("button").first.click()
    expect(page.locator(".st-key-runs-gone")).to_have_count(0)


# Second pictures of a page: name → (action before it, its undo).
THEN: Mapping[str, tuple[str, Callable[[Page], None], Callable[[Page], None] | None]] = {
    **{f"learn-{number}": ("answered", answer, None) for number in range(1, LESSONS + 1)},
    "runs": ("deleted", delete, undo),
}


def shoot(page: Page, path: Path, height: int | None = None) -> None:
    assert page.viewport_size
    size = page.viewport_size
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": size["width"], "height": min(height or HIGHEST, size["height"])})


def every_page(browser: Browser, server: Server, folder: Path, locale: str, only: list[str]) -> None:
    """Open each page once for each theme, then widen it."""
    runs: dict[str, str] = {}
    for theme in THEMES:
        context = browser.new_context(color_scheme=theme, reduced_motion="reduce", locale=locale)
        window = Watched(context, WIDTHS[0], 900)
        for name in only or PAGES:
            if not runs and name != EMPTY:
                runs = {stands_for: run_once(window, server, choice) for stands_for, choice in RUNS.items()}
            if runs and name == EMPTY:  # there are runs now
                continue
            began = time.monotonic()
            reach(window.page, server, name, runs)
            both_widths(window.page, folder, name, theme)
            if name in THEN:
                called, do, back = THEN[name]
                do(window.page)
                both_widths(window.page, folder, f"{name}-{called}", theme)
                if back:
                    back(window.page)
            window.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
            print(f"{name}, {theme}: {time.monotonic() - began:.1f} s", flush=True)
        window.close()
        context.close()


def both_widths(page: Page, folder: Path, name: str, theme: Theme) -> None:
    for width in WIDTHS:
        stretch(page, width)
        shoot(page, folder / f"{name}-{width}-{theme}.png")


def for_readme(browser: Browser, server: Server, folder: Path, locale: str, only: list[str]) -> None:
    runs: dict[str, str] = {}
    for file, (name, theme, height) in README.items():
        if only and name not in only:
            continue
        context = browser.new_context(color_scheme=theme, reduced_motion="reduce", locale=locale)
        window = Watched(context, 1280, 900)
        runs = runs or {stands_for: run_once(window, server, choice) for stands_for, choice in RUNS.items()}
        reach(window.page, server, name, runs)
        shoot(window.page, folder / file, height)
        window.close()
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", type=Path, metavar="FOLDER", help="every page, width and theme")
    what.add_argument("--readme", action="store_true", help="the pictures in README.md and docs/pages.md, into docs/")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="what the browser asks for")
    parser.add_argument("--only", nargs="+", choices=list(PAGES), default=[], help="these pages alone")
    asked = parser.parse_args()
    path = chromium()
    if path is None:
        raise SystemExit(HOW_TO_HAVE_IT)
    expect.set_options(timeout=PATIENCE_MS)
    locale = {"en": "en-US", "zh": "zh-CN"}[asked.language]
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        if asked.readme:
            for_readme(browser, server, ROOT / "docs", locale, asked.only)
        else:
            asked.all.mkdir(parents=True, exist_ok=True)
            every_page(browser, server, asked.all, locale, asked.only)
        browser.close()


if __name__ == "__main__":
    main()
