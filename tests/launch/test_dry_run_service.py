"""The dry runs of a server: one at a time, and only while somebody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine.launch.dry_run.service import DryRunService, DryRunState
from engine.predict.memory import memory
from engine.spec import LayoutSpec, RequestError, RunSpec
from tests.patience import PATIENCE_S

SPEC = RunSpec(layout=LayoutSpec(pp=2))


@pytest.fixture
def service() -> Iterator[DryRunService]:
    service = DryRunService()
    yield service
    service.close()


def ended(service: DryRunService, id: str, watch: bool = True) -> DryRunState:
    """The state after it has ended."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        state = service.watch(id) if watch else service._states[id]
        assert state is not None
        if state.phase != "running":
            return state
        time.sleep(0.05)
    raise AssertionError("the dry run does not end")


def test_dry_runs_run_one_at_a_time_and_their_peaks_equal_the_formula(service: DryRunService) -> None:
    id = service.start(SPEC)
    with pytest.raises(RequestError, match="another dry run is on"):
        service.start(SPEC, 0)
    state = ended(service, id)
    assert (state.phase, state.done, state.of) == ("done", 2, 2)
    assert state.peaks is not None
    totals = state.peaks.groupby("pp")["bytes"].sum()
    assert totals.to_dict() == {peak.stage: pytest.approx(peak.total, rel=1e-3) for peak in memory(SPEC).peaks}


def test_after_a_cancelled_dry_run_another_can_start_and_a_failed_one_has_its_reason(service: DryRunService) -> None:
    id = service.start(SPEC)
    service.cancel(id)
    assert ended(service, id).phase == "cancelled"
    until = time.monotonic() + PATIENCE_S
    while service._current is not None and time.monotonic() < until:
        time.sleep(0.01)
    state = ended(service, service.start(SPEC, 9))
    assert (state.phase, state.message) == ("failed", "rank 9 is not one of the 2 ranks of dp1.tp1.pp2, 0 to 1")
    assert service.watch("never heard of") is None


def test_a_dry_run_that_nobody_watches_is_ended() -> None:
    service = DryRunService(unwatched_s=0.0)
    assert ended(service, service.start(SPEC), watch=False).phase == "cancelled"
    service.close()
