"""Saved runs: a folder with run.json and one Parquet file for each table. A deleted run can be restored for a while."""

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

# The limits for the user's own runs: 16 ranks with some 3,600 microbatches. A run that could have more rows is not started. In
# the two tables that grow, memory_curve and spans, a row has up to 120 bytes.
OWN = ReadLimits(rows=4_000_000, bytes=1 << 30, foreign=False)
_OWNER, _LONGEST_OWNER = ".owner", 200  # a file in a run's folder, and its bytes
_TRASH = ".trash"  # it has one folder for each deletion, named by its time; the deleted run is in it, under its own name
_FORMER = ".former-names"  # it has one file for each name that a renamed run had; its content is the next name
KEPT_NS = 24 * 3600 * 10**9  # how long a deleted run can be restored, by any server that uses the same home
# Letters and digits of any language. No comma, which separates names in a link. No dot at the start, which hides a folder.
_NAME = re.compile(r"[^\W_][\w .+()=-]{0,79}(?<![ .])")
_LONGEST_NAME = 200  # bytes: systems allow 255, and a prefix and a suffix may be added
# Names of devices in Windows, also with any extension.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}


def save(result: RunResult, folder: Path) -> None:
    """Write `result` as `folder`, which must not exist. It is written under another name and then renamed, so it is never
    incomplete.

    Raises `FileExistsError` and `OSError`. JSON has no NaN: a number in `summary` that is not finite is null in run.json, and NaN
    when it is loaded.
    """
    partial = files.partial(folder)
    partial.mkdir(parents=True)
    try:
        (partial / "run.json").write_text(written_head(result), encoding="utf-8")
        for name, rows in result.tables.items():
            with (partial / f"{name}.parquet").open("xb") as file:  # pandas gets a file: it cannot take a path that is not UTF-8
                rows.to_parquet(file, index=False)
        if folder.exists():  # rename would replace an empty folder
            raise FileExistsError(f"{folder} is there already")
        try:
            os.rename(partial, folder)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # another process has saved there in the meantime
                raise FileExistsError(f"{folder} is there already") from error
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: Path) -> RunResult:
    """Read a saved run. Raises `RequestError` if the folder is not a saved run, is incomplete, or is of a newer program."""
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
    """The head `result` with its tables. `tables`: names and Parquet files. Raises `RequestError` if they are not a valid run."""
    found: dict[str, pd.DataFrame] = {}
    for name, file in tables:
        left = bounds.bytes - sum(map(bytes_of, found.values()))
        found[name] = read_table(name, file, bounds._replace(bytes=left))
    result = replace(result, tables=found)
    contract.refuse_misfits(result)
    return result


def head(folder: Path) -> RunResult:
    """A saved run without its tables. A list of runs needs no more. Raises `RequestError` if the folder is not a saved run."""
    try:
        return read_head(files.read(folder / "run.json", LARGEST_JSON))
    except (RequestError, OSError) as error:
        raise _no_run(folder, error) from error


def stamp(folder: Path) -> int:
    """A number that changes if another run is saved under the same name. Raises `RequestError` if there is no run."""
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
    """The same, each with the time when it was saved, in nanoseconds. A run never changes, but another run may get its name."""
    if not home.is_dir():
        return []
    return sorted(((when, path) for path in home.iterdir() if (when := _saved_at(path)) is not None), reverse=True)


def _saved_at(folder: Path) -> int | None:
    """When the run was saved, in nanoseconds. None if the folder is not a saved run, or was just deleted."""
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
    """`stem` in `home`, or the first of stem-2, stem-3, … that does not exist."""
    names = chain([stem], (f"{stem}-{n}" for n in count(2)))
    return next(home / name for name in names if not (home / name).exists())


def discard_partial(folder: Path) -> None:
    """Remove unfinished folders for `folder`, which writers that did not end properly have left."""
    for path in folder.parent.glob(f"{files.PARTIAL}*-{escape(folder.name)}"):
        shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------ whose it is


def set_owner(folder: Path, owner: str) -> None:
    """Note in a saved run whose it is. The note goes where the folder goes: into the trash and back. Raises `OSError`."""
    files.write(folder / _OWNER, owner.encode())


def owner(folder: Path) -> str:
    """Whose run it is; empty if nobody noted it."""
    try:
        return files.read(folder / _OWNER, _LONGEST_OWNER).decode(errors="replace")
    except FileNotFoundError:
        return ""


def owned(home: Path, by: str) -> tuple[list[Path], list[Path]]:
    """The folders of an owner's runs in `home`: those that are saved, and those in the trash."""
    deleted = [path for path in (home / _TRASH).glob("*/*") if path.is_dir()]
    return [run for run in listing(home) if owner(run) == by], [run for run in deleted if owner(run) == by]


def size(folder: Path) -> int:
    """Bytes of a run's files. 0 if it is gone: it can be moved into the trash at this moment."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:
        return 0


# ----------------------------------------------------------------------------------------------------- names and the trash


def good_name(name: str) -> bool:
    """Whether a run may have this name: it is a valid folder name on every system, and does not lead outside of the home."""
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
    former = folder.parent / _FORMER
    former.mkdir(exist_ok=True)
    files.write(former / folder.name, target.name.encode())
    return target


def current(home: Path, name: str) -> Path | None:
    """The run that has this name, or had it before it was renamed. None if there is none. No name leads out of `home`."""
    tried: set[str] = set()
    while good_name(name) and name not in tried:
        if _saved_at(home / name) is not None:
            return home / name
        tried.add(name)
        try:
            name = files.read(home / _FORMER / name, _LONGEST_NAME).decode()
        except FileNotFoundError:
            return None
    return None


def delete(folder: Path) -> Path:
    """Move a saved run to the trash. Returns its path there, for `restore`. `empty_trash` removes it when it is too old."""
    trash = folder.parent / _TRASH
    deletion = free(trash, str(time.time_ns()))
    deletion.mkdir(parents=True)
    try:
        _move(folder, deletion / folder.name)
    except BaseException:
        deletion.rmdir()
        raise
    empty_trash(folder.parent)
    return deletion / folder.name


def remove_deleted(deleted: Path) -> None:
    """Remove a deleted run from disk: it cannot be restored."""
    shutil.rmtree(deleted.parent, ignore_errors=True)  # another server of the same home may remove it too


def restore(deleted: Path) -> Path:
    """Restore a deleted run, under its own name if that is free. Returns its folder. Raises `RequestError`."""
    target = free(deleted.parents[2], deleted.name)
    _move(deleted, target)
    deleted.parent.rmdir()
    return target


def empty_trash(home: Path, now_ns: int | None = None) -> None:
    """Remove runs that were deleted more than `KEPT_NS` ago.

    The limit is on age, not on number: other sessions and servers that use the home still offer to restore their deleted runs.
    """
    trash, now = home / _TRASH, time.time_ns() if now_ns is None else now_ns
    for deletion in trash.iterdir() if trash.is_dir() else ():
        deleted_ns = deletion.name.partition("-")[0]
        if deleted_ns.isdecimal() and now - int(deleted_ns) > KEPT_NS:  # other names are files of a file manager
            shutil.rmtree(deletion, ignore_errors=True)  # another server of the same home may remove it too


def _move(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except FileNotFoundError as error:
        raise RequestError(sentence("the run {name} is not there any more", name=folder.name)) from error
    except OSError as error:
        why = sentence("the run {name} cannot be moved: {reason}", name=folder.name, reason=str(error.strerror))
        raise RequestError(why) from error
