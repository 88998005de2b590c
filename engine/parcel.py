"""A saved run as one zip file, to take along; and a zip from elsewhere made a saved run, once it has shown to be one.

A zip comes from anybody. Nothing of it is unpacked: run.json and the tables are read in memory, held against what a run is, and
saved as any result is, so that neither a path in it nor a file that is no table reaches the disk. A table may be other than it
says of itself, and take any amount of memory to read, so a server opens a zip in a process of its own, which has a bound:

    python -m engine.parcel HOME NAME MB < ZIP

unpacks it and prints {"folder": …}, the name of the new run, or {"refused": …}, the packed sentence that says why not.
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
from engine.parquet import Bounds, bytes_of
from engine.spec import LARGEST_JSON, RequestError, sentence, too_large
from engine.spec.sentence import packed
from engine.summary import summarize
from engine.tables import SCHEMAS, RunResult

# What whoever looks at the run makes a server keep: 16 ranks with some 1,500 microbatches, which make a zip of 8 MB.
FOREIGN = Bounds(rows=1_000_000, bytes=128 << 20, strange=True)
_MOST_ENTRIES = 1_000  # files in a zip, with those that a system adds; of the run's own there are eight
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others say in ways of their own that they are damaged
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
    """What comes from elsewhere may hold less than what is one's own."""
    for name, rows in result.tables.items():
        if len(rows) > FOREIGN.rows:
            raise RequestError(
                sentence(
                    "{folder} is too large for a zip that is taken back: {name} has {rows:,} rows; up to {most:,} are taken",
                    folder=folder.name, name=name, rows=len(rows), most=FOREIGN.rows,
                )
            )  # fmt: skip
    if (whole := sum(map(bytes_of, result.tables.values()))) > FOREIGN.bytes:
        raise RequestError(
            sentence(
                "{folder} is too large for a zip that is taken back: it holds {bytes:,} bytes; up to {most:,} are taken",
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
    result = _summed_up(store.with_tables(result, tables, FOREIGN))
    contract.refuse_wrong_sum(result)
    return inner, result


def _summed_up(result: RunResult) -> RunResult:
    """What a page shows of a run must be what the tables say. A dry run's own are of ranks that are not all in its tables."""
    if contract.source(result) != "measured":
        return result
    layout = result.spec.layout
    return replace(result, summary=result.summary | summarize(result.tables, layout.mesh))


def _entries(archive: zipfile.ZipFile) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The files of the run by name, and the one folder that they may be in."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    listed = archive.infolist()
    if len(listed) > _MOST_ENTRIES:
        raise RequestError(sentence("it holds {count:,} files; up to {most:,} are taken", count=len(listed), most=_MOST_ENTRIES))
    entries = [entry for entry in listed if not (entry.is_dir() or _added_by_a_system(entry.filename))]
    if (whole := sum(entry.file_size for entry in entries)) > FOREIGN.bytes:
        raise RequestError(sentence("it holds {bytes:,} bytes; up to {most:,} are taken", bytes=whole, most=FOREIGN.bytes))
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
    """What the entry holds. Asked for all at once, a zip reader first makes whatever is packed there, and then cuts it off."""
    name = PurePosixPath(entry.filename).name
    most = LARGEST_JSON if name == "run.json" else FOREIGN.bytes
    if entry.file_size > most:
        raise RequestError(too_large(name, entry.file_size, most))
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
        if len(content) < entry.file_size:
            raise zipfile.BadZipFile(f"{name} has not the {entry.file_size:,} bytes that it says")
        return content


def _added_by_a_system(path: str) -> bool:
    """What macOS puts into every zip."""
    return path.startswith("__MACOSX/") or PurePosixPath(path).name == ".DS_Store"


def main(home: str, name: str, most_mb: str) -> dict[str, Any]:
    """Unpack what is on standard input, with `most_mb` MB of memory more than this process has.

    How much that is differs: some libraries take 40 MB for each CPU when they are imported.
    """
    had = getattr(psutil.Process().memory_info(), "data", 0)  # told where the bound is on more than the heap: on Linux
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
