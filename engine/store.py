"""Saved runs: a folder with run.json and one Parquet file a table."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pandas as pd

from engine.spec import RequestError, RunSpec
from engine.tables import SCHEMAS, RunResult

_PARTIAL = ".partial-"


def save(result: RunResult, folder: Path) -> None:
    """Write `result` as `folder`, which must not exist. Whole or not at all: it is written beside it and renamed."""
    partial = folder.parent / f"{_PARTIAL}{os.getpid()}-{folder.name}"
    partial.mkdir(parents=True)
    try:
        head = {"spec": result.spec.model_dump(mode="json"), "environment": result.environment, "summary": result.summary}
        (partial / "run.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        for name, rows in result.tables.items():
            rows.to_parquet(partial / f"{name}.parquet", index=False)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: Path) -> RunResult:
    """Read a saved run. Raises `RequestError` if the folder is not one."""
    try:
        head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        spec = RunSpec.model_validate(head["spec"])
        found = {name: folder / f"{name}.parquet" for name in SCHEMAS}
        tables = {name: pd.read_parquet(path) for name, path in found.items() if path.exists()}
        return RunResult(spec, head["environment"], head["summary"], tables)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{folder} is not a saved run: {error}") from error


def listing(home: Path) -> list[Path]:
    """The saved runs in `home`, newest first."""
    if not home.is_dir():
        return []
    runs = [p for p in home.iterdir() if not p.name.startswith(".") and (p / "run.json").is_file()]
    return sorted(runs, key=lambda p: (p / "run.json").stat().st_mtime, reverse=True)


def new_folder(home: Path, spec: RunSpec) -> Path:
    """A free name in `home` for a run of `spec`, such as 20261124-101500-dp2.tp2.pp2-1f1b."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{spec.layout.code}-{spec.layout.schedule}"
    names = [stem, *(f"{stem}-{n}" for n in range(2, 1000))]
    return next(home / name for name in names if not (home / name).exists())


def discard_partial(folder: Path) -> None:
    """Remove what writers that did not finish left beside `folder` under its name."""
    for path in folder.parent.glob(f"{_PARTIAL}*-{folder.name}"):
        shutil.rmtree(path, ignore_errors=True)
