"""Shardscope in the browser: `streamlit run app.py`. Runs are kept in runs/ beside this file, or in `-- --runs DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from engine.launch.queue import RunQueue
from pages.compare.page import show as show_compare
from pages.lab.page import show as show_lab
from pages.learn.page import show as show_learn
from pages.plan.page import show as show_plan
from pages.runs.page import show as show_runs
from pages.shared import ways
from pages.shared.frame import follow_theme, frame, say
from pages.shared.service import Service
from pages.shared.thrift import share_one_heap


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service(home: Path) -> Service:
    """One queue for all sessions of this server. It warms up its host at once, in the background."""
    return Service(home, RunQueue(home))


def runs_home() -> Path:
    arguments = argparse.ArgumentParser(prog="streamlit run app.py --", description=__doc__)
    arguments.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs", help="where runs are saved")
    return arguments.parse_args().runs.absolute()


def page(path: str, title: str, icon: str, show: Callable[[Service], None], **options: Any) -> StreamlitPage:
    return st.Page(lambda: show(open_service(runs_home())), title=title, icon=f":material/{icon}:", url_path=path, **options)


share_one_heap()
frame()
pages = [
    page("start", say()("Lab"), "science", show_lab, default=True),  # what the bare address shows; its own path never does
    page("compare", say()("Compare"), "compare_arrows", show_compare),
    page("plan", say()("Plan"), "map", show_plan),
    page("learn", say()("Learn"), "school", show_learn),
    page("runs", say()("Runs"), "inventory_2", show_runs),
    page("lab", say()("Lab"), "science", show_lab, visibility="hidden"),  # so that /lab is a good link too
]
ways.know(pages)
st.navigation(pages, position="top").run()
follow_theme()
