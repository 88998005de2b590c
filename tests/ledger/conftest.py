"""Ledgers for tests, each read or recorded once."""

from __future__ import annotations

from functools import cache

import pytest

from engine.launch.recording.record import record
from engine.ledger.form import Ledger, Part, Structure
from engine.ledger.keep import Ledgers
from engine.ledger.store import ledger_store


@pytest.fixture(scope="session")
def ledgers() -> Ledgers:
    """As in the product. tests/launch/test_recordings.py records some of them again."""
    store = ledger_store()

    @cache
    def found(structure: Structure, part: Part) -> Ledger:
        return store(structure, part) if (structure, part) in store else record(structure, part)

    return found
