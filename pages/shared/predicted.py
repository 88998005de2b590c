"""Predictions for a spec, computed once for all pages and sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.launch.recording.client import with_ledgers
from engine.predict.memory import Memory, memory
from engine.predict.run import predict
from engine.spec import LayoutSpec, RunSpec, Sentence
from engine.tables import RunResult
from pages.shared.cache import cached_by_size
from pages.shared.frame import say

_Answer = TypeVar("_Answer")
_KEPT_BYTES = 24 << 20  # of tables


def listed(layout: LayoutSpec) -> int:
    """The number of ranks with rows in tables. A sum over them is divided by it for the mean."""
    return len(layout.mesh.listed)


def _bytes_of(result: RunResult) -> int:
    return sum(int(table.memory_usage(deep=True).sum()) for table in result.tables.values())


@cached_by_size(_KEPT_BYTES, _bytes_of)
def predicted(spec: RunSpec) -> RunResult:
    """The prediction without a table of spans, which no page needs. Raises `RequestError` as `predict` does."""
    found = peaks(spec)
    return with_ledgers_shown(lambda: predict(spec, found, spans=False))


def _peaks_of(found: Memory) -> int:
    return len(found.peaks)


@cached_by_size(2_048, _peaks_of)
def peaks(spec: RunSpec) -> Memory:
    """The peaks with their terms, which tables do not have. Raises `RequestError` as `memory` does."""
    return with_ledgers_shown(lambda: memory(spec))


def with_ledgers_shown(ask: Callable[[], _Answer]) -> _Answer:
    """As `with_ledgers`, with a line on the page while ledgers are recorded."""
    lines: list[DeltaGenerator] = []

    def show(what: Sentence) -> None:
        lines.append(st.info(say().sentence(what), icon=":material/hourglass_top:"))

    try:
        return with_ledgers(ask, show)
    finally:
        for line in lines:
            line.empty()
