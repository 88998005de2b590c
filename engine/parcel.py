"""A saved run as one zip file, to take along; and a zip from elsewhere made a saved run, once it has shown to be one.

A zip comes from anybody. Nothing of it is unpacked: run.json and the tables are read in memory, held against what a run is, and
saved as any result is, so that neither a path in it nor a file that is no table reaches the disk.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException
from pyarrow import parquet as pq

from engine import store
from engine.spec import RequestError, Sentence, sentence
from engine.summary import summarize
from engine.tables import CATEGORIES, KV_CACHE, SCHEMAS, RunResult
from engine.topology import AXES, Mesh

LARGEST = 16 << 20  # bytes of a zip; see the commit for what runs measure
_LARGEST_WHOLE = 256 << 20  # bytes of all that is in it
_MOST_ROWS = 4_000_000  # of one table: a Parquet file of a few bytes can claim any number
_OPTIONAL = ("parity",)
_ALLOWED: dict[str, set[str]] = {
    "source": {"formula", "dry_run", "measured"},
    "category": {*CATEGORIES, KV_CACHE},
    "lane": {"compute", "comm"},
    "axis": set(AXES),
}


def pack(folder: Path) -> bytes:
    """The run as a zip of one folder with its name."""
    store.head(folder)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _expected():
            if (folder / name).exists():
                archive.write(folder / name, f"{folder.name}/{name}")
    return buffer.getvalue()


def unpack(content: bytes, home: Path, name: str) -> Path:
    """Save the run in a zip under `home`, as `name` or as the folder in the zip is named. Returns its folder.

    Raises `RequestError` for anything that is not a whole run, with what is wrong in it.
    """
    try:
        inner, result = _read(content)
    except RequestError as error:
        raise RequestError(sentence("this is not a zip of a saved run: {reason}", reason=error.sentence)) from error
    good = [candidate for candidate in (inner, name) if store.good_name(candidate)]
    home.mkdir(parents=True, exist_ok=True)
    while True:
        folder = store.free(home, good[0]) if good else store.new_folder(home, result.spec)
        try:
            store.save(result, folder)
        except FileExistsError:  # somebody took that name since it was found free
            continue
        return folder


def _expected() -> list[str]:
    return ["run.json", *(f"{name}.parquet" for name in SCHEMAS)]


def _read(content: bytes) -> tuple[str, RunResult]:
    """The name of the folder in the zip (empty if there is none), and the run."""
    if len(content) > LARGEST:
        raise RequestError(sentence("it has {bytes:,} bytes; up to {most:,} are taken", bytes=len(content), most=LARGEST))
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            inner, entries = _entries(archive)
            files = {name: archive.read(entry) for name, entry in entries.items()}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise RequestError(sentence("it cannot be opened: {error}", error=str(error))) from error
    if "run.json" not in files:
        raise RequestError(sentence("{name} is not in it", name="run.json"))
    result = store.parse_head(files.pop("run.json"))
    result = replace(result, tables={name.removesuffix(".parquet"): _table(name, file) for name, file in files.items()})
    if wrong := next(_unfit(result), None):
        raise RequestError(wrong)
    layout = result.spec.layout
    try:  # what a page shows of a run, it must find; and it must be what the tables say
        summary = summarize(result.tables, Mesh(layout.dp, layout.tp, layout.pp))
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise RequestError(sentence("its tables cannot be summed up: {error}", error=str(error))) from error
    return inner, replace(result, summary=result.summary | summary)


def _entries(archive: zipfile.ZipFile) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The files of the run by name, and the one folder that they may be in."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    entries = [entry for entry in archive.infolist() if not (entry.is_dir() or _added_by_a_system(entry.filename))]
    if (whole := sum(entry.file_size for entry in entries)) > _LARGEST_WHOLE:
        raise RequestError(sentence("it holds {bytes:,} bytes; up to {most:,} are taken", bytes=whole, most=_LARGEST_WHOLE))
    for entry in entries:
        *parents, name = entry.filename.split("/")
        if len(parents) > 1 or parents in ([""], ["."], [".."]) or name not in _expected() or name in found:
            raise RequestError(sentence("{name!r} does not belong in it", name=entry.filename[:60]))
        folders.add(parents[0] if parents else "")
        found[name] = entry
    if len(folders) > 1:
        raise RequestError(sentence("it holds more than one folder: {names}", names=", ".join(sorted(folders))[:60]))
    return next(iter(folders), ""), found


def _added_by_a_system(path: str) -> bool:
    """What macOS puts into every zip."""
    return path.startswith("__MACOSX/") or PurePosixPath(path).name == ".DS_Store"


def _table(name: str, content: bytes) -> pd.DataFrame:
    """A table with exactly the columns and types of its schema."""
    schema = SCHEMAS[name.removesuffix(".parquet")]
    try:
        file = pq.ParquetFile(BytesIO(content))
        if (rows := file.metadata.num_rows) > _MOST_ROWS:
            raise RequestError(
                sentence("{name} has {rows:,} rows; up to {most:,} are taken", name=name, rows=rows, most=_MOST_ROWS)
            )
        columns = file.schema_arrow.names
        if sorted(columns) != sorted(schema):
            raise RequestError(
                sentence(
                    "{name} has the columns {columns}; it needs {needed}",
                    name=name,
                    columns=", ".join(columns),
                    needed=", ".join(schema),
                )
            )
        if (whole := _text_bytes(content, columns)) > _LARGEST_WHOLE:
            raise RequestError(sentence("it holds {bytes:,} bytes; up to {most:,} are taken", bytes=whole, most=_LARGEST_WHOLE))
        table = pd.read_parquet(BytesIO(content))[list(schema)]
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise RequestError(sentence("{name} is not a table: {error}", name=name, error=str(error).splitlines()[0])) from error
    for column, dtype in schema.items():
        if table[column].dtype != dtype:
            raise RequestError(
                sentence(
                    "{name} has {found} in {column}; {dtype} belongs there",
                    name=name,
                    found=str(table[column].dtype),
                    column=column,
                    dtype=dtype,
                )
            )
    return table


def _text_bytes(content: bytes, columns: list[str]) -> int:
    """What the words of a table take once every row has its own: in a Parquet file of a few bytes one stands for millions."""
    words = pq.ParquetFile(BytesIO(content), read_dictionary=columns).read()
    chunks = [c for column in words.columns for c in column.chunks if isinstance(c, pa.DictionaryArray)]
    return sum(pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0 for c in chunks)


def _unfit(result: RunResult) -> Iterator[Sentence]:
    """What would break a page that shows the run, one sentence each."""
    ranks, tables = result.spec.layout.ranks, result.tables
    for name in SCHEMAS:
        if name not in tables and name not in _OPTIONAL:
            yield sentence("{name} is not in it", name=f"{name}.parquet")
    for name, table in tables.items():
        yield from _strange(f"{name}.parquet", table, ranks)
    for name in ("memory_peak", "memory_curve", "process", "spans"):
        if tables[name]["rank"].nunique() != ranks:
            yield sentence("{name} has not every one of the {ranks} ranks", name=f"{name}.parquet", ranks=ranks)
    environment = result.environment
    if not (isinstance(environment.get("backend"), str) and isinstance(environment.get("why"), str)):
        yield sentence("run.json does not say on which backend it ran, and why")
    if not isinstance(environment.get("cores"), int):
        yield sentence("run.json does not say how many cores the machine had")


def _strange(name: str, table: pd.DataFrame, ranks: int) -> Iterator[Sentence]:
    """Values that no run has."""
    for column in map(str, table.columns):
        if column in _ALLOWED and (unknown := set(table[column].astype(str)) - _ALLOWED[column]):
            value = min(unknown)[:40]
            yield sentence("{name} has the {column} {value!r}, which is none", name=name, column=column, value=value)
        if column.endswith(("bytes", "_ns", "calls")) and (table[column] < 0).any():
            yield sentence("{name} has negative {column}", name=name, column=column)
    if "rank" in table and not table["rank"].between(0, ranks - 1).all():
        yield sentence("{name} has ranks beyond the {ranks} of its layout", name=name, ranks=ranks)
