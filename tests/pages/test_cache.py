"""Caches of all sessions: a result is computed once, and an error is not cached."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from engine.spec import RequestError
from pages.shared.cache import cached, cached_by_size
from tests.patience import PATIENCE_S


def test_concurrent_sessions_share_one_computation() -> None:
    made: list[object] = []
    start = Barrier(8)

    @cached(2)
    def make(name: str) -> object:
        made.append(object())
        return made[-1]

    def session(_: int) -> object:
        start.wait(PATIENCE_S)
        return make("same")

    with ThreadPoolExecutor(8) as sessions:
        assert set(sessions.map(session, range(8))) == set(made)
    assert len(made) == 1
    make("another")
    make("a third")  # the cache keeps two
    assert make("same") is not made[0]


def test_an_error_reaches_every_caller_and_is_not_cached() -> None:
    asked: list[int] = []

    @cached(2)
    def refuse(number: int) -> int:
        asked.append(number)
        raise RequestError(f"{number} does not fit")

    with ThreadPoolExecutor(4) as sessions:
        answers = [sessions.submit(refuse, 3) for _ in range(4)]
    for answer in answers:
        with pytest.raises(RequestError, match="3 does not fit"):
            answer.result()
    assert asked == [3, 3, 3, 3]


def test_large_results_displace_more_than_small_ones():
    made: list[int] = []

    @cached_by_size(10, len)
    def text(length: int) -> str:
        made.append(length)
        return "x" * length

    for length in (4, 5, 4, 5, 8, 4, 11, 11):
        assert len(text(length)) == length
    assert made == [4, 5, 8, 4, 11, 11]  # 8 displaced both others, 4 is new again, and 11 is larger than the cache
