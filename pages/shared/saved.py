"""Saved runs, read once for all sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from engine import store
from engine.tables import RunResult


def _standing(folder: Path) -> tuple[str, int]:
    return str(folder), store.stamp(folder)


def by_run() -> dict[str | type[Any], Callable[[Any], Any]]:
    """`hash_funcs` for what is cached of a saved run by its folder: it is that run's alone, also when another takes its name."""
    return {type(Path()): _standing}


def load(folder: Path) -> RunResult:
    """A saved run never changes, so all sessions read one copy; nobody writes to its tables. Raises `RequestError`."""
    return _load(folder, store.stamp(folder))


@st.cache_resource(max_entries=8, show_spinner=False)
def _load(folder: Path, stamp: int) -> RunResult:
    """`stamp` keeps apart what stood under one name at different times."""
    return store.load(folder)
