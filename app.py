"""Shardscope in the browser: `streamlit run app.py`. Runs are kept in runs/ beside this file, or in `-- --runs DIR`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages.compare.page import show as show_compare
from pages.lab.page import show as show_lab
from pages.learn.page import show as show_learn
from pages.plan.page import show as show_plan
from pages.runs.page import show as show_runs
from pages.shared import navigation
from pages.shared.frame import follow_theme, frame, say
from pages.shared.server_memory import limit_server_memory
from pages.shared.service import Service, open_service


def page(path: str, title: str, icon: str, show: Callable[[Service], None], **options: Any) -> StreamlitPage:
    return st.Page(lambda: show(open_service()), title=title, icon=f":material/{icon}:", url_path=path, **options)


limit_server_memory()
frame()
pages = [
    page("start", say()("Lab"), "science", show_lab, default=True),  # the page at /; /start does not exist
    page("compare", say()("Compare"), "compare_arrows", show_compare),
    page("plan", say()("Plan"), "map", show_plan),
    page("learn", say()("Learn"), "school", show_learn),
    page("runs", say()("Runs"), "inventory_2", show_runs),
    page("lab", say()("Lab"), "science", show_lab, visibility="hidden"),  # so that /lab is a good link too
]
navigation.register(pages)
st.navigation(pages, position="top").run()
follow_theme()
