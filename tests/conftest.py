"""Options and rules that hold for every test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from engine.ledger.store import KEPT_IN
from tests import recorded
from tests.browser.chromium import HOW_TO_HAVE_IT, chromium
from tests.launch import two_hosts
from tests.runs import Runs

if TYPE_CHECKING:  # of pytest-xdist, which only `make test` needs
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

# On a busy machine a limit on the time of one example says nothing about the code. All else stays as Hypothesis chose:
# on CI it draws the same examples every time.
settings.register_profile("shardscope", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shardscope")

LEFT_OUT = pytest.StashKey[int]()  # number of tests left out without a browser

# ------------------------------------------------------------------------------------------------------ several processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    from tests.workers import FileScheduling

    config.option.loadscopereorder = False
    return FileScheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Only workers collect tests. All of them leave the same ones out."""
    if told := getattr(node, "workeroutput", {}).get("left_out"):  # a worker that crashed tells nothing
        node.config.stash[LEFT_OUT] = told


# -------------------------------------------------------------------------------------------------------------- what they use


def pytest_configure(config: pytest.Config) -> None:
    """Processes of the tests find ledgers that come with the tests, and leave none in this user's home."""
    if KEPT_IN not in os.environ and config.cache is not None:
        home = config.cache.mkdir("ledgers")
        recorded.unpack(home)
        os.environ[KEPT_IN] = str(home)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """One warm host for all tests: importing torch is paid once, and then a run takes about a second."""
    with Runs(tmp_path_factory.mktemp("home")) as runs:
        yield runs


# ------------------------------------------------------------------------------------------------------- which tests run


def pytest_addoption(parser: pytest.Parser) -> None:
    how = "leave no test out, and count one that is skipped as failed, unless it is marked gpu"
    parser.addoption("--no-skips", action="store_true", help=how)


@pytest.hookimpl(trylast=True)  # after selection
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--no-skips") and chromium() is None:
        _leave_out_browser_tests(config, items)
    _skip_without_gpus(items)
    _skip_without_networks(items)
    _skip_without_modules(items)


def _leave_out_browser_tests(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in left_out]
    if (told := getattr(config, "workeroutput", None)) is not None:  # what a worker tells the process that prints
        told["left_out"] = len(left_out)
    else:
        config.stash[LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Print what was left out, as the last line."""
    yield
    if left_out := session.config.stash.get(LEFT_OUT, 0):
        many = f"{left_out} browser test{'s' if left_out > 1 else ''}"
        session.config.get_terminal_writer().line(f"left out: {many}, as there is no browser. {HOW_TO_HAVE_IT}")


def _skip_without_gpus(items: list[pytest.Item]) -> None:
    """Skip tests that need more GPUs than there are."""
    marks = [(item, mark) for item in items for mark in item.iter_markers("gpu")]
    if not marks:
        return
    import torch  # takes seconds: only if a test needs it

    there = torch.cuda.device_count()
    for item, mark in marks:
        needed = mark.kwargs.get("count", 1)
        if there < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs GPUs: {needed}, there are {there}"))


def _skip_without_networks(items: list[pytest.Item]) -> None:
    """Skip tests of two hosts where none can be made."""
    of_hosts = [item for item in items if item.get_closest_marker("two_hosts")]
    if of_hosts and (reason := two_hosts.missing()):
        for item in of_hosts:
            item.add_marker(pytest.mark.skip(reason=f"needs two hosts: {reason}"))


def _skip_without_modules(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("requires"):
            if find_spec(mark.args[0]) is None:
                item.add_marker(pytest.mark.skip(reason=f"needs {mark.args[0]}, which has no wheel for this system or Python"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not any(item.get_closest_marker(name) for name in ("gpu", "two_hosts", "requires")):
        _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a skipped module."""
    report = yield
    _refuse_skip(report, collector.config)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """With --no-skips, turn a skip or an expected failure into a failure."""
    if report.skipped and config.getoption("--no-skips"):
        why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else "expected to fail"
        report.outcome = "failed"
        report.longrepr = f"--no-skips: {why}"
        if hasattr(report, "wasxfail"):
            del report.wasxfail  # with it, pytest would still count an expected failure
