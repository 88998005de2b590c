"""What all sessions of the server share: the folder of runs, and the queue."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from engine import store
from engine.launch.queue import RunQueue, RunState
from pages.shared.texts import Texts

EXAMPLE = "example"  # the name of the run that comes with the program
_EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Service:
    home: Path
    queue: RunQueue

    @property
    def texts(self) -> Texts:
        return Texts(self.home / ".texts")

    def saved(self, name: str) -> Path | None:
        """The saved run that has this name or had it before it was renamed, or else the example that comes with the program.

        Only names that are listed are accepted, so no name leads out of these folders.
        """
        listed = (folder for home in (self.home, _EXAMPLES) for folder in store.listing(home))
        return next((folder for folder in listed if folder.name == name), None) or store.current(self.home, name)

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


def is_example(folder: Path) -> bool:
    """Whether the run comes with the program, and was not made here."""
    return folder.parent == _EXAMPLES


def _runs_home() -> Path:
    """The folder of runs: of the command line `streamlit run app.py -- --runs DIR`, or the default."""
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description="Shardscope in the browser.")
    usual = Path(__file__).parents[2] / "runs"
    arguments.add_argument("--runs", type=Path, default=usual, help="where runs are saved")
    return arguments.parse_args().runs.absolute()
