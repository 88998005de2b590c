"""`python -m engine models`, `devices`, `runs` and `schema`: lists of them, and the JSON Schema."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from engine import catalog, store
from engine.command.output import HOME, complain, print_json, print_table
from engine.devices import device as device_named
from engine.devices import device_names
from engine.spec import RequestError, RunSpec


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=_models)


def add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON, with the source of each figure")
    parser.set_defaults(do=_devices)


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
        rows.append(
            {"name": name, "maker": catalog.maker_of(name)}
            | shape
            | {"parameters": spec.parameters(), "of a token": spec.active_parameters()}
        )
    (print_json if arguments.json else print_table)(rows)
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json([device.model_dump() for device in map(device_named, device_names())])
        return 0
    rows = [
        {
            "name": device.name,
            "memory GB": _short(device.memory_bytes / 1e9),
            "bf16 TFLOP/s": _short(device.bf16_flops / 1e12),
            "of them reached": f"{device.reachable:.0%}",
            "fp32 TFLOP/s": _short(device.fp32_flops / 1e12),
            "of these": f"{device.fp32_reachable:.0%}",
            "memory GB/s": _short(device.memory_bandwidth / 1e9),
            "in node GB/s": _short(device.intra_bandwidth / 1e9),
            "between nodes GB/s": _short(device.inter_bandwidth / 1e9),
            "node": device.node_size,
        }
        for device in map(device_named, device_names())
    ]
    print_table(rows)
    return 0


def _short(value: float) -> str:
    return f"{value:,.6g}"


def _runs(arguments: argparse.Namespace) -> int:
    rows = []
    for folder in store.listing(arguments.out):
        try:
            rows.append(_run_row(folder))
        except RequestError as error:  # if one folder cannot be read, the others are listed
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
