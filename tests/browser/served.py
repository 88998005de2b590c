"""The app as users have it: a server on a free port, and a browser window that reports every error."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
HERE = ("127.0.0.1", "localhost")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# At the address of a page, Streamlit's client first checks whether the app is served below it. The answer is 404.
_PROBE = re.compile(r"/\w+/_stcore/(health|host-config)$")
# Limits for tests that hang; a machine ten times slower does not reach them. The second is for runs and other slow answers. They
# are shorter than in other tests, because many tests would wait for one broken page.
PATIENCE_MS, LONG_MS = 60_000, 300_000


class Server:
    """`streamlit run app.py` with its runs in `home`; `classroom`: as `make classroom` starts it."""

    def __init__(self, home: Path, port: int | None = None, classroom: bool = False) -> None:
        self.home, self.url = home, f"http://127.0.0.1:{port or free_port()}"
        at = str(urlsplit(self.url).port)
        app = ["--runs", str(home), "--cores", "1"]
        options = ["--server.port", at, "--server.headless", "true", "--server.fileWatcherType", "none"]
        command = ["streamlit", "run", "app.py", *options, "--", *app]
        if classroom:
            day = ["--seconds", "86400"]  # of a run: no test waits so long
            command = ["pages.shared.start_classroom", "--port", at, "--address", "127.0.0.1", *day, *app]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(PATIENCE_S), "".join(self.said)
        with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=PATIENCE_S) as answer:
            assert answer.read() == b"ok", "".join(self.said)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stdout
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.said.append(line)
            if "URL:" in line:
                self._listening.set()
        self._listening.set()  # it ended: its output has the reason


@contextmanager
def served(home: Path, port: int | None = None, classroom: bool = False) -> Iterator[Server]:
    server = Server(home, port, classroom)
    try:
        yield server
    finally:
        server.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Watched:
    """A browser window, with all its script errors and its requests to other machines.

    Windows share `context`, so that scripts and fonts are fetched once.
    """

    def __init__(self, context: BrowserContext, width: int = 1280, height: int = 900) -> None:
        self.wrong: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.wrong.append(f"script error: {error}"))
        self.page.on("console", self._hear)
        # Listening, because interception would turn off the browser's cache.
        self.page.on("request", lambda request: self._goes_to(request.url))
        self.page.on("websocket", lambda socket: self._goes_to(socket.url))

    def open(self, server: Server, **link: str) -> Page:
        """Open the Lab with these parameters in the link, and wait until it is drawn."""
        return self.visit(server, "", **link)

    def visit(self, server: Server, path: str, **link: str) -> Page:
        """The same for any page."""
        self.page.goto(f"{server.url}/{path}?{urlencode(link)}")
        drawn(self.page)
        return self.page

    def close(self) -> None:
        """Close the window. Fails if there was an error in it."""
        self.page.close()
        assert not self.wrong, "\n".join(self.wrong)

    def _goes_to(self, url: str) -> None:
        to = urlsplit(url)
        if to.scheme not in ("data", "blob") and to.hostname not in HERE:
            self.wrong.append(f"request to another machine: {url}")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not _PROBE.search(message.location["url"]):
            self.wrong.append(f"console: {message.text}")


def drawn(page: Page) -> None:
    """Wait until the server has finished drawing."""
    expect(page.locator("[data-testid=stApp][data-test-script-state=notRunning]")).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
