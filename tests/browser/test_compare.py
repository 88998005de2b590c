"""Compare in a real browser: from a link to four columns with the page's controls."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.served import Server, Watched, drawn

ONE = "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0"


def test_columns_are_added_swept_exported_and_opened_in_the_lab(server: Server, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{server.url}/compare?with={ONE}&sweep=layout.zero")
    drawn(page)
    expect(page.get_by_text("Add a second layout or a saved run")).to_be_visible()
    expect(page.get_by_role("combobox", name=re.compile("Setting"))).to_have_value(re.compile("ZeRO stage"))

    page.get_by_role("button", name="Add a layout").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("gpt-tiny · predicted")).to_have_count(2)
    expect(page).to_have_url(re.compile("with=.*%2A.*~naive"))
    expect(page.get_by_text(re.compile("percentage points"))).to_be_visible()
    drawn(page)

    boxes = [page.locator(f".st-key-drawing-memory-{place}").bounding_box() for place in (0, 1)]
    assert len({box["y"] for box in boxes if box}) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save as CSV, in exact bytes").click()
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert lines[0].startswith("what,model,layout,source,ranks,sequences,peak_bytes")
    assert len(lines) == 3

    page.get_by_role("link", name="Open in the Lab").nth(1).click()
    expect(page).to_have_url(re.compile("spec=gpt-tiny~dp2.tp2.pp2~naive"))
