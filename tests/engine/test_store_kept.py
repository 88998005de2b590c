"""A saved run can be renamed, deleted and restored: never outside of its home folder, never over another run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine import store
from engine.spec import RequestError
from tests.engine.test_store import SPEC, a_result


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name in ("first", "second"):
        store.save(a_result(), home / name)
    return home


def names(home: Path) -> set[str]:
    return {folder.name for folder in store.listing(home)}


def test_reading_the_head_of_a_run_opens_no_table(home: Path) -> None:
    for table in (home / "first").glob("*.parquet"):
        table.write_bytes(b"not read")
    head, whole = store.head(home / "first"), a_result()
    assert (head.spec, head.environment, head.summary, head.tables) == (SPEC, whole.environment, whole.summary, {})


def test_renaming_does_not_change_a_run(home: Path) -> None:
    folder = store.rename(home / "first", "zero 3, wide"[:6])
    assert folder == home / "zero 3"
    assert names(home) == {"zero 3", "second"}
    assert set(store.load(folder).tables) == set(a_result().tables)


def test_a_renamed_run_is_found_by_every_name_that_it_had(home: Path) -> None:
    store.rename(store.rename(home / "first", "two"), "three")
    assert [store.current(home, name) for name in ("first", "two", "three")] == [home / "three"] * 3
    assert store.current(home, "fourth") is None
    assert store.current(home, "../first") is None
    store.rename(home / "second", "first")  # whose name is free
    assert store.current(home, "first") == home / "first"
    store.rename(home / "three", "two")
    store.rename(home / "two", "three")
    assert store.current(home, "two") == home / "three"
    store.delete(home / "three")
    assert store.current(home, "two") is None
    assert names(home) == {"first"}


def test_runs_of_the_same_name_have_different_stamps(home: Path) -> None:
    before = store.stamp(home / "first")
    assert store.stamp(home / "first") == before
    store.delete(home / "first")
    with pytest.raises(RequestError, match="is not a saved run"):
        store.stamp(home / "first")
    store.save(a_result(), home / "first")
    assert store.stamp(home / "first") != before


@pytest.mark.parametrize("name", ["größe-2", "模型 (1)", "a.b_c+d=e", "9" * 80, "模" * 66, "CONTEXT", "com10", "a.con"])
def test_names_in_any_language_are_good(home: Path, name: str) -> None:
    assert store.rename(home / "first", name).name == name
    assert name in names(home)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            ".",
            "..",
            ".hidden",
            "../out",
            "a/b",
            "a\\b",
            "a,b",
            "a\0",
            "a\n",
            "a ",
            "-rf",
            "x" * 81,
            "/etc/passwd",
            "a:b",
        ),
        *("a.", "a. .", "CON", "nul", "NUL.txt", "Aux .tar.gz", "com1", "LPT9.x", "COM²", "模" * 67),  # not valid on every system
    ],
)
def test_a_name_that_could_lead_out_of_the_home_folder_is_refused(home: Path, name: str) -> None:
    before = sorted(home.parent.rglob("*"))
    with pytest.raises(RequestError, match=r"cannot be named .* begins with a letter or a digit"):
        store.rename(home / "first", name)
    assert sorted(home.parent.rglob("*")) == before


def test_a_run_never_replaces_another(home: Path) -> None:
    with pytest.raises(RequestError, match="there is another run named second"):
        store.rename(home / "first", "second")
    (home / "empty").mkdir()
    with pytest.raises(RequestError, match="there is another run named empty"):
        store.rename(home / "first", "empty")
    assert names(home) == {"first", "second"}


def test_a_deleted_run_is_not_listed_and_can_be_restored_unchanged(home: Path) -> None:
    before = store.load(home / "first")
    deleted = store.delete(home / "first")
    assert names(home) == {"second"}
    assert store.restore(deleted) == home / "first"
    assert names(home) == {"first", "second"}
    assert store.load(home / "first").summary == before.summary


def test_a_run_that_is_moved_away_has_no_size(home: Path) -> None:
    folder = store.listing(home)[0]
    assert store.size(folder) > 0
    store.delete(folder)
    assert store.size(folder) == 0


def test_a_restored_run_gets_another_name_if_its_name_is_taken(home: Path) -> None:
    deleted = store.delete(home / "first")
    store.save(a_result(loss_last=1.0), home / "first")
    assert store.restore(deleted) == home / "first-2"
    assert store.load(home / "first").summary["loss_last"] == 1.0


def test_deleting_or_restoring_a_run_twice_is_an_error(home: Path) -> None:
    deleted = store.delete(home / "first")
    with pytest.raises(RequestError, match="the run first is not there any more"):
        store.delete(home / "first")
    store.restore(deleted)
    with pytest.raises(RequestError, match="the run first is not there any more"):
        store.restore(deleted)
    with pytest.raises(RequestError, match="the run third is not there any more"):
        store.rename(home / "third", "fourth")


def test_a_deleted_run_is_kept_for_a_day(home: Path) -> None:
    first = store.delete(home / "first")
    store.empty_trash(home)  # another server of this home folder does this when it starts
    for _ in range(30):
        store.save(a_result(), home / "run")
        store.delete(home / "run")
    assert store.restore(first) == home / "first"
    (home / ".trash" / ".DS_Store").touch()  # a file that a file manager writes
    second = store.delete(home / "second")
    store.empty_trash(home, time.time_ns() + store.KEPT_NS + 1)
    assert not second.exists()
    assert names(home) == {"first"}
