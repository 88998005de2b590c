"""The queue: order of runs, cancelling, watching, the warm host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import store
from engine.launch.queue.run_queue import RunQueue
from engine.spec import RequestError
from tests.launch.bench import Bench, finished, gone, hang_instead_of_torch, hosts, small, until

LONG = 10_000  # steps; such a run must be cancelled


def test_a_run_reports_its_progress_and_is_saved(bench: Bench) -> None:
    spec = small("dp1.tp2.pp2", parity=True)
    id = bench.queue.submit(spec)
    assert len(id) >= 20
    state = finished(bench.queue, id)
    assert (state.phase, state.step, len(state.losses), state.ahead) == ("done", 3, 3, 0)
    assert state.backend == "gloo"
    assert "0 GPUs for 4 ranks" in state.why
    assert state.ready_s is not None
    assert state.message == ""
    assert state.failed_rank is None
    assert state.folder is not None
    assert bench.saved() == [state.folder.name]
    result = store.load(state.folder)
    assert result.spec == spec
    assert tuple(result.tables["steps"]["loss"]) == pytest.approx(state.losses)
    assert bench.ranks() == []


def test_runs_wait_for_their_turn(bench: Bench) -> None:
    first, second, third = (bench.queue.submit(small(steps=steps)) for steps in (LONG, 1, 1))
    assert [bench.queue.state(id).ahead for id in (second, third)] == [1, 2]  # type: ignore[union-attr]
    until(bench.queue, first, lambda state: state.phase == "running")
    assert bench.queue.state(second).phase == "queued"  # type: ignore[union-attr]
    bench.queue.cancel(first)
    assert finished(bench.queue, third).phase == "done"
    assert bench.queue.state(second).phase == "done"  # type: ignore[union-attr]


def test_cancelling_a_run_in_the_queue(bench: Bench) -> None:
    before = bench.saved()
    first, second, third = (bench.queue.submit(small(steps=LONG)) for _ in range(3))
    bench.queue.cancel(second)
    state = finished(bench.queue, second)
    assert (state.phase, state.message, state.ready_s) == ("cancelled", "cancelled", None)
    until(bench.queue, third, lambda state: state.ahead == 1)
    bench.queue.cancel(third)
    bench.queue.cancel(first)
    assert finished(bench.queue, first).phase == finished(bench.queue, third).phase == "cancelled"
    assert bench.saved() == before


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_cancelling_an_active_run_leaves_no_files(bench: Bench, phase: str) -> None:
    """And it does not wait until the run's last step."""
    before = bench.saved()
    id = bench.queue.submit(small("dp2.tp2.pp2", steps=LONG))
    until(bench.queue, id, lambda state: state.phase in (phase, "running"))
    ranks = bench.ranks()
    bench.queue.cancel(id)
    assert finished(bench.queue, id).phase == "cancelled"
    assert gone(ranks)
    assert bench.ranks() == []
    assert bench.saved() == before


def test_cancelling_a_finished_or_unknown_run_does_nothing(bench: Bench) -> None:
    id = bench.queue.submit(small(steps=1))
    state = finished(bench.queue, id)
    bench.queue.cancel(id)
    bench.queue.cancel("nobody")
    assert finished(bench.queue, bench.queue.submit(small(steps=1))).phase == "done"
    assert bench.queue.state(id) == state
    assert bench.queue.state("nobody") is None
    assert bench.queue.watch("nobody") is None


def test_waiting_ends_after_the_given_time(bench: Bench) -> None:
    id = bench.queue.submit(small(steps=1))
    state = finished(bench.queue, id)
    assert bench.queue.wait(id, state, 0.01) == state
    assert bench.queue.wait("nobody", None, 0.01) is None
    assert bench.queue.wait(id, None, 0.01) == state


def test_a_run_that_this_machine_cannot_run_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(RequestError, match="is 32 ranks; this machine runs at most 16"):
        bench.queue.submit(small("dp16.tp2.pp1"))


def test_a_run_that_nobody_watches_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of the test, so that no test depends on time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("engine.launch.queue.run_queue.time", SimpleNamespace(monotonic=lambda: clock.now))
    bench = Bench(tmp_path, unwatched_s=90.0)
    with bench.queue as queue:
        watched, unwatched = queue.submit(small(steps=LONG)), queue.submit(small(steps=LONG))
        until(queue, watched, lambda state: state.step > 0)
        clock.now = 60.0
        queue.watch(watched)
        clock.now = 100.0
        queue.cancel("nobody")  # makes the queue read the clock again
        assert finished(queue, unwatched).message == "cancelled: the page was closed for 90 s"
        ranks = bench.ranks()
        assert len(ranks) == 4
        clock.now = 150.0
        queue.cancel("nobody")
        state = finished(queue, watched)
        assert (state.phase, state.message) == ("cancelled", "cancelled: the page was closed for 90 s")
        assert gone(ranks)


def test_an_unwatched_run_ends_without_a_poll(tmp_path: Path) -> None:
    with RunQueue(tmp_path, unwatched_s=0.5) as queue:
        assert finished(queue, queue.submit(small(steps=LONG))).message == "cancelled: the page was closed for 0.5 s"


def test_closing_ends_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "made" / "if missing")
    running, queued = bench.queue.submit(small(steps=LONG)), bench.queue.submit(small())
    until(bench.queue, running, lambda state: state.step > 0)
    host, ranks = bench.host, bench.ranks()
    bench.queue.close()
    assert gone([host, *ranks])
    assert bench.saved() == []
    for id in (running, queued):
        state = bench.queue.state(id)
        assert state is not None
        assert state.phase == "cancelled"
    bench.queue.close()  # closing twice is no error
    bench.queue.cancel(running)
    with pytest.raises(RuntimeError):
        bench.queue.submit(small())


def test_closing_does_not_wait_for_a_host_to_become_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", hang_instead_of_torch(tmp_path))
    bench = Bench(tmp_path / "runs")
    id = bench.queue.submit(small())
    until(bench.queue, id, lambda state: state.phase == "starting")
    host = bench.host
    bench.queue.close()
    assert gone([host])


def test_a_host_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with RunQueue(tmp_path / "runs", None) as queue:
        for _ in range(2):  # each run tries again
            state = finished(queue, queue.submit(small()))
            assert state.phase == "failed"
            assert state.failed_rank is None
            assert state.message.startswith("the process that runs the ranks could not start: ")
            assert "no torch today" in state.traceback


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(hosts())
    with pytest.raises(RequestError, match=r"cannot make the folder .*file/runs for runs: Not a directory"):
        RunQueue(tmp_path / "file" / "runs")
    assert len(hosts()) == before


def test_the_server_never_imports_torch() -> None:
    code = "import sys, engine.launch.queue.run_queue, engine.__main__, engine.command.run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
