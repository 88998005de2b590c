"""How long a reader waits for each page: its first load, and a control's redraw, in a real browser.

    python -m benchmarks.pages [--rounds 5]

A first load begins with the address, in a browser without a cache, and ends when the server and all charts have finished drawing.
A redraw begins with a press on a control and ends in the same way. Below the pages is a plain Streamlit page with one number
field and one chart, on a server of its own: what Streamlit and the browser take by themselves. It prints medians. Chromium is
needed, as for the tests.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.browser.chromium import HOW_TO_HAVE_IT, chromium
from tests.browser.served import CHROMIUM_FLAGS

ROOT = Path(__file__).parents[1]
FIRST_LOAD_S, REDRAW_S, PLAN_S = 3.0, 0.3, 1.0  # what is aimed at, on a quiet machine
_STARTED_S, _PATIENCE_MS = 60.0, 120_000

_PLAIN = """
import streamlit as st
bars = st.number_input("Bars", 1, 99, 5)
rows = [{"bar": n, "height": n * n % 7 + 1} for n in range(bars)]
st.vega_lite_chart(rows, {"mark": "bar", "encoding": {"x": {"field": "bar"}, "y": {"field": "height", "type": "quantitative"}}})
"""


@dataclass(frozen=True)
class Look:
    """A page, with a control to press. `control`: a field by its label, whose plus or minus is pressed in turn."""

    name: str
    address: str
    control: str
    redraw_s: float = REDRAW_S


PAGES = (
    Look("Lab", "/?spec=gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0", "Data (dp)"),
    Look("Lab, a finished run", "/?run=example", "Data (dp)"),
    Look("Compare", "/compare?with=gpt-tiny~dp2.tp2.pp2~gpipe*gpt-tiny~dp1.tp2.pp4~1f1b", ""),
    Look("Plan, 70B on 64", "/plan?model=llama3-70b&device=h100-80gb&ranks=64&batch=1024", "Global batch", PLAN_S),
    Look("Plan, 175B on 1,024", "/plan?model=gpt3-175b&device=a100-80gb&ranks=1024&batch=1536", "Global batch", PLAN_S),
    Look("Learn", "/learn?lesson=1", ""),
    Look("Runs", "/runs", ""),
)
PLAIN = Look("plain page, one chart", "/", "Bars")

# Whether everything is drawn. A page that has begun has an element with text.
_DRAWN = """
const drawn = () => {
    const app = document.querySelector('[data-testid=stApp]');
    const main = document.querySelector('[data-testid=stMain] [data-testid=stElementContainer]');
    const waits = ['stAppSkeleton', 'stSkeleton', 'stSpinner'].map(id => `[data-testid=${id}]`).join();
    const charts = [...document.querySelectorAll('[data-testid=stVegaLiteChart]')];
    return app?.dataset.testScriptState === 'notRunning' && main !== null
        && !document.querySelector(`${waits}, [data-stale=true]`)
        && charts.every(chart => chart.querySelector('svg.marks, canvas.marks'));
};
const frame = () => new Promise(requestAnimationFrame);
"""
# Milliseconds since the address was given, once all is drawn for three frames.
_LOADED = f"""async () => {{
    {_DRAWN}
    let since = 0, first = 0;
    while (since < 3) {{ if (drawn()) {{ if (!since++) first = performance.now(); }} else since = 0; await frame(); }}
    return first;
}}"""
# Milliseconds from the press until the script has run and all is drawn for three frames.
_REDRAWN = f"""async button => {{
    {_DRAWN}
    let ran = false, since = 0, last = 0;
    const app = document.querySelector('[data-testid=stApp]');
    const watch = new MutationObserver(() => {{ ran = ran || app.dataset.testScriptState === 'running'; }});
    watch.observe(app, {{attributes: true}});
    const began = performance.now();
    button.click();
    while (since < 3) {{ if (ran && drawn()) {{ if (!since++) last = performance.now(); }} else since = 0; await frame(); }}
    watch.disconnect();
    return last - began;
}}"""


@contextmanager
def served(*command: str) -> Iterator[str]:
    """A Streamlit server, by its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, *own = command
    flags = ["--server.port", str(port), "--server.headless", "true", "--server.fileWatcherType", "none"]
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", script, *flags, "--", *own],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _await(f"{url}/_stcore/health")
        yield url
    finally:
        server.terminate()
        server.wait(20)


def _await(address: str) -> None:
    ends = time.monotonic() + _STARTED_S
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
        else:
            return


def measured(browser: Browser, url: str, look: Look, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of first loads, each in a browser without a cache, and of redraws."""
    loads: list[float] = []
    redraws: list[float] = []
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en")
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.goto(url + look.address, wait_until="commit")
        loads.append(page.evaluate(_LOADED) / 1e3)
        if look.control:
            field = page.locator("[data-testid=stNumberInput]").filter(has=page.get_by_label(look.control, exact=True))
            for step in ("Up", "Down"):
                button = field.locator(f"[data-testid=stNumberInputStep{step}]")
                redraws.append(button.evaluate(_REDRAWN) / 1e3)
        context.close()
    return loads, redraws


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="", help="pages whose name has this text")
    chosen = options.parse_args()
    program = chromium()
    if program is None:
        raise SystemExit(HOW_TO_HAVE_IT)
    print(f"{'':<24}{'first load':>12}{'at most':>9}{'redraw':>12}{'at most':>9}")
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        plain = Path(home) / "plain.py"
        plain.write_text(_PLAIN, encoding="utf-8")
        with served("app.py", "--runs", f"{home}/runs") as url:
            for look in PAGES:
                if chosen.only in look.name:
                    _print(look, *measured(browser, url, look, chosen.rounds), FIRST_LOAD_S)
        with served(str(plain)) as url:
            _print(PLAIN, *measured(browser, url, PLAIN, chosen.rounds), None)
        browser.close()


def _print(look: Look, loads: list[float], redraws: list[float], most: float | None) -> None:
    line = f"{look.name:<24}{statistics.median(loads):>10.2f} s" + (f"{most:>7g} s" if most else " " * 9)
    if redraws:
        line += f"{1e3 * statistics.median(redraws):>9.0f} ms" + (f"{1e3 * look.redraw_s:>6.0f} ms" if most else "")
    print(line, flush=True)


if __name__ == "__main__":
    main()
