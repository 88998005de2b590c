"""Ledgers for tests, each recorded once."""

from __future__ import annotations

from functools import cache

import pytest

from engine.launch.record import record
from engine.ledger.form import Ledger, Part, Structure
from engine.ledger.keep import Ledgers


@pytest.fixture(scope="session")
def ledgers() -> Ledgers:
    @cache
    def recorded(structure: Structure, part: Part) -> Ledger:
        return record(structure, part)

    return recorded
