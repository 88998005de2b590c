"""Keep what a function made of hashable values alone: for pure functions that are asked the same by every session.

Streamlit's own caches find an entry by digesting its arguments, and hand out a copy: a millisecond each time, where one look into
a table will do. They remain right for what depends on files, or takes tables.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Any, ParamSpec, TypeVar

from cachetools import LRUCache, cached

P = ParamSpec("P")
T = TypeVar("T")


def kept(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the `most` latest results. They are shared: nobody may change one.

    Of sessions that ask for the same at one time, one makes it, and the others wait.
    """
    return _keeping(LRUCache(most))


def kept_by_size(most: int, size: Callable[[T], int]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The same for results some of which are large: as many of the latest as together have the size `most`.

    One that is larger by itself is made each time that it is asked for.
    """
    return _keeping(LRUCache(most, size))


def _keeping(cache: LRUCache[Any, Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        found: Callable[P, T] = cached(cache, condition=Condition())(function)
        return found

    return decorate
