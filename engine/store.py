"""Saved runs: a folder with run.json and one Parquet file a table."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from glob import escape
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException

from engine.spec import RequestError, RunSpec, sentence
from engine.tables import SCHEMAS, RunResult

_HEAD = ("spec", "environment", "summary")  # what run.json holds
_PARTIAL = ".partial-"


def save(result: RunResult, folder: Path) -> None:
    """Write `result` as `folder`, which must not exist. Whole or not at all: it is written beside it and renamed.

    JSON knows no NaN: a number in `summary` that is not finite is null in run.json, and NaN again when loaded.
    """
    partial = folder.parent / f"{_PARTIAL}{os.getpid()}-{folder.name}"
    partial.mkdir(parents=True)
    try:
        head = {"spec": result.spec.model_dump(mode="json"), "environment": result.environment, "summary": finite(result.summary)}
        (partial / "run.json").write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for name, rows in result.tables.items():
            rows.to_parquet(partial / f"{name}.parquet", index=False)
        if folder.exists():  # rename would replace an empty folder
            raise FileExistsError(f"{folder} is there already")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: Path) -> RunResult:
    """Read a saved run. Raises `RequestError` if the folder is not one."""
    try:
        head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not isinstance(head, dict) or not all(isinstance(head.get(part), dict) for part in _HEAD):
            raise RequestError(sentence("run.json has not all of {parts}", parts=", ".join(_HEAD)))
        found = {name: folder / f"{name}.parquet" for name in SCHEMAS}
        tables = {name: _read_table(path, SCHEMAS[name]) for name, path in found.items() if path.exists()}
        return RunResult(RunSpec.model_validate(head["spec"]), head["environment"], _map_leaves(head["summary"], _number), tables)
    except (RequestError, OSError, ValueError, RecursionError, ArrowException) as error:
        reason = error.sentence if isinstance(error, RequestError) else str(error)
        raise RequestError(sentence("{folder} is not a saved run: {reason}", folder=str(folder), reason=reason)) from error


def _read_table(path: Path, schema: dict[str, str]) -> pd.DataFrame:
    rows = pd.read_parquet(path)
    if missing := [column for column in schema if column not in rows]:
        raise RequestError(sentence("{name} lacks {missing}", name=path.name, missing=", ".join(missing)))
    return rows


def listing(home: Path) -> list[Path]:
    """The saved runs in `home`, newest first."""
    if not home.is_dir():
        return []
    saved = [(when, path) for path in home.iterdir() if (when := _saved_at(path)) is not None]
    return [path for _, path in sorted(saved, reverse=True)]


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
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{spec.layout.code}-{spec.layout.schedule}"
    names = chain([stem], (f"{stem}-{n}" for n in count(2)))
    return next(home / name for name in names if not (home / name).exists())


def discard_partial(folder: Path) -> None:
    """Remove what writers that did not finish left beside `folder` under its name."""
    for path in folder.parent.glob(f"{_PARTIAL}*-{escape(folder.name)}"):
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------- numbers in JSON


def finite(value: Any) -> Any:
    """The same JSON value with None for every number that JSON has no way to write."""
    return _map_leaves(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def _number(leaf: Any) -> Any:
    return math.nan if leaf is None else leaf


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_leaves(inner, change) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_leaves(inner, change) for inner in value]
    return change(value)
