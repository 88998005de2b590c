"""The searches of the Plan page, cached for all sessions."""

from __future__ import annotations

from pages.plan.found import Found, found
from pages.plan.request import Request
from pages.shared.cache import cached
from pages.shared.subprocesses import run_in_worker


@cached(16)
def searched(request: Request) -> Found:
    """The search, cached for all sessions. Raises `RequestError`."""
    return run_in_worker(found, request)


def planned(request: Request, row: int) -> Found:
    """The search with layout `row` included, which can be any. Raises `RequestError`."""
    plan = searched(request)
    return plan if row in plan else _with(request, row)


@cached(16)
def _with(request: Request, row: int) -> Found:
    return run_in_worker(found, request, row)
