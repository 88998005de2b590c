"""Ledgers for tests, each read or recorded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from engine.launch.record import record
from engine.ledger.form import Ledger, Part, Structure
from engine.ledger.keep import LedgerFolder, Ledgers
from engine.ledger.store import ARCHIVES, LedgerStore


@pytest.fixture(scope="session")
def ledgers() -> Ledgers:
    """Those that are shipped are read, as in the product; tests/launch/test_recordings.py records some of them again."""
    shipped = LedgerStore(ARCHIVES, lambda: LedgerFolder(Path("none")))

    @cache
    def found(structure: Structure, part: Part) -> Ledger:
        return shipped(structure, part) if (structure, part) in shipped else record(structure, part)

    return found
