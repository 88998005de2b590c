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
from pages.shared import entry, navigation
from pages.shared.frame import follow_theme, frame, say
from pages.shared.server_memory import limit_server_memory
from pages.shared.service import Service, open_service
from pages.teacher.page import show as show_teacher


def page(path: str, title: str, icon: str, show: Callable[[Service], None], **options: Any) -> StreamlitPage:
    """A page; in a class, the door in its place until the reader has entered."""
    shown = entry.show if outside else show
    return st.Page(lambda: shown(open_service()), title=title, icon=f":material/{icon}:", url_path=path, **options)


limit_server_memory()
frame()
service = open_service()
person = service.person()
outside = service.classroom is not None and person is None
pages = [
    page("start", say()("Lab"), "science", show_lab, default=True),  # the page at /; /start does not exist
    page("compare", say()("Compare"), "compare_arrows", show_compare),
    page("plan", say()("Plan"), "map", show_plan),
    page("learn", say()("Learn"), "school", show_learn),
    page("runs", say()("Runs"), "inventory_2", show_runs),
    page("lab", say()("Lab"), "science", show_lab, visibility="hidden"),  # so that /lab is a good link too
]
if person is not None:
    entry.remember(service)
if outside or (person is not None and person.teacher):
    shows = {"visibility": "hidden"} if outside else {}  # its address is good before the teacher has entered
    pages.append(page("teacher", say()("The class"), "groups", show_teacher, **shows))
navigation.register(pages)
st.navigation(pages, position="top").run()
follow_theme()
