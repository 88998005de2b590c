"""The published cases, computed. It imports neither Streamlit nor Altair, so that the worker starts fast."""

from __future__ import annotations

from engine.launch.recording.client import with_ledgers
from engine.papers.figures import references
from engine.papers.reference import Reference
from engine.predict.speed.rates import Assumptions


def cases(assumed: Assumptions) -> list[Reference]:
    """All published figures and ours. Missing ledgers are recorded in the process that computes. Raises `RequestError`."""
    return with_ledgers(lambda: references(assumed))
