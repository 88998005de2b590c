"""Dry runs: they allocate no memory for the model, and end cleanly."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from engine import catalog, store
from engine.__main__ import main
from engine.launch.dry_run.client import DryRun
from engine.launch.dry_run.rank import dry_run_rank
from engine.launch.failure import RunError
from engine.launch.textbook import textbook
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec
from tests.check_run import findings
from tests.launch.bench import all_end
from tests.runs import small


def test_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    """Two layers of the 175B model on each stage, on 128 ranks. The result fulfils the contract."""
    spec = RunSpec(
        model=catalog.model("gpt3-175b").model_copy(update={"layers": 4}),
        layout=LayoutSpec(dp=8, tp=8, pp=2),
        workload=WorkloadSpec(precision="bf16", microbatches=2),
    )
    rank_done: list[tuple[int, int]] = []
    progress: list[tuple[int, int]] = []
    with DryRun(spec, tmp_path) as running:
        folder = running.wait(lambda done, of: rank_done.append((done, of)), lambda over, of: progress.append((over, of)))
    assert store.listing(tmp_path) == [folder]
    assert list(findings(folder)) == []
    saved = store.load(folder)
    assert rank_done == [(1, 2), (2, 2)]
    actions = sum(map(len, textbook(spec).stages))
    assert progress == sorted(progress)
    assert progress[-1] == (actions, actions)
    assert saved.summary["rehearsed"] == [0, 64]
    assert saved.summary["peak_bytes"] > 5 * 2**30
    assert saved.summary["grown_bytes"] < 250 * 2**20
    assert saved.summary["bubble"] == pytest.approx(1 / 3)  # (p − 1) ÷ (m + p − 1)
    for name in ("memory_peak", "memory_curve", "traffic", "spans"):
        assert sorted(saved.tables[name]["rank"].unique()) == list(range(128)), name
        assert set(saved.tables[name]["source"]) == {"dry_run"}


def test_one_rank_of_a_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing text is no error, because its content has no effect."""
    flags = "dry-run --layers 2 --hidden 32 --layout dp2.tp2.pp2 --microbatches 2 --rank 5 --text nowhere.txt"
    assert main([*flags.split(), "--out", str(tmp_path)]) == 0
    (folder,) = store.listing(tmp_path)
    said = capsys.readouterr()
    assert said.err == ""
    assert f"saved    {folder}" in said.out
    assert set(store.load(folder).tables["memory_peak"]["rank"]) == {5}


def test_a_wrong_request_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dry-run", "--layout", "dp2.tp2", "--rank", "4", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", "rank 4 is not one of the 4 ranks of dp2.tp2.pp1, 0 to 3\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="--device cuda needs a GPU, and there is none here"):
        dry_run_rank(small(), 0, "cuda", textbook(small()))


def test_a_cancelled_dry_run_leaves_no_files(tmp_path: Path) -> None:
    before, its_own = set(psutil.Process().children(recursive=True)), set[psutil.Process]()
    with DryRun(small("pp2", microbatches=1000), tmp_path) as running:

        def cancel_in_the_midst(over: int, of: int) -> None:
            if not its_own:
                assert over < of
                its_own.update(set(psutil.Process().children(recursive=True)) - before)
                running.cancel()

        with pytest.raises(RunError, match="cancelled"):
            running.wait(progress=cancel_in_the_midst)
    assert len(its_own) == 3  # the program, and a process for each of two ranks
    assert all_end(list(its_own))
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_too_long_for_a_dry_run_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dry-run", "--layers", "1024", "--layout", "pp1024", "--microbatches", "65536"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        "pp=1024 × chunks=1 with 65536 microbatches are 402,391,040 passes and messages, and at most 1,000,000"
    )
    assert said.err.count("\n") == 1
