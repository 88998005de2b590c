"""The files of a run. A file is made when its button is pressed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from engine import run_archive, store
from engine.export import ENDINGS, FRAMEWORKS, NAMES, Framework, csv_zip, perfetto, settings
from pages.shared.frame import say, view
from pages.shared.subprocesses import run_module


def draw(folder: Path) -> None:
    """The buttons for one run."""
    seen = view()  # the functions that make files run outside of the session, which knows theme and language
    _button(say()("The run as a zip file"), f"{folder.name}.zip", "application/zip", lambda: run_archive.pack(folder))
    _button(
        say()("A report with its charts (HTML)"),
        f"{folder.name}.html",
        "text/html",
        lambda: run_module("pages.runs.report", str(folder), seen.theme, seen.language),
    )
    _button(
        say()("Its timeline, for ui.perfetto.dev"),
        f"{folder.name}.perfetto.json",
        "application/json",
        lambda: perfetto(store.load(folder)).encode(),
    )
    _button(say()("Its tables, as CSV"), f"{folder.name}.csv.zip", "application/zip", lambda: csv_zip(store.load(folder)))
    st.caption(say()("The same layout, to launch elsewhere:"))
    with st.container(horizontal=True, gap="xsmall"):
        for to in FRAMEWORKS:
            _settings(folder, to)


def _settings(folder: Path, to: Framework) -> None:
    file = f"{folder.name}.{to}.{ENDINGS[to]}"
    _button(NAMES[to], file, "text/plain", lambda: settings(store.head(folder).spec, to).encode(), stretch=False)


def _button(label: str, file: str, mime: str, make: Callable[[], bytes], stretch: bool = True) -> None:
    st.download_button(
        label,
        make,
        file_name=file,
        mime=mime,
        key=f"runs/get/{file}",
        on_click="ignore",
        width="stretch" if stretch else "content",
    )
