"""Shardscope in the browser: `streamlit run app.py`. Runs are kept in runs/ beside this file, or in `-- --runs DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from engine.launch.queue import RunQueue
from pages.lab.page import show as show_lab
from pages.shared.frame import follow_theme, frame, say
from pages.shared.service import Service


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service(home: Path) -> Service:
    """One queue for all sessions of this server. It warms up its host at once, in the background."""
    return Service(home, RunQueue(home))


def runs_home() -> Path:
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description=__doc__)
    arguments.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs", help="where runs are saved")
    return arguments.parse_args().runs.absolute()


def page(path: str, title: str, icon: str, show: Callable[[Service], None]) -> StreamlitPage:
    """A page of the navigation. The first in the list, the Lab, is also what the bare address shows."""
    return st.Page(
        lambda: show(open_service(runs_home())), title=title, icon=f":material/{icon}:", url_path=path, default=path == "lab"
    )


frame()
pages = [
    page("lab", say()("Lab"), "science", show_lab),
]
st.navigation(pages, position="top").run()
follow_theme()
