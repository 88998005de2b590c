"""The desk where a server's dry runs are asked for: one at a time, and none that nobody looks at."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine.launch.dry_desk import DryRunDesk, Rehearsed
from engine.predict.memory import memory
from engine.spec import LayoutSpec, RequestError, RunSpec
from tests.patience import PATIENCE_S

SPEC = RunSpec(layout=LayoutSpec(pp=2))


@pytest.fixture
def desk() -> Iterator[DryRunDesk]:
    desk = DryRunDesk()
    yield desk
    desk.close()


def ended(desk: DryRunDesk, id: str, look: bool = True) -> Rehearsed:
    """The state once it is no longer on."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        state = desk.look(id) if look else desk._states[id]
        assert state is not None
        if state.phase != "on":
            return state
        time.sleep(0.05)
    raise AssertionError("the dry run does not end")


def test_one_at_a_time_and_its_peaks_are_the_formulas(desk: DryRunDesk) -> None:
    id = desk.start(SPEC)
    with pytest.raises(RequestError, match="another dry run is on"):
        desk.start(SPEC, 0)
    state = ended(desk, id)
    assert (state.phase, state.done, state.of) == ("done", 2, 2)
    assert state.peaks is not None
    totals = state.peaks.groupby("pp")["bytes"].sum()
    assert totals.to_dict() == {peak.stage: pytest.approx(peak.total, rel=1e-3) for peak in memory(SPEC).peaks}


def test_a_cancelled_one_makes_room_and_a_wrong_one_says_why(desk: DryRunDesk) -> None:
    id = desk.start(SPEC)
    desk.cancel(id)
    assert ended(desk, id).phase == "cancelled"
    until = time.monotonic() + PATIENCE_S
    while desk._on is not None and time.monotonic() < until:
        time.sleep(0.01)
    state = ended(desk, desk.start(SPEC, 9))
    assert (state.phase, state.message) == ("failed", "rank 9 is not one of the 2 ranks of dp1.tp1.pp2, 0 to 1")
    assert desk.look("never heard of") is None


def test_what_nobody_looks_at_is_ended() -> None:
    desk = DryRunDesk(unwatched_s=0.0)
    assert ended(desk, desk.start(SPEC), look=False).phase == "cancelled"
    desk.close()
