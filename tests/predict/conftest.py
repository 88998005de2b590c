from __future__ import annotations

import pytest

from engine.launch.recording.client import with_ledgers
from engine.ledger.store import ledger_store
from tests.covering import covering, ledgers_of


@pytest.fixture(scope="session")
def recorded_ledgers() -> None:
    """Ledgers of the covering cases are there: those that are not shipped are recorded, once for this version of the code."""
    with_ledgers(lambda: ledger_store().check({key for spec in covering() for key in ledgers_of(spec)}))
