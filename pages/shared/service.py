"""What all sessions of the server share: the folder of runs, and the queue."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from engine import store
from engine.launch.queue import RunQueue, RunState
from engine.spec import RunSpec
from pages.shared.texts import Texts

_BROWSER = "_streamlit_xsrf"  # Streamlit's own cookie: all tabs of a browser have the same
_JOURNAL = ".queue.jsonl"


@dataclass(frozen=True)
class Service:
    home: Path
    queue: RunQueue

    @property
    def texts(self) -> Texts:
        return Texts(self.home / ".texts")

    def saved(self, name: str) -> Path | None:
        """The saved run of that name. Only names listed in the home folder are accepted, so no name leads out of it."""
        return next((folder for folder in store.listing(self.home) if folder.name == name), None)

    def find(self, run: str) -> RunState | Path | None:
        """The run of a link's parameter `run`: a run of this server by its id, or a saved run by its name."""
        return self.queue.watch(run) or self.saved(run)

    def submit(self, spec: RunSpec) -> str:
        """Queue a run of this reader's and return its id. Raises `RequestError` if it is refused."""
        return self.queue.submit(spec, reader())


def reader() -> str:
    """A name for whoever has this session: the same in all tabs of a browser."""
    context = get_script_run_ctx()
    named = st.context.cookies.get(_BROWSER) or (context.session_id if context else "")
    return hashlib.sha256(f"{named}".encode()).hexdigest()[:16]


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service() -> Service:
    """One queue for all sessions of this server. It starts its warm host at once, in the background.

    It is not in app.py, because Streamlit executes app.py again for each rerun, and its functions are new objects then.
    """
    chosen = _arguments()
    home = chosen.runs.absolute()
    return Service(home, RunQueue(home, cores=chosen.cores, journal=home / _JOURNAL))


def _arguments() -> argparse.Namespace:
    """What stands after `--` on the command line: `streamlit run app.py -- --runs DIR`."""
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description="Shardscope in the browser.")
    usual = Path(__file__).parents[2] / "runs"
    arguments.add_argument("--runs", type=Path, default=usual, help="where runs are saved")
    arguments.add_argument("--cores", type=int, help="how many cores runs may use at once; otherwise all of this machine")
    return arguments.parse_args()
