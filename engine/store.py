"""Saved runs: a folder with run.json and one Parquet file a table. What was deleted can be brought back for a while."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from glob import escape
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from engine import contract, files
from engine.head import NewerRunError, read_head, written_head
from engine.parquet import ReadLimits, bytes_of, read_table
from engine.spec import LARGEST_JSON, RequestError, RunSpec, sentence
from engine.tables import SCHEMAS, RunResult

# Of a run in a folder of one's own: 16 ranks with some 3,600 microbatches. A run that could have more rows is not started, and in
# the two tables that grow, memory_curve and spans, a row has up to 120 bytes.
OWN = ReadLimits(rows=4_000_000, bytes=1 << 30, strange=False)
_TRASH = ".trash"  # in it a folder for each deletion, named by its instant, in which the run lies under its own name
KEPT_NS = 24 * 3600 * 10**9  # how long a deleted run can be brought back, by whatever server of the home deleted it
# Letters and digits of any language. No comma, which stands between the names in a link; no dot first, which hides a folder.
_NAME = re.compile(r"[^\W_][\w .+()=-]{0,79}(?<![ .])")
_LONGEST_NAME = 200  # bytes: systems take 255, and this leaves room for what is put before and after a name
# What Windows calls devices, whatever follows after a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}


def save(result: RunResult, folder: Path) -> None:
    """Write `result` as `folder`, which must not exist. Whole or not at all: it is written beside it and renamed.

    JSON knows no NaN: a number in `summary` that is not finite is null in run.json, and NaN again when loaded.
    """
    partial = files.partial(folder)
    partial.mkdir(parents=True)
    try:
        (partial / "run.json").write_text(written_head(result), encoding="utf-8")
        for name, rows in result.tables.items():
            with (partial / f"{name}.parquet").open("xb") as file:  # a path that is no UTF-8 could not be handed over
                rows.to_parquet(file, index=False)
        if folder.exists():  # rename would replace an empty folder
            raise FileExistsError(f"{folder} is there already")
        try:
            os.rename(partial, folder)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # somebody was quicker
                raise FileExistsError(f"{folder} is there already") from error
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: Path) -> RunResult:
    """Read a saved run. Raises `RequestError` if the folder is not one, not a whole one, or one of a newer program."""
    result = head(folder)
    try:
        result = with_tables(result, _tables(folder), OWN)
        contract.refuse_wrong_sum(result)
    except (RequestError, OSError) as error:
        raise _no_run(folder, error) from error
    return result


def _tables(folder: Path) -> Iterable[tuple[str, BinaryIO]]:
    for name in SCHEMAS:
        path = folder / f"{name}.parquet"
        if path.exists():
            with files.opened(path) as file:
                yield name, file


def with_tables(result: RunResult, tables: Iterable[tuple[str, BinaryIO]], bounds: ReadLimits) -> RunResult:
    """The head `result` with its tables, each a Parquet file by its name. Raises `RequestError` if that is no run."""
    found: dict[str, pd.DataFrame] = {}
    for name, file in tables:
        left = bounds.bytes - sum(map(bytes_of, found.values()))
        found[name] = read_table(name, file, bounds._replace(bytes=left))
    result = replace(result, tables=found)
    contract.refuse_misfits(result)
    return result


def head(folder: Path) -> RunResult:
    """A saved run without its tables: all that a list of runs shows. Raises `RequestError` if the folder is not one."""
    try:
        return read_head(files.read(folder / "run.json", LARGEST_JSON))
    except (RequestError, OSError) as error:
        raise _no_run(folder, error) from error


def stamp(folder: Path) -> int:
    """Tells a run from another that came to stand under its name. Raises `RequestError` if there is none."""
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError as error:
        raise _no_run(folder, error) from error


def _no_run(folder: Path, error: Exception) -> RequestError:
    if isinstance(error, NewerRunError):
        return NewerRunError(sentence("{folder} cannot be opened: {reason}", folder=str(folder), reason=error.sentence))
    if isinstance(error, FileNotFoundError):
        reason: str = sentence("there is no run.json in it")
    elif isinstance(error, RequestError):
        reason = error.sentence
    else:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return RequestError(sentence("{folder} is not a saved run: {reason}", folder=str(folder), reason=reason))


def listing(home: Path) -> list[Path]:
    """The saved runs in `home`, newest first."""
    return [folder for _, folder in saved(home)]


def saved(home: Path) -> list[tuple[int, Path]]:
    """The same, each with when it was saved, in nanoseconds: a run never changes, but its name may come to stand for another."""
    if not home.is_dir():
        return []
    return sorted(((when, path) for path in home.iterdir() if (when := _saved_at(path)) is not None), reverse=True)


def _saved_at(folder: Path) -> int | None:
    """When the run was saved, in nanoseconds; None for what is no saved run, or one deleted a moment ago."""
    if folder.name.startswith("."):
        return None
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def new_folder(home: Path, spec: RunSpec) -> Path:
    """A free name in `home` for a run of `spec`, such as 20261124-101500-dp2.tp2.pp2-1f1b."""
    return free(home, f"{time.strftime('%Y%m%d-%H%M%S')}-{spec.layout.code}-{spec.layout.schedule}")


def free(home: Path, stem: str) -> Path:
    """`stem` in `home`, or the first of stem-2, stem-3, … that is not taken."""
    names = chain([stem], (f"{stem}-{n}" for n in count(2)))
    return next(home / name for name in names if not (home / name).exists())


def discard_partial(folder: Path) -> None:
    """Remove what writers that did not finish left beside `folder` under its name."""
    for path in folder.parent.glob(f"{files.PARTIAL}*-{escape(folder.name)}"):
        shutil.rmtree(path, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------- names and the trash


def good_name(name: str) -> bool:
    """Whether a run may have this name: then it is the name of a folder on every system, and of none outside its home."""
    device = name.partition(".")[0].rstrip().upper()
    return _NAME.fullmatch(name) is not None and device not in _DEVICES and len(name.encode()) <= _LONGEST_NAME


def rename(folder: Path, name: str) -> Path:
    """Give a saved run another name. Returns its folder. Raises `RequestError`."""
    if name == folder.name:
        return folder
    if not good_name(name):
        shown = name if len(name) <= 40 else f"{name[:39]}…"
        raise RequestError(
            sentence(
                "a run cannot be named {name!r}: a name has up to 80 letters, digits, spaces and . _ - + = ( ), or {most} bytes, "
                "begins with a letter or a digit, does not end with a dot, and is no device of Windows, such as CON",
                name=shown,
                most=_LONGEST_NAME,
            )
        )
    target = folder.parent / name
    if target.exists():  # rename would replace an empty folder
        raise RequestError(sentence("there is another run named {name}; choose a name that is free", name=name))
    _move(folder, target)
    return target


def delete(folder: Path) -> Path:
    """Put a saved run out of sight. Returns where it lies, for `restore`, until `empty_trash` finds it too old."""
    trash = folder.parent / _TRASH
    place = free(trash, str(time.time_ns()))
    place.mkdir(parents=True)
    try:
        _move(folder, place / folder.name)
    except BaseException:
        place.rmdir()
        raise
    empty_trash(folder.parent)
    return place / folder.name


def restore(deleted: Path) -> Path:
    """Bring a deleted run back, under its own name if that is still free. Returns its folder. Raises `RequestError`."""
    target = free(deleted.parents[2], deleted.name)
    _move(deleted, target)
    deleted.parent.rmdir()
    return target


def empty_trash(home: Path, now_ns: int | None = None) -> None:
    """Remove for good what was deleted longer than `KEPT_NS` ago.

    By age and not by number, since others that use the home, in other sessions and servers, still offer to bring theirs back.
    """
    trash, now = home / _TRASH, time.time_ns() if now_ns is None else now_ns
    for place in trash.iterdir() if trash.is_dir() else ():
        deleted_ns = place.name.partition("-")[0]
        if deleted_ns.isdecimal() and now - int(deleted_ns) > KEPT_NS:  # a file manager leaves files of its own behind
            shutil.rmtree(place, ignore_errors=True)  # another server of the same home may be at it


def _move(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except FileNotFoundError as error:
        raise RequestError(sentence("the run {name} is not there any more", name=folder.name)) from error
    except OSError as error:
        why = sentence("the run {name} cannot be moved: {reason}", name=folder.name, reason=str(error.strerror))
        raise RequestError(why) from error
