"""One warm host for all tests of the engine: importing torch is paid once, and then a run takes about a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Runs(tmp_path_factory.mktemp("home")) as runs:
        yield runs


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """For torch in this process: on a busy machine, threads that wait for each other make small operations slow."""
    import torch  # takes seconds: only where a test needs it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
