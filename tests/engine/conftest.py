"""One warm host for all tests of the engine: importing torch is paid once, and then a run takes about a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("home")) as runs:
        yield runs
