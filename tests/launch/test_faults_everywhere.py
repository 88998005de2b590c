"""Faults of every kind, in every phase of a run, of the first, a middle and the last rank: each is told and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.faults import KINDS, Case, FaultyBench, cases, faulty_bench, wrong_with

SHORT = [
    Case("start", "SIGKILL", 3),
    Case("rendezvous", "raise", 2),
    Case("rendezvous", "SIGTERM", 0),
    Case("building", "full disk", 3),
    Case("forward", "closed sockets", 2),
    Case("backward", "SIGSEGV", 0),
    Case("reduction", "SIGSTOP", 2),
    Case("optimizer", "exit", 3),
    Case("generating", "SIGKILL", 2),
    Case("parity", "raise", 0),
    Case("saving", "full disk", 0),
    Case("saving", "read-only folder", 0),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyBench]:
    with faulty_bench(tmp_path_factory.mktemp("faults")) as bench:
        yield bench


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_a_fault_is_told_and_leaves_nothing(faulty: FaultyBench, case: Case) -> None:
    state = faulty.answer(case)
    assert wrong_with(case, state, faulty.left_behind()) == []


def test_the_next_run_works(faulty: FaultyBench) -> None:
    assert faulty.told(None).phase == "done"


@pytest.mark.nightly
def test_every_fault(faulty: FaultyBench, capsys: pytest.CaptureFixture[str]) -> None:
    wrong, left, slowest = [], 0, 0.0
    tried = list(cases())
    assert len(tried) >= 200
    assert {case.kind for case in tried} == set(KINDS)
    for case in tried:
        state = faulty.answer(case)
        if case.kind != "SIGSTOP":  # which is told at the run's time limit
            slowest = max(slowest, faulty.seconds())
        behind = faulty.left_behind()
        left += len(behind)
        if found := wrong_with(case, state, behind):
            wrong.append(f"{case}: {'; '.join(found)}")
    told = len(tried) - len(wrong)
    with capsys.disabled():
        print(f"\nfaults: {len(tried)} tried, {told} told, {left} left behind; the slowest in {slowest:.1f} s")
    assert wrong == []
    assert faulty.told(None).phase == "done"
