"""`python -m engine models`, `runs` and `schema`: what there is."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from engine import catalog, store
from engine.command.output import HOME, complain, print_json, print_table
from engine.spec import RequestError, RunSpec


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=_models)


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"where the runs' folders are (default {HOME})")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=_runs)


def add_schema(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(do=_schema)


def _models(arguments: argparse.Namespace) -> int:
    rows = []
    for name, spec in catalog.MODELS.items():
        shape = spec.model_dump(include={"layers", "hidden", "heads", "vocab", "seq"})
        rows.append({"name": name} | shape | {"parameters": spec.parameters()})
    (print_json if arguments.json else print_table)(rows)
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    rows = []
    for folder in store.listing(arguments.out):
        try:
            rows.append(_run_row(folder))
        except RequestError as error:  # one folder that cannot be read must not hide the others
            complain(str(error))
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        print(f"no runs in {arguments.out}")
    return 0


def _run_row(folder: Path) -> dict[str, Any]:
    result = store.head(folder)
    spec, summary = result.spec, result.summary
    return {
        "name": folder.name,
        "model": catalog.name_of(spec.model),
        "layout": spec.layout.code,
        "schedule": spec.layout.schedule,
        "steps": summary["steps"],
        "loss": summary.get("loss_last", math.nan),
        "peak_bytes": summary["peak_bytes"],
    }


def _schema(arguments: argparse.Namespace) -> int:
    print_json(RunSpec.model_json_schema())
    return 0
