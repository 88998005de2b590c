"""How long tests wait. No test measures time: on a slow or busy machine it passes too, only later."""

from __future__ import annotations

from collections.abc import Iterator

PATIENCE_S = 600.0  # for an expected event: it ends a test that hangs. A machine ten times slower does not reach it


def time_limits() -> Iterator[float]:
    """Time limits in seconds for a run that must end by its limit, but not before the event that a test is about.

    2 s are enough on an idle machine. If they are not, the test tries the next, longer limit.
    """
    yield from (2.0, 8.0, 32.0, 128.0)
