"""What all sessions of the server share: the folder of runs, and the queue."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from engine import store
from engine.launch.queue import RunQueue, RunState
from pages.shared.texts import Texts


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


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service() -> Service:
    """One queue for all sessions of this server. It starts its warm host at once, in the background.

    It is not in app.py, because Streamlit executes app.py again for each rerun, and its functions are new objects then.
    """
    home = _runs_home()
    return Service(home, RunQueue(home))


def _runs_home() -> Path:
    """The folder of runs: of the command line `streamlit run app.py -- --runs DIR`, or the default."""
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description="Shardscope in the browser.")
    usual = Path(__file__).parents[2] / "runs"
    arguments.add_argument("--runs", type=Path, default=usual, help="where runs are saved")
    return arguments.parse_args().runs.absolute()
