"""A run in a zip: whole on the way out, and on the way in nothing but a run."""

from __future__ import annotations

import io
import json
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

from engine import parcel, store
from engine.spec import LayoutSpec, RequestError, RunSpec
from tests.pages.stand_in import saved as stand_in

Files = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run of two stages, with what the stand-in leaves out: the memory of rank 1."""
    folder = stand_in(tmp_path / "there", RunSpec(layout=LayoutSpec(pp=2), parity=True), "my run")
    result = store.load(folder)
    curve = result.tables["memory_curve"]
    both = pd.concat([curve, curve.assign(rank=1)], ignore_index=True)
    (folder / "memory_curve.parquet").unlink()
    both.to_parquet(folder / "memory_curve.parquet", index=False)
    return folder


def files_of(run: Path) -> Files:
    return {f"{run.name}/{path.name}": path.read_bytes() for path in run.iterdir()}


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_run_comes_out_of_its_zip_as_it_went_in(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "here"
    folder = parcel.unpack(parcel.pack(run), home, "some file")
    assert folder == home / "my run"
    made, read = store.load(run), store.load(folder)
    assert (read.spec, read.environment, read.summary) == (made.spec, made.environment, made.summary)
    assert set(read.tables) == set(made.tables)
    for name, rows in made.tables.items():
        assert_frame_equal(read.tables[name], rows)


def test_a_second_one_of_that_name_stands_beside_the_first(run: Path) -> None:
    assert parcel.unpack(parcel.pack(run), run.parent, "") == run.parent / "my run-2"
    assert parcel.unpack(parcel.pack(run), run.parent, "") == run.parent / "my run-3"


def test_a_zip_without_a_folder_takes_the_name_of_its_file_or_of_what_ran(run: Path, tmp_path: Path) -> None:
    flat = zipped({path.name: path.read_bytes() for path in run.iterdir()} | {"__MACOSX/._x": b"", ".DS_Store": b""})
    assert parcel.unpack(flat, tmp_path, "Übung 1").name == "Übung 1"
    assert parcel.unpack(flat, tmp_path, "../../x").name.endswith("-dp1.tp1.pp2-1f1b")


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


def claim_many_rows(files: Files) -> None:
    """A few bytes that are hundreds of millions of equal rows."""
    rows = parcel._MOST_ROWS + 1
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array(np.zeros(rows, np.int8))}), buffer, compression="zstd")
    files["my run/steps.parquet"] = buffer.getvalue()


def repeat_a_long_word(files: Files) -> None:
    """A word that stands once in the file, and in every row of the table."""
    key = "my run/traffic.parquet"
    read = pq.read_table(io.BytesIO(files[key]))
    word = "x" * (parcel._LARGEST_WHOLE // read.num_rows + 1)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * read.num_rows, pa.int32()), pa.array([word]))
    buffer = io.BytesIO()
    pq.write_table(read.set_column(read.column_names.index("group"), "group", words), buffer, compression="zstd")
    files[key] = buffer.getvalue()


WRONG: dict[str, tuple[Callable[[Files], object], str]] = {
    "a path out": (lambda f: move(f, "../steps.parquet"), "'../steps.parquet' does not belong in it"),
    "a path to the root": (lambda f: move(f, "/steps.parquet"), "'/steps.parquet' does not belong in it"),
    "a deep path": (lambda f: move(f, "my run/../../steps.parquet"), "does not belong in it"),
    "a windows path": (lambda f: move(f, "my run\\steps.parquet"), "does not belong in it"),
    "another file": (lambda f: f.update({"my run/run.py": b""}), "'my run/run.py' does not belong in it"),
    "two folders": (lambda f: move(f, "other/steps.parquet"), "more than one folder: my run, other"),
    "no head": (lambda f: f.pop("my run/run.json"), "run.json is not in it"),
    "no table": (lambda f: f.pop("my run/spans.parquet"), "spans.parquet is not in it"),
    "no json": (lambda f: f.update({"my run/run.json": b"{"}), "run.json is not JSON"),
    "a spec that does not fit": (lambda f: head(f, lambda h: h["spec"]["layout"].update(tp=3)), "tp=3 does not divide 4 heads"),
    "no backend": (lambda f: head(f, lambda h: h["environment"].pop("backend")), "does not say on which backend"),
    "no cores": (lambda f: head(f, lambda h: h["environment"].update(cores="many")), "how many cores"),
    "no table inside": (lambda f: f.update({"my run/steps.parquet": b"PAR1" * 9}), "steps.parquet is not a table"),
    "a column less": (lambda f: table(f, "steps", lambda t: t.drop(columns="loss")), "steps.parquet has the columns"),
    "a column more": (lambda f: table(f, "steps", lambda t: t.assign(x=1)), "steps.parquet has the columns"),
    "a type": (lambda f: table(f, "spans", lambda t: t.assign(rank=0.5)), "float64 in rank; int64 belongs there"),
    "a category": (lambda f: table(f, "memory_peak", lambda t: t.assign(category="fun")), "the category 'fun', which is none"),
    "a rank": (lambda f: table(f, "traffic", lambda t: t.assign(rank=2)), "ranks beyond the 2 of its layout"),
    "a rank less": (lambda f: table(f, "process", lambda t: t[t["rank"] == 0]), "not every one of the 2 ranks"),
    "less than nothing": (lambda f: table(f, "traffic", lambda t: t.assign(wire_bytes=-1)), "negative wire_bytes"),
    "no work": (lambda f: table(f, "steps", lambda t: t.head(0)), "cannot be summed up"),
    "many rows": (claim_many_rows, "4,000,001 rows; up to 4,000,000 are taken"),
    "a long word": (repeat_a_long_word, "bytes; up to 268,435,456 are taken"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_run_is_refused_in_a_sentence_and_leaves_nothing(run: Path, tmp_path: Path, what: str) -> None:
    spoil, sentence = WRONG[what]
    files = files_of(run)
    spoil(files)
    home = tmp_path / "here"
    with pytest.raises(RequestError) as caught:
        parcel.unpack(zipped(files), home, "x")
    said = str(caught.value)
    assert said.startswith("this is not a zip of a saved run: ")
    assert sentence in said
    assert "\n" not in said
    assert not home.exists()


def test_what_is_no_zip_or_too_large_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parcel.pack(run)
    for junk in (b"", b"PK", whole[: len(whole) // 2], whole[:200] + b"\xff" * 50 + whole[250:]):
        with pytest.raises(RequestError, match=r"cannot be opened|is not a table"):
            parcel.unpack(junk, tmp_path, "x")
    with pytest.raises(RequestError, match="bytes; up to 16,777,216 are taken"):
        parcel.unpack(bytes(parcel.LARGEST + 1), tmp_path, "x")
    bomb = zipped({"run.json": bytes(parcel._LARGEST_WHOLE + 1)})
    assert len(bomb) < 1 << 20
    with pytest.raises(RequestError, match="it holds 268,435,457 bytes; up to 268,435,456 are taken"):
        parcel.unpack(bomb, tmp_path, "x")


def test_what_the_tables_say_counts_and_not_what_the_summary_says_of_them(run: Path, tmp_path: Path) -> None:
    files = files_of(run)
    head(files, lambda h: h["summary"].update(peak_bytes=1, peak_rank=17, note="kept"))
    summary = store.load(parcel.unpack(zipped(files), tmp_path, "x")).summary
    assert summary == store.load(run).summary | {"note": "kept"}


def test_only_a_run_is_packed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a saved run"):
        parcel.pack(tmp_path)
    (run / "notes.txt").write_text("mine")
    names = zipfile.ZipFile(io.BytesIO(parcel.pack(run))).namelist()
    assert set(names) == set(files_of(run)) - {"my run/notes.txt"}
