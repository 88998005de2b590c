"""Saved runs, read once for all sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from engine import store
from engine.tables import RunResult


def _path_and_stamp(folder: Path) -> tuple[str, int]:
    return str(folder), store.stamp(folder)


def by_run() -> dict[str | type[Any], Callable[[Any], Any]]:
    """`hash_funcs` for caches keyed by a run's folder. Another run that takes the folder's name is another key."""
    return {type(Path()): _path_and_stamp}


def load(folder: Path) -> RunResult:
    """A saved run. It never changes, so all sessions share one copy: do not write to its tables. Raises `RequestError`."""
    return _load(folder, store.stamp(folder))


@st.cache_resource(max_entries=8, show_spinner=False)
def _load(folder: Path, stamp: int) -> RunResult:
    """`stamp` distinguishes runs that had the same folder name at different times."""
    return store.load(folder)
