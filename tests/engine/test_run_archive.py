"""A run in a zip: packing is complete, and unpacking accepts nothing but a valid run."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal
from pyarrow import parquet as pq

from engine import run_archive, store
from engine.head import SCHEMA_VERSION
from engine.spec import LayoutSpec, RequestError, RunSpec
from engine.spec.sentence import unpacked
from pages.charts.words import words
from pages.lab.figures import figures
from tests.pages.stand_in import saved as stand_in
from tests.patience import PATIENCE_S

Files = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run of two stages."""
    return stand_in(tmp_path / "there", RunSpec(layout=LayoutSpec(pp=2), parity=True), "my run")


def files_of(run: Path) -> Files:
    return {f"{run.name}/{path.name}": path.read_bytes() for path in run.iterdir()}


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_run_survives_its_zip(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "here"
    folder = run_archive.unpack(run_archive.pack(run), home, "some file")
    assert folder == home / "my run"
    made, read = store.load(run), store.load(folder)
    assert (read.spec, read.environment, read.summary) == (made.spec, made.environment, made.summary)
    assert set(read.tables) == set(made.tables)
    for name, rows in made.tables.items():
        assert_frame_equal(read.tables[name], rows)


def test_a_second_run_of_the_same_name_gets_another_name(run: Path) -> None:
    assert run_archive.unpack(run_archive.pack(run), run.parent, "") == run.parent / "my run-2"
    assert run_archive.unpack(run_archive.pack(run), run.parent, "") == run.parent / "my run-3"


def test_a_zip_without_a_folder_is_named_by_its_file_or_its_spec(run: Path, tmp_path: Path) -> None:
    flat = zipped({path.name: path.read_bytes() for path in run.iterdir()} | {"__MACOSX/._x": b"", ".DS_Store": b""})
    assert run_archive.unpack(flat, tmp_path, "Übung 1").name == "Übung 1"
    assert run_archive.unpack(flat, tmp_path, "../../x").name.endswith("-dp1.tp1.pp2-1f1b")


def test_bytes_between_nodes_are_counted_again_from_the_tables(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    head(files, lambda h: h["environment"].update(nodes=[0, 1]))
    head(files, lambda h: h["summary"].update(wire_bytes_between_nodes=1))
    result = store.load(run_archive.unpack(zipped(files), tmp_path / "here", "x"))
    assert result.summary["wire_bytes_between_nodes"] == result.tables["traffic"]["wire_bytes"].sum() > 1
    assert "100.0% of all between nodes" in str(figures(result, words("en")))


# ------------------------------------------------------------------------------------------------------------ refused


def head(files: Files, change: Callable[[dict[str, Any]], object]) -> None:
    read = json.loads(files["my run/run.json"])
    change(read)
    files["my run/run.json"] = json.dumps(read).encode()


def table(files: Files, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    key = f"my run/{name}.parquet"
    buffer = io.BytesIO()
    change(pd.read_parquet(io.BytesIO(files[key]))).to_parquet(buffer, index=False)
    files[key] = buffer.getvalue()


def move(files: Files, new: str) -> None:
    files[new] = files.pop("my run/steps.parquet")


def many_rows(files: Files) -> None:
    """A few bytes that are millions of equal rows."""
    table(files, "steps", lambda t: t.loc[t.index.repeat(run_archive.FOREIGN.rows)])


def many_groups(files: Files) -> None:
    """Row groups exist only in the file's metadata, and take memory."""
    key = "my run/process.parquet"
    read, buffer = pq.read_table(io.BytesIO(files[key])), io.BytesIO()
    with pq.ParquetWriter(buffer, read.schema) as writer:
        for _ in range(100):
            writer.write_table(read)
    files[key] = buffer.getvalue()


def repeat_a_long_word(files: Files) -> None:
    """A long word that is in the file once, and in every row of the table."""
    word = "x" * (run_archive.FOREIGN.bytes // 4 + 1)
    rewrite(files, "traffic", lambda t: t.set_column(5, "group", pa.array([word] * 4, pa.large_string())))


def rewrite(files: Files, name: str, change: Callable[[pa.Table], pa.Table], **how: Any) -> None:
    key = f"my run/{name}.parquet"
    read, buffer = pq.read_table(io.BytesIO(files[key])), io.BytesIO()
    pq.write_table(change(read), buffer, **how)
    files[key] = buffer.getvalue()


def nothing_in(column: str) -> Callable[[pa.Table], pa.Table]:
    def change(read: pa.Table) -> pa.Table:
        at = read.column_names.index(column)
        return read.set_column(at, column, pa.array([None, *read[column].to_pylist()[1:]], read[column].type))

    return change


def no_text_in(column: str) -> Callable[[pa.Table], pa.Table]:
    def change(read: pa.Table) -> pa.Table:
        words = pa.array([b"\xff\xfe"] * read.num_rows, pa.large_binary())
        return read.set_column(read.column_names.index(column), column, words.view(pa.large_string()))

    return change


def summary(files: Files, **changes: Any) -> None:
    head(files, lambda h: h["summary"].update(changes))


def text_of_head(files: Files, old: str, new: str) -> None:
    key = "my run/run.json"
    files[key] = files[key].decode().replace(old, new, 1).encode()


def first(name: str, **values: Any) -> Callable[[Files], None]:
    """Other values in the first row of a table."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        for column, value in values.items():
            rows.loc[0, column] = value
        return rows

    return lambda files: table(files, name, change)


WRONG: dict[str, tuple[Callable[[Files], object], str]] = {
    "a path out": (lambda f: move(f, "../steps.parquet"), "'../steps.parquet' does not belong in it"),
    "a path to the root": (lambda f: move(f, "/steps.parquet"), "'/steps.parquet' does not belong in it"),
    "a deep path": (lambda f: move(f, "my run/../../steps.parquet"), "does not belong in it"),
    "a windows path": (lambda f: move(f, "my run\\steps.parquet"), "does not belong in it"),
    "another file": (lambda f: f.update({"my run/run.py": b""}), "'my run/run.py' does not belong in it"),
    "two folders": (lambda f: move(f, "other/steps.parquet"), "more than one folder: my run, other"),
    "thousands of files": (lambda f: f.update({f"__MACOSX/{n}": b"" for n in range(1000)}), "1,008 files; at most 1,000"),
    "no head": (lambda f: f.pop("my run/run.json"), "run.json is not in it"),
    "no table": (lambda f: f.pop("my run/spans.parquet"), "spans.parquet is not in it"),
    # run.json
    "no json": (lambda f: f.update({"my run/run.json": b"{"}), "run.json is not JSON"),
    "a large head": (lambda f: f.update({"my run/run.json": b" " * (1 << 20) + b"{}"}), "1,048,578 bytes; at most 1,048,576"),
    "empty lists": (lambda f: head(f, lambda h: h["environment"].update(x=[[]] * 200_000)), "has more than 200,000 values"),
    "a deep list": (lambda f: text_of_head(f, '"gloo"', "[" * 50 + "]" * 50), "run.json has lists or objects more than 10 deep"),
    "a name twice": (lambda f: text_of_head(f, "{", '{"summary": {},'), "'summary' is given twice in one object"),
    "no text": (lambda f: text_of_head(f, "gloo on", "\\ud800 on"), "an unpaired surrogate"),
    "a spec that does not fit": (lambda f: head(f, lambda h: h["spec"]["layout"].update(tp=3)), "tp=3 does not divide 4 heads"),
    "no backend": (lambda f: head(f, lambda h: h["environment"].pop("backend")), "environment needs backend"),
    "no cores": (lambda f: head(f, lambda h: h["environment"].update(cores="many")), "cores='many' must be a whole number"),
    "what was generated": (lambda f: summary(f, generated="x"), "generated must be an object with fields such as prompt"),
    "no numbers": (lambda f: summary(f, allocator=[{"rank": 0, "start_bytes": 0, "peak_bytes": 0, "workspace_bytes": "1"}]),
                   "workspace_bytes='1' must be a whole number"),
    "a rank of no table": (lambda f: summary(f, rehearsed=[7]), "its summary names a rank that is not in memory_peak"),
    # A table's file
    "no table inside": (lambda f: f.update({"my run/steps.parquet": b"PAR1" * 9}), "steps.parquet is not a table"),
    "a column less": (lambda f: table(f, "steps", lambda t: t.drop(columns="loss")), "steps.parquet lacks loss"),
    "a column more": (lambda f: table(f, "steps", lambda t: t.assign(x=1)), "steps.parquet has an unknown column 'x'"),
    "a type": (lambda f: table(f, "spans", lambda t: t.assign(rank=0.5)), "double in rank; it must be int64"),
    "another whole number": (lambda f: table(f, "spans", lambda t: t.astype({"rank": "uint64"})), "uint64 in rank; it must be"),
    "lists": (lambda f: table(f, "steps", lambda t: t.assign(loss=[[1.0], [2.0]])), "in loss; it must be float64"),
    "another way": (lambda f: rewrite(f, "spans", lambda t: t, compression="zstd"), "an encoding that is not accepted: ZSTD"),
    "prefixes": (lambda f: rewrite(f, "spans", lambda t: t, use_dictionary=False, column_encoding={"kind": "DELTA_BYTE_ARRAY"}),
                 "an encoding that is not accepted: SNAPPY, RLE, DELTA_BYTE_ARRAY"),
    "many rows": (many_rows, "2,000,000 rows; at most 1,000,000 are accepted"),
    "many groups": (many_groups, "100 groups of rows; at most 64 are accepted"),
    "a long word": (repeat_a_long_word, "bytes; at most 134,"),
    "bytes that are no text": (lambda f: rewrite(f, "traffic", no_text_in("phase")), "traffic.parquet is not a table: "),
    **{f"nothing in {column}": (lambda f, n=name, c=column: rewrite(f, n, nothing_in(c)), f"has an empty value in {column}")
       for name, column in (("spans", "lane"), ("traffic", "axis"), ("memory_peak", "category"), ("steps", "source"),
                            ("traffic", "calls"))},
    # Values
    "a category": (lambda f: table(f, "memory_peak", lambda t: t.assign(category="fun")), "an invalid category: 'fun'"),
    "a rank": (first("traffic", rank=2), "ranks beyond the 2 of its layout"),
    "a rank less": (lambda f: table(f, "process", lambda t: t[t["rank"] == 0]), "must have all 2 ranks"),
    "another place": (first("memory_peak", pp=1), "rank 0 at a coordinate that differs from its layout"),
    "less than nothing": (first("traffic", wire_bytes=-1), "has -1 in wire_bytes, which must be from 0 to 9,007,199,254,740,992"),
    "more than all": (lambda f: table(f, "process", lambda t: t.assign(rss_bytes=2**53 + 1)), "has 9,007,199,254,740,993 in"),
    "another source": (first("steps", source="dry_run"), "its tables are by dry_run, measured"),
    "no work": (lambda f: table(f, "steps", lambda t: t.head(0)), "steps has no rows"),
    "no parity": (lambda f: table(f, "parity", lambda t: t.head(0)), "parity has no rows"),
    "no time": (lambda f: table(f, "steps", lambda t: t.assign(step_ns=0)), "steps has 0 in step_ns"),
    "a step twice": (first("steps", step=2), "steps has two rows with the same step"),
    "a step of no run": (first("steps", step=3), "steps must list the steps from 1 on, at most the 20"),
    "the same twice": (lambda f: table(f, "traffic", lambda t: pd.concat([t, t])), "traffic has two rows with the same rank"),
    "no group": (first("traffic", group="a"), "the group 'a', which is not a group of rank 0 along pp"),
    "a group of others": (first("traffic", group="1,2"), "the group '1,2', which is not a group of rank 0 along pp"),
    "an axis of one": (first("traffic", axis="dp"), "the group '0,1', which is not a group of rank 0 along dp"),
    "an action": (first("memory_curve", action="Z chunk 0"), "the action 'Z chunk 0', which this run does not have"),
    "no action": (first("memory_curve", action=" "), "memory_curve has an invalid action: ' '"),
    "a microbatch": (first("memory_curve", action="F chunk 0 microbatch 4"), "microbatch 4', which this run does not have"),
    "a pass more": (first("spans", kind="B"), "spans must have each forward pass of each rank exactly once"),
    "a pass twice": (first("spans", microbatch=1), "spans has passes of rank 0 that are not in its schedule"),
    "a chunk": (first("spans", chunk=2), "spans has the chunk 2, and there are 2"),
    "a lane": (first("spans", lane="comm"), "a computation as communication"),
    "an end": (first("spans", end_ns=-1), "spans has one that ends before it begins"),
    "at once": (first("spans", end_ns=10**9), "spans has computations of rank 0 that overlap"),
    "nodes": (lambda f: head(f, lambda h: h["environment"].update(nodes=[0])), "has the nodes of 1 ranks, and its layout has 2"),
    "in no time": (lambda f: table(f, "spans", lambda t: t.assign(start_ns=0, end_ns=0)), "rank 0 that takes no time"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_invalid_run_is_refused_with_a_sentence_and_leaves_no_files(run: Path, tmp_path: Path, what: str) -> None:
    spoil, sentence = WRONG[what]
    files = files_of(run)
    spoil(files)
    home = tmp_path / "here"
    with pytest.raises(RequestError) as caught:
        run_archive.unpack(zipped(files), home, "x")
    said = str(caught.value)
    assert said.startswith("this is not a zip of a saved run: ")
    assert sentence in said
    assert "\n" not in said
    assert not home.exists()


def test_a_zip_of_an_older_program_is_saved_with_the_current_version(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    head(files, lambda h: h.pop("schema_version"))
    folder = run_archive.unpack(zipped(files), tmp_path, "x")
    assert json.loads((folder / "run.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert store.load(folder).spec == store.load(run).spec


def test_a_zip_of_a_newer_program_is_refused_with_a_sentence_that_says_so(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    head(files, lambda h: h.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(
        RequestError, match=r"^the run in this zip cannot be opened: it was saved by a newer version of this program"
    ):
        run_archive.unpack(zipped(files), tmp_path / "here", "x")
    assert not (tmp_path / "here").exists()


def test_an_invalid_or_too_large_zip_is_refused(run: Path, tmp_path: Path) -> None:
    whole = run_archive.pack(run)
    for junk in (b"", b"PK", whole[: len(whole) // 2], whole[:200] + b"\xff" * 50 + whole[250:]):
        with pytest.raises(RequestError, match=r"cannot be opened|is not a table"):
            run_archive.unpack(junk, tmp_path, "x")
    bomb = zipped({"steps.parquet": bytes(run_archive.FOREIGN.bytes + 1)})
    assert len(bomb) < 1 << 20
    with pytest.raises(RequestError, match="it holds 134,217,729 bytes; at most 134,217,728 are accepted"):
        run_archive.unpack(bomb, tmp_path, "x")


@pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused_before_it_is_read(run: Path, tmp_path: Path, way: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", way) as archive:
        for name, content in files_of(run).items():
            archive.writestr(name, content)
    with pytest.raises(RequestError, match="is not stored or deflated"):
        run_archive.unpack(buffer.getvalue(), tmp_path, "x")


def test_no_more_is_unpacked_than_the_size_that_a_zip_declares(run: Path, tmp_path: Path) -> None:
    """A head of 64 MB whose zip declares 1,000 bytes: only these are unpacked."""
    zip_ = bytearray(zipped(files_of(run) | {"my run/run.json": bytes(64 << 20)}))
    for at in (place.start() for place in re.finditer(re.escape((64 << 20).to_bytes(4, "little")), bytes(zip_))):
        zip_[at : at + 4] = (1000).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"cannot be opened|not JSON"):
        run_archive.unpack(bytes(zip_), tmp_path, "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_zip_is_opened_within_the_memory_limit(run: Path, tmp_path: Path) -> None:
    def opened(mb: int, content: bytes) -> dict[str, Any]:
        command = [sys.executable, "-m", "engine.run_archive", str(tmp_path), "", str(mb)]
        return dict(
            json.loads(subprocess.run(command, input=content, capture_output=True, check=True, timeout=PATIENCE_S).stdout)
        )

    assert opened(500, run_archive.pack(run)) == {"folder": "my run"}
    assert unpacked(opened(500, b"PK")["refused"]).startswith("this is not a zip of a saved run: it cannot be opened")
    files = files_of(run)
    files["my run/run.json"] += bytes(1 << 20)
    large = zipped(files | {"__MACOSX/x": b""}) + bytes(300 << 20)
    assert unpacked(opened(200, large)["refused"]) == "it takes more than 200 MB of memory to open"


def test_memory_used_before_does_not_count_for_the_limit(run: Path, tmp_path: Path) -> None:
    """Libraries take memory when they are imported: 40 MB for each CPU."""
    program = (
        "import mmap, sys; from engine import run_archive; "
        "held = mmap.mmap(-1, 600 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); print(run_archive.main(sys.argv[1], '', '500'))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, input=run_archive.pack(run), capture_output=True, check=True, timeout=PATIENCE_S)
    assert done.stdout == b"{'folder': 'my run'}\n"


def test_the_summary_of_an_upload_is_computed_from_its_tables(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    summary(files, peak_bytes=1, peak_rank=17, note="kept")
    said = store.load(run_archive.unpack(zipped(files), tmp_path, "x")).summary
    assert said == store.load(run).summary | {"note": "kept"}


def test_a_diverged_run_survives_its_zip(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    table(files, "steps", lambda t: t.assign(loss=[1.0, np.nan], grad_norm=np.inf))
    table(files, "parity", lambda t: t.assign(max_rel=np.nan))
    said = store.load(run_archive.unpack(zipped(files), tmp_path, "x")).summary
    assert np.isnan(said["loss_last"])
    assert np.isnan(said["parity_max_rel"])


def test_a_name_that_no_folder_can_have_is_ignored(run: Path, tmp_path: Path) -> None:
    files = {name.replace("my run", "NUL.txt"): content for name, content in files_of(run).items()}
    assert run_archive.unpack(zipped(files), tmp_path, "my own").name == "my own"


def test_only_the_files_of_a_run_are_packed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a saved run"):
        run_archive.pack(tmp_path)
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "spans.parquet").unlink()
    os.mkfifo(tmp_path / "damaged" / "spans.parquet")
    with pytest.raises(RequestError, match=r"spans\.parquet is not a regular file"):
        run_archive.pack(tmp_path / "damaged")
    (run / "notes.txt").write_text("mine")
    names = zipfile.ZipFile(io.BytesIO(run_archive.pack(run))).namelist()
    assert set(names) == set(files_of(run)) - {"my run/notes.txt"}


def test_a_run_that_could_not_be_uploaded_is_not_packed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = max(len(rows) for rows in store.load(run).tables.values())
    monkeypatch.setattr(run_archive, "FOREIGN", run_archive.FOREIGN._replace(rows=most))
    run_archive.pack(run)
    for less in ({"rows": most - 1}, {"bytes": 1000}):
        monkeypatch.setattr(run_archive, "FOREIGN", run_archive.FOREIGN._replace(**less))
        with pytest.raises(RequestError, match="my run is too large for a zip file that can be uploaded again"):
            run_archive.pack(run)
