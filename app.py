"""Shardscope in the browser: `streamlit run app.py`. Runs are kept in runs/ beside this file, or in `-- --runs DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import streamlit as st

from engine.launch.queue import RunQueue
from pages.lab.page import show as show_lab
from pages.learn.page import show as show_learn
from pages.shared.frame import follow_theme, frame
from pages.shared.service import Service


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service(home: Path) -> Service:
    """One queue for all sessions of this server. It warms up its host at once, in the background."""
    return Service(home, RunQueue(home))


def runs_home() -> Path:
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description=__doc__)
    arguments.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs", help="where runs are saved")
    return arguments.parse_args().runs.absolute()


def lab() -> None:
    show_lab(open_service(runs_home()))


def learn() -> None:
    show_learn(open_service(runs_home()))


frame()
pages = [
    st.Page(lab, title="Lab", icon=":material/science:", url_path="lab", default=True),
    st.Page(learn, title="Learn", icon=":material/school:", url_path="learn"),
]
st.navigation(pages, position="top").run()
follow_theme()
