from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Playwright, expect, sync_playwright

from engine import store
from engine.tables import RunResult
from tests.browser.chromium import HOW_TO_HAVE_IT, chromium
from tests.browser.served import CHROMIUM_FLAGS, LONG_MS, PATIENCE_MS, Server, Watched, served
from tests.runs import Runs, small


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A real Chromium. If there is none, tests/conftest.py leaves out the tests that need it, unless --no-skips is set."""
    path = chromium()
    assert path, HOW_TO_HAVE_IT
    browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS, timeout=LONG_MS)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests. Tests of a new server start their own."""
    with served(tmp_path_factory.mktemp("runs")) as server:
        yield server


@pytest.fixture(scope="session")
def in_language(browser: Browser) -> Iterator[Callable[[str], BrowserContext]]:
    """A browser context with a language. It is shared by all tests in that language, so scripts and fonts are fetched once."""
    contexts: dict[str, BrowserContext] = {}

    def of(locale: str) -> BrowserContext:
        if locale not in contexts:
            contexts[locale] = browser.new_context(locale=locale, color_scheme="light", reduced_motion="reduce")
        return contexts[locale]

    yield of
    for context in contexts.values():
        context.close()


@pytest.fixture(scope="session")
def context(in_language: Callable[[str], BrowserContext]) -> BrowserContext:
    return in_language("en-US")


@pytest.fixture(scope="session")
def measured(runs: Runs, server: Server) -> RunResult:
    """A real run, saved as "measured", for tests that need one and do not press Run."""
    spec = small("tp2.pp2", parity=True, model={"layers": 4, "hidden": 64, "seq": 64}, steps=3, microbatches=4)
    store.save(runs.result(spec), server.home / "measured")
    return runs.result(spec)


@pytest.fixture
def watched(context: BrowserContext) -> Iterator[Watched]:
    """A window that fails the test on any error."""
    watched = Watched(context)
    yield watched
    watched.close()
