from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.bench import Bench, gone


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One warm host for all tests of a module."""
    bench = Bench(tmp_path_factory.mktemp("runs"))
    yield bench
    host = bench.host
    bench.queue.close()
    assert gone([host])
