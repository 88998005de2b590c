"""Pictures of the Lab page: `python -m tests.browser.screenshots [--all] [--language zh] [FOLDER]`.

lab.png and lab-dark.png are for the README. With --all also lab-STATE-WIDTH-THEME.png, to look at: before a run, during
one, after one, and when something is wrong, at 1280 and 1920 pixels, light and dark.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, expect, sync_playwright

from pages.charts.words import LANGUAGES
from tests.browser.served import CHROMIUM_FLAGS, PATIENCE_MS, ROOT, Server, Watched, drawn, served

CHOICE = "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0~p"
LONG_MS = 60_000
# In both languages.
RUN, CANCEL, MEASURED = re.compile("^Run|运行$"), re.compile("^(Cancel|取消)$"), re.compile("^(Measured: |实测：)")
README_HEIGHT = 1500


def before(window: Watched, server: Server) -> None:
    window.open(server, spec=CHOICE)


def during(window: Watched, server: Server) -> None:
    page = window.open(server, spec=CHOICE)
    page.get_by_role("button", name=RUN).click()
    expect(page.get_by_text(re.compile("(Step|第) 1?[3-9] "))).to_be_visible(timeout=LONG_MS)


def after(window: Watched, server: Server) -> None:
    """The run that `during` started, or one of its own."""
    page = window.page
    if not page.get_by_role("button", name=CANCEL).is_visible():
        page = window.open(server, spec=CHOICE)
        page.get_by_role("button", name=RUN).click()
    expect(page.get_by_role("heading", name=MEASURED)).to_be_visible(timeout=LONG_MS)
    charts(page)


def misfit(window: Watched, server: Server) -> None:
    window.open(server, spec="gpt-tiny~dp4.tp3.pp2~1f1b")


def failed(window: Watched, server: Server) -> None:
    page = window.open(server, spec="gpt-tiny~dp1.tp2.pp2~1f1b~n9999~t2")
    page.get_by_role("button", name=RUN).click()
    expect(page.get_by_text(re.compile("reached its time limit|秒的时限")).first).to_be_visible(timeout=LONG_MS)


STATES: dict[str, tuple[Callable[[Watched, Server], None], int]] = {
    "before": (before, 800),
    "during": (during, 800),
    "after": (after, 3600),
    "misfit": (misfit, 800),
    "failed": (failed, 800),
}


def charts(page: Page) -> None:
    """Wait until every chart is drawn."""
    drawn(page)
    for chart in ("peak", "curve", "kinds", "by-rank", "timeline", "loss"):
        expect(page.locator(f".st-key-drawing-{chart} svg.marks")).to_be_visible(timeout=LONG_MS)


def shoot(page: Page, path: Path, height: int) -> None:
    page.set_viewport_size({"width": page.viewport_size["width"] if page.viewport_size else 1280, "height": height})
    page.mouse.move(0, 0)
    page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs", help="where the pictures go")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="what the browser asks for")
    parser.add_argument("--all", action="store_true", help="every state, width and theme")
    asked = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for theme in themes:
            context = browser.new_context(
                color_scheme=theme, reduced_motion="reduce", locale={"en": "en-US", "zh": "zh-CN"}[asked.language]
            )
            for width in (1280, 1920) if asked.all else (1280,):
                window = Watched(context, width)
                for state, (reach, height) in STATES.items() if asked.all else [("after", STATES["after"])]:
                    reach(window, server)
                    if asked.all:
                        shoot(window.page, asked.folder / f"lab-{state}-{width}-{theme}.png", height)
                    if state == "after" and width == 1280:
                        shoot(window.page, asked.folder / ("lab.png" if theme == "light" else "lab-dark.png"), README_HEIGHT)
                window.close()
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
