"""How long tests wait. No verdict is about time: a machine that is slow or busy comes to the same ones, only later."""

from __future__ import annotations

from collections.abc import Iterator

PATIENCE_S = 600.0  # for what must come: it ends a test that hangs, and a machine ten times slower is far from it


def time_limits() -> Iterator[float]:
    """Seconds, for what is to be ended by a time limit, but not before it came to what a test is about.

    Two are enough on a machine with nothing else to do. Where they are not, the test is to try the next, which are more.
    """
    yield from (2.0, 8.0, 32.0, 128.0)
