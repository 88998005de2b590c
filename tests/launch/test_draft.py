"""A run's folder before and after it gets its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import store
from engine.launch.draft import Draft
from engine.spec import RunSpec
from engine.tables import RunResult


def saved_draft(home: Path) -> Draft:
    draft = Draft.new(home)
    store.save(RunResult(RunSpec(), {}, {}), draft.folder)
    return draft


def test_a_draft_is_not_listed_before_it_is_kept(tmp_path: Path) -> None:
    draft = saved_draft(tmp_path)
    assert store.listing(tmp_path) == []
    folder = draft.keep(RunSpec())
    assert store.listing(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_name_taken_in_the_meantime_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = tmp_path / "taken", tmp_path / "free"
    names = iter([taken, free])
    monkeypatch.setattr(store, "new_folder", lambda home, spec: next(names))
    taken.mkdir()
    (taken / "run.json").touch()
    assert saved_draft(tmp_path).keep(RunSpec()) == free
    assert sorted(tmp_path.iterdir()) == [free, taken]


def test_discarding_removes_complete_and_partial_folders(tmp_path: Path) -> None:
    other, draft = saved_draft(tmp_path), saved_draft(tmp_path)
    half = tmp_path / f".partial-123-{draft.name}"
    half.mkdir()
    (half / "steps.parquet").touch()
    draft.discard()
    draft.discard()  # a missing folder is no error
    assert list(tmp_path.iterdir()) == [other.folder]
