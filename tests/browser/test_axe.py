"""Accessibility: axe finds no serious violations."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from playwright.sync_api import Browser, Page, expect

from pages.charts.look import LIGHT
from tests.browser.screenshots import PAGES, settled
from tests.browser.served import Server, Watched
from tests.pages.stand_in import PAIR, saved

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
RUN = "a-saved-run"
LOOKED_AT = ["lab-chosen", "lab-after", "lab-misfit", "compare", "learn-1", "learn-4", "learn-5", "runs", "plan", "plan-serving"]
COLOURS = ["color-contrast", "link-in-text-block"]  # the rules about colours

# Violations in other software: rule → end of the element's path. They are accepted if there are no others.
KNOWN: dict[str, tuple[str, ...]] = {
    "svg-img-alt": ('pointer-events="none"></g>',),  # Vega: the group of a layer without marks, so there is nothing to read
}


def found(page: Page, rules: list[str] | None = None) -> list[str]:
    """Serious and critical violations of these rules, or of all, with their elements and remedies."""
    page.evaluate(AXE)
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    told: dict[str, Any] = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']} ({violation['impact']}): {node['target'][-1]}\n    {node['html'][:200]}\n    {node['failureSummary']}"
        for violation in told["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not node["html"].endswith(KNOWN.get(violation["id"], ()))
    ]


def test_axe_finds_nothing_serious(server: Server, browser: Browser):
    """All rules in the light theme, and those about colours in the dark one."""
    if not (server.home / RUN).exists():
        saved(server.home, PAIR, RUN)
    context = browser.new_context(color_scheme="light", reduced_motion="reduce")
    window = Watched(context)
    page, serious = window.page, list[str]()
    for name in LOOKED_AT:
        path, link = PAGES[name]
        asked = {key: value.replace("RUN", RUN) for key, value in link.items() if not (key == "spec" and "run" in link)}
        if path == "plan":
            asked |= {"model": "llama3-8b", "ranks": "8", "accounting": "zero2020"}  # which is there at once
        page.emulate_media(color_scheme="light")
        window.visit(server, path, **asked)
        settled(page)
        serious += [f"{name}: {violation}" for violation in found(page)]
        page.emulate_media(color_scheme="dark")
        expect(page.locator(f"svg.marks [fill='{LIGHT.text}']")).to_have_count(0)
        settled(page)
        serious += [f"{name}, dark: {violation}" for violation in found(page, COLOURS)]
    window.close()
    context.close()
    assert not serious, "\n".join(serious)
