"""Saved runs: saved completely or not at all, read unchanged, and refused with a sentence if malformed."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from engine import store
from engine.head import SCHEMA_VERSION, NewerRunError
from engine.spec import WHOLE_LOSS, LayoutSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import SCHEMAS, TABLES, RunResult, table
from tests.pages.stand_in import result_of

SPEC = RunSpec(layout=LayoutSpec(dp=2), workload=WorkloadSpec(steps=2), parity=True)


def a_result(**summary: Any) -> RunResult:
    """A complete run with numbers and texts that careless code would change. `summary` is added to its summary."""
    result = result_of(SPEC)
    changed = {
        "parity": result.tables["parity"].assign(parameter=["größe", "模型"], max_abs=0.1),
        "traffic": result.tables["traffic"].assign(wire_bytes=2**53 - 1),
        "expert_load": table(
            "expert_load", [dict.fromkeys(("rank", "layer", "expert", "step", "sender", "tokens"), 1)], "measured"
        ),
    }
    return replace(result, tables=result.tables | changed, summary=result.summary | summary)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    store.save(a_result(), folder)
    return folder


# ---------------------------------------------------------------------------------------------------------- saving and reading


def test_a_saved_run_is_read_back_as_it_was(saved: Path) -> None:
    made, read = a_result(), store.load(saved)
    assert (read.spec, read.environment, read.summary) == (made.spec, made.environment, made.summary)
    assert set(read.tables) == set(made.tables)
    for name, rows in made.tables.items():
        assert_frame_equal(read.tables[name], rows)


def test_a_saved_run_is_run_json_and_a_parquet_file_a_table(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"run.json", *(f"{name}.parquet" for name in SCHEMAS)}
    head = json.loads((saved / "run.json").read_text(encoding="utf-8"))
    assert set(head) == {"schema_version", "spec", "environment", "summary"}
    assert head["schema_version"] == SCHEMA_VERSION
    assert RunSpec.model_validate(head["spec"]) == SPEC


def test_an_optional_table_is_missing_if_it_was_not_requested(tmp_path: Path) -> None:
    """For example parity."""
    result = a_result()
    del result.tables["parity"]
    store.save(result, tmp_path / "run")
    assert set(store.load(tmp_path / "run").tables) == set(SCHEMAS) - {"parity"}


def test_a_number_that_is_not_finite_is_null_in_json_and_nan_when_read(tmp_path: Path) -> None:
    """Strict JSON has no NaN, and a run whose loss diverged must still be saved."""
    summary = {"loss_last": math.nan, "reference_losses": [1.0, math.inf], "ranks": [{"bytes": 3, "share": -math.inf}]}
    store.save(a_result(**summary), tmp_path / "run")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    head = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
    said = {"loss_last": None, "reference_losses": [1.0, None], "ranks": [{"bytes": 3, "share": None}]}
    assert {name: head["summary"][name] for name in summary} == said
    read = store.load(tmp_path / "run").summary
    assert math.isnan(read["loss_last"])
    assert read["reference_losses"][0] == 1.0
    assert math.isnan(read["reference_losses"][1])
    assert read["ranks"][0]["bytes"] == 3


# ---------------------------------------------------------------------------------------------------- complete or not at all


class Stop(BaseException):
    """Not an `Exception`, like Ctrl-C."""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Stop()])
@pytest.mark.parametrize("after", range(len(SCHEMAS)))
def test_a_failed_save_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    write = pd.DataFrame.to_parquet
    written: list[Path] = []

    def fail_at_last(self: pd.DataFrame, path: Path, **options: Any) -> None:
        if len(written) == after:
            raise error
        written.append(path)
        write(self, path, **options)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail_at_last)
    with pytest.raises(type(error)):
        store.save(a_result(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [object(), math.nan])
def test_a_value_that_json_cannot_hold_leaves_no_files(tmp_path: Path, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="JSON"):
        store.save(replace(a_result(), environment={"cores": value}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_listed_before_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []
    rename = os.rename

    def look_and_rename(source: Path, target: Path) -> None:
        seen.append(store.listing(tmp_path))
        assert not target.exists()
        rename(source, target)

    monkeypatch.setattr(os, "rename", look_and_rename)
    store.save(a_result(), tmp_path / "run")
    assert seen == [[]]
    assert store.listing(tmp_path) == [tmp_path / "run"]


@pytest.mark.parametrize("already", ["a run", "an empty folder", "a file"])
def test_an_existing_folder_is_not_changed(tmp_path: Path, already: str) -> None:
    folder = tmp_path / "run"
    if already == "a run":
        store.save(a_result(loss_last=1.0), folder)
    elif already == "an empty folder":
        folder.mkdir()
    else:
        folder.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="run"):
        store.save(a_result(), folder)
    assert sorted(tmp_path.rglob("*")) == before
    if already == "a run":
        assert store.load(folder).summary["loss_last"] == 1.0


def test_files_of_a_killed_writer_are_discarded_and_nothing_else(tmp_path: Path) -> None:
    for name in (".partial-123-run", ".partial-9-run", ".partial-123-run-2", "run-3", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / ".partial-9-[abc]").mkdir()
    store.discard_partial(tmp_path / "run")
    store.discard_partial(tmp_path / "[abc]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-123-run-2", "run", "run-3"]


# ------------------------------------------------------------------------------------------------------------ malformed runs


def refusal(folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        store.load(folder)
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder} is not a saved run: ")
    assert "\n" not in sentence.strip()
    return sentence


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "there is no run.json in it" in refusal(tmp_path / "nowhere")
    assert "there is no run.json in it" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "junk",
    [
        *(b"", b"not json", b"\xff\xfe", b"[]", b"null", b"{}", b'{"spec": {}}', b"[" * 100_000, b" " * (2 << 20)),
        b'{"spec": {}, "environment": {}, "summary": []}',
        b'{"spec": 1, "environment": {}, "summary": {}}',
    ],
)
def test_a_malformed_run_json_is_refused(saved: Path, junk: bytes) -> None:
    (saved / "run.json").write_bytes(junk)
    refusal(saved)


def test_a_spec_that_does_not_fit_is_refused_with_its_own_sentence(saved: Path) -> None:
    head = json.loads((saved / "run.json").read_text(encoding="utf-8"))
    head["spec"]["layout"]["tp"] = 3
    (saved / "run.json").write_text(json.dumps(head), encoding="utf-8")
    assert "tp=3 does not divide 4 heads" in refusal(saved)
    head["spec"]["layout"]["gpus"] = 3
    (saved / "run.json").write_text(json.dumps(head), encoding="utf-8")
    assert "there is no field 'gpus'" in refusal(saved)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_damaged_table_is_refused(saved: Path, name: str) -> None:
    path = saved / f"{name}.parquet"
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(damaged)
        refusal(saved)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_that_lacks_a_column_is_refused_by_name(saved: Path, name: str) -> None:
    path = saved / f"{name}.parquet"
    last = [column for column, rule in TABLES[name].columns.items() if rule.absent is None][-1]
    pd.read_parquet(path).drop(columns=last).to_parquet(path, index=False)
    assert f"{name}.parquet lacks {last}" in refusal(saved)


# ----------------------------------------------------------------------------------------------- older and newer programs


def rewrite_head(folder: Path, **changes: Any) -> None:
    head = json.loads((folder / "run.json").read_text(encoding="utf-8")) | changes
    known = {name: value for name, value in head.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(known), encoding="utf-8")


def test_a_run_without_a_version_opens(saved: Path) -> None:
    made = store.load(saved)
    rewrite_head(saved, schema_version=None)
    read = store.load(saved)
    assert (read.spec, read.environment, read.summary) == (made.spec, made.environment, made.summary)


def test_a_run_of_every_older_version_opens(saved: Path) -> None:
    for version in range(SCHEMA_VERSION + 1):
        rewrite_head(saved, schema_version=version)
        assert store.head(saved).spec == SPEC


def test_a_run_from_before_fused_attention_had_written_attention_and_a_whole_loss(saved: Path) -> None:
    head = json.loads((saved / "run.json").read_text())
    workload = {name: value for name, value in head["spec"]["workload"].items() if name not in ("attention", "loss_chunk")}
    rewrite_head(saved, schema_version=1, spec=head["spec"] | {"workload": workload})
    read = store.head(saved).spec.workload
    assert (read.attention, read.loss_chunk) == ("written", WHOLE_LOSS)


def test_in_a_run_without_a_column_for_an_axis_its_degree_is_1(saved: Path) -> None:
    """SPEC is sharded over dp, and not over tp."""
    path, made = saved / "memory_peak.parquet", store.load(saved).tables["memory_peak"]
    made.drop(columns="tp").to_parquet(path, index=False)
    assert_frame_equal(store.load(saved).tables["memory_peak"], made)
    made.drop(columns="dp").to_parquet(path, index=False)
    assert "memory_peak has rank 1 at a coordinate that differs from its layout" in refusal(saved)


def test_a_run_of_a_newer_program_is_refused_with_a_sentence_that_says_so(saved: Path) -> None:
    rewrite_head(saved, schema_version=SCHEMA_VERSION + 1, spec={"experts": 8}, summary=[])  # whatever else it has
    with pytest.raises(NewerRunError) as caught:
        store.load(saved)
    assert str(caught.value) == (
        f"{saved} cannot be opened: it was saved by a newer version of this program "
        f"(schema version {SCHEMA_VERSION + 1}; this program reads up to {SCHEMA_VERSION})"
    )


@pytest.mark.parametrize("version", ["1", 1.0, -1, True, []])
def test_a_malformed_version_is_refused(saved: Path, version: Any) -> None:
    rewrite_head(saved, schema_version=version)
    assert "run.json has a schema_version that is not a whole number of at least 0" in refusal(saved)


# --------------------------------------------------------------------------------------------------------------- listings


def test_the_newest_run_is_listed_first(tmp_path: Path) -> None:
    for age, name in enumerate(("c", "a", "b")):
        store.save(a_result(), tmp_path / name)
        os.utime(tmp_path / name / "run.json", (1_000_000 - age, 1_000_000 - age))
    assert [folder.name for folder in store.listing(tmp_path)] == ["c", "a", "b"]


def test_only_saved_runs_are_listed(tmp_path: Path) -> None:
    store.save(a_result(), tmp_path / "run")
    store.save(a_result(), tmp_path / ".texts")
    (tmp_path / ".partial-1-run").mkdir()
    (tmp_path / ".partial-1-run" / "run.json").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert store.listing(tmp_path) == [tmp_path / "run"]


def test_a_missing_home_folder_has_no_runs(tmp_path: Path) -> None:
    assert store.listing(tmp_path / "nowhere") == []
    (tmp_path / "file").touch()
    assert store.listing(tmp_path / "file") == []


def test_a_listing_never_leads_out_of_the_home_folder(tmp_path: Path) -> None:
    """So a name that is looked up in a listing cannot lead elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    store.save(a_result(), tmp_path / "outside")
    names = {folder.name for folder in store.listing(home)}
    assert names.isdisjoint({"../outside", "..", ".", "", str(tmp_path / "outside")})
    assert all(folder.parent == home for folder in store.listing(home))


def test_a_new_folder_is_named_by_the_spec_and_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.time.strftime", lambda form: "20261124-101500")
    names = []
    for _ in range(3):
        folder = store.new_folder(tmp_path, SPEC)
        names.append(folder.name)
        folder.mkdir()
    stem = "20261124-101500-dp2.tp1.pp1-1f1b"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
