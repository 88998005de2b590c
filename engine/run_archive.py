"""Saved runs as zip files: pack one, and save the run that a zip holds, after it was checked.

A zip is not trusted. No file of it is extracted: run.json and the tables are read in memory, checked against `engine.contract`,
and saved as any result is. So neither a path in it nor a file that is no table reaches the disk. A damaged table may need any
amount of memory to read. So a server opens a zip in a process of its own with a memory limit:

    python -m engine.run_archive HOME NAME MB < ZIP

saves the run and prints {"folder": …}, its name, or {"refused": …}, the packed sentence with the reason.
"""

from __future__ import annotations

import json
import resource
import sys
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from engine import contract, store
from engine.head import NewerRunError, read_head
from engine.parquet import ReadLimits, bytes_of
from engine.spec import LARGEST_JSON, RequestError, sentence, too_large
from engine.spec.sentence import packed
from engine.summary import summarize
from engine.tables import SCHEMAS, RunResult

# A server keeps an open run in memory. This is enough for 16 ranks with some 1,500 microbatches, a zip of 8 MB.
FOREIGN = ReadLimits(rows=1_000_000, bytes=128 << 20, foreign=True)
_MOST_ENTRIES = 1_000  # files in a zip, with those that an operating system adds. A run has eight
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods raise errors of their own where a file is damaged
_ENCRYPTED = 1  # a bit of an entry's flags


def pack(folder: Path) -> bytes:
    """The run as a zip of one folder with its name. Raises `RequestError` for what `unpack` would not take back."""
    _refuse_too_large(folder, store.load(folder))
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name in _expected():
            if (folder / name).exists():
                archive.write(folder / name, f"{folder.name}/{name}")
    return buffer.getvalue()


def _refuse_too_large(folder: Path, result: RunResult) -> None:
    """The limits for a zip are lower than those for one's own runs."""
    for name, rows in result.tables.items():
        if len(rows) > FOREIGN.rows:
            raise RequestError(
                sentence(
                    "{folder} is too large for a zip file that can be uploaded again: {name} has {rows:,} rows; at "
                    "most {most:,} are accepted",
                    folder=folder.name, name=name, rows=len(rows), most=FOREIGN.rows,
                )
            )  # fmt: skip
    if (whole := sum(map(bytes_of, result.tables.values()))) > FOREIGN.bytes:
        raise RequestError(
            sentence(
                "{folder} is too large for a zip file that can be uploaded again: it holds {bytes:,} bytes; at most "
                "{most:,} are accepted",
                folder=folder.name, bytes=whole, most=FOREIGN.bytes,
            )
        )  # fmt: skip


def unpack(content: bytes, home: Path, name: str) -> Path:
    """Save the run in a zip under `home`, as `name` or as the folder in the zip is named. Returns its folder.

    Raises `RequestError` for anything that is not a whole run, with what is wrong in it, and `NewerRunError` for a run of a newer
    program.
    """
    try:
        inner, result = _read(content)
    except NewerRunError as error:
        raise NewerRunError(sentence("the run in this zip cannot be opened: {reason}", reason=error.sentence)) from error
    except RequestError as error:
        raise RequestError(sentence("this is not a zip of a saved run: {reason}", reason=error.sentence)) from error
    good = [candidate for candidate in (inner, name) if store.good_name(candidate)]
    try:
        return _saved(result, home, good[0] if good else "")
    except OSError as error:
        raise RequestError(sentence("the run could not be saved: {reason}", reason=str(error.strerror))) from error


def _saved(result: RunResult, home: Path, name: str) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    while True:
        folder = store.free(home, name) if name else store.new_folder(home, result.spec)
        try:
            store.save(result, folder)
        except FileExistsError:  # somebody took that name since it was found free
            continue
        return folder


def _expected() -> list[str]:
    return ["run.json", *(f"{name}.parquet" for name in SCHEMAS)]


def _read(content: bytes) -> tuple[str, RunResult]:
    """The name of the folder in the zip (empty if there is none), and the run."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            inner, entries = _entries(archive)
            files = {name: _content(archive, entry) for name, entry in entries.items()}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, zlib.error, NotImplementedError, OSError, ValueError) as error:
        raise RequestError(sentence("it cannot be opened: {error}", error=str(error))) from error
    if "run.json" not in files:
        raise RequestError(sentence("{name} is not in it", name="run.json"))
    result = read_head(files.pop("run.json"))
    tables = ((name.removesuffix(".parquet"), BytesIO(file)) for name, file in files.items())
    result = _with_summary(store.with_tables(result, tables, FOREIGN))
    contract.refuse_wrong_sum(result)
    return inner, result


def _with_summary(result: RunResult) -> RunResult:
    """The summary computed from the tables. Not for a dry run: its tables may lack some ranks of its summary."""
    if contract.source(result) != "measured":
        return result
    layout = result.spec.layout
    return replace(result, summary=result.summary | summarize(result.tables, layout.mesh, result.environment))


def _entries(archive: zipfile.ZipFile) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The files of the run by name, and the one folder that they may be in."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    listed = archive.infolist()
    if len(listed) > _MOST_ENTRIES:
        raise RequestError(
            sentence("it holds {count:,} files; at most {most:,} are accepted", count=len(listed), most=_MOST_ENTRIES)
        )
    entries = [entry for entry in listed if not (entry.is_dir() or _added_by_system(entry.filename))]
    if (whole := sum(entry.file_size for entry in entries)) > FOREIGN.bytes:
        raise RequestError(sentence("it holds {bytes:,} bytes; at most {most:,} are accepted", bytes=whole, most=FOREIGN.bytes))
    for entry in entries:
        *parents, name = entry.filename.split("/")
        if len(parents) > 1 or parents in ([""], ["."], [".."]) or name not in _expected() or name in found:
            raise RequestError(sentence("{name!r} does not belong in it", name=entry.filename[:60]))
        if entry.compress_type not in _PACKED or entry.flag_bits & _ENCRYPTED:
            raise RequestError(sentence("{name} is not stored or deflated, as in a zip of this program", name=name))
        folders.add(parents[0] if parents else "")
        found[name] = entry
    if len(folders) > 1:
        raise RequestError(sentence("it holds more than one folder: {names}", names=", ".join(sorted(folders))[:60]))
    return next(iter(folders), ""), found


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The content of an entry, and no more bytes than it declares. A zip reader's `read()` would decompress all of it first."""
    name = PurePosixPath(entry.filename).name
    most = LARGEST_JSON if name == "run.json" else FOREIGN.bytes
    if entry.file_size > most:
        raise RequestError(too_large(name, entry.file_size, most))
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
        if len(content) < entry.file_size:
            raise zipfile.BadZipFile(f"{name} has not the {entry.file_size:,} bytes that it says")
        return content


def _added_by_system(path: str) -> bool:
    """Files that macOS adds to every zip."""
    return path.startswith("__MACOSX/") or PurePosixPath(path).name == ".DS_Store"


def main(home: str, name: str, most_mb: str) -> dict[str, Any]:
    """Unpack the zip on standard input, with at most `most_mb` MB more memory than this process has now.

    What it has now differs: some libraries allocate 40 MB for each CPU when they are imported.
    """
    had = getattr(psutil.Process().memory_info(), "data", 0)  # Linux only, where the limit is on more than the heap
    bound = had + (int(most_mb) << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    try:
        return {"folder": unpack(sys.stdin.buffer.read(), Path(home), name).name}
    except RequestError as error:
        return {"refused": packed(error.sentence)}
    except MemoryError:
        return {"refused": packed(sentence("it takes more than {most} MB of memory to open", most=most_mb))}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
