"""For those who cannot see a page, or use no mouse: axe finds nothing serious, charts are named, ranks are chosen by keyboard."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.screenshots import PAGES, settled
from tests.browser.served import Server, Watched
from tests.pages.stand_in import saved
from tests.pages.test_lab import PAIR

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
RUN = "a-saved-run"
LOOKED_AT = ["lab-chosen", "lab-after", "lab-misfit", "compare", "learn-1", "learn-4", "learn-5", "runs", "plan"]
Theme = Literal["light", "dark"]

# What others than we make, by rule and by how the element ends, in which that is the whole of what is wrong.
KNOWN: dict[str, tuple[str, ...]] = {
    "svg-img-alt": ('pointer-events="none"></g>',),  # Vega: the group of a layer that has no marks, so there is nothing to read
}


def found(page: Page) -> list[str]:
    """Serious and critical violations, each with where it is and what is to be done."""
    page.evaluate(AXE)
    told: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']} ({violation['impact']}): {node['target'][-1]}\n    {node['html'][:200]}\n    {node['failureSummary']}"
        for violation in told["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not node["html"].endswith(KNOWN.get(violation["id"], ()))
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(theme: Theme, server: Server, browser: Browser):
    if not (server.home / RUN).exists():
        saved(server.home, PAIR, RUN)
    context = browser.new_context(color_scheme=theme, reduced_motion="reduce")
    window = Watched(context)
    serious: list[str] = []
    for name in LOOKED_AT:
        path, link = PAGES[name]
        asked = {key: value.replace("RUN", RUN) for key, value in link.items() if not (key == "spec" and "run" in link)}
        if path == "plan":
            asked |= {"model": "llama3-8b", "ranks": "8", "accounting": "zero2020"}  # which is there at once
        window.visit(server, path, **asked)
        settled(window.page)
        serious += [f"{name}: {violation}" for violation in found(window.page)]
    window.close()
    context.close()
    assert not serious, "\n".join(serious)
