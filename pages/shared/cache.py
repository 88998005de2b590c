"""Caches for pure functions of hashable arguments, shared by all sessions.

Streamlit's caches hash all arguments and return a copy, which takes a millisecond each time. A dictionary is faster. Functions
that read files or take tables need Streamlit's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Any, ParamSpec, TypeVar

import cachetools
from cachetools import LRUCache

P = ParamSpec("P")
T = TypeVar("T")


def cached(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the `most` latest results. They are shared: do not change one.

    If several sessions need the same result at once, one computes it and the others wait.
    """
    return _caching(LRUCache(most))


def cached_by_size(most: int, size: Callable[[T], int]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The same by size: keep the latest results with a total size of at most `most`.

    A single result that is larger is computed each time.
    """
    return _caching(LRUCache(most, size))


def _caching(cache: LRUCache[Any, Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        found: Callable[P, T] = cachetools.cached(cache, condition=Condition())(function)
        return found

    return decorate
