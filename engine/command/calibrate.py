"""`python -m engine calibrate`: measure this machine, and write it as a device that plans take."""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path

from engine import files
from engine.command.output import complain, print_json
from engine.devices import DEVICES, DeviceSpec, own_folder
from engine.launch.calibration.client import calibrate
from engine.spec import Precision, RequestError, sentence

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what is measured (default cpu)")
    parser.add_argument("--name", metavar="NAME", help="what plans call it (default: this machine's name and the device)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the file (default: one that plans offer by its name)")
    parser.add_argument("--json", action="store_true", help="print the device as JSON")
    parser.set_defaults(do=_calibrate, kept=lambda arguments: True)


def _calibrate(arguments: argparse.Namespace) -> int:
    name = arguments.name or _default_name(arguments.device)
    if not _NAME.fullmatch(name) or name in DEVICES:
        text = sentence(
            "a device cannot be named {name!r}: up to 40 small letters, digits and - fit, and no name of a known one", name=name
        )
        raise RequestError(text)
    device = calibrate(arguments.device, name, complain)
    file = arguments.out or own_folder() / f"{name}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, device.model_dump_json(indent=2).encode())
    except OSError as error:
        raise RequestError(sentence("cannot write {file}: {why}", file=str(file), why=error.strerror or str(error))) from error
    if arguments.json:
        print_json(device.model_dump())
    else:
        print(_text(device, "fp32" if arguments.device == "cpu" else "bf16"))
        print(f"  saved    {file}")
    return 0


def _default_name(kind: str) -> str:
    machine = re.sub(r"[^a-z0-9]+", "-", platform.node().lower()).strip("-")[:30]
    return f"{machine or 'this'}-{kind}"


def _text(device: DeviceSpec, precision: Precision) -> str:
    """`precision`: the one in which shares of the best product were measured."""
    lines = {
        "fp32": f"{device.fp32_flops / 1e9:,.1f} GFLOP/s of the best product",
        "bf16": f"{device.bf16_flops / 1e9:,.1f} GFLOP/s of the best product",
        "products": f"{device.matmul_efficiency:.0%} of the best product in {precision}, the median by size",
        "attention": f"{device.attention_efficiency:.0%} of the best product in {precision}",
        "memory": f"{device.memory_bandwidth / 1e9:,.1f} GB/s; norms and GELU reach {device.memory_efficiency:.0%} of it",
        "link": f"{device.intra_latency * 1e6:,.0f} µs, then {device.intra_bandwidth / 1e9:,.2f} GB/s",
        "launch": f"{device.launch_us:,.1f} µs a kernel",
    }
    return "\n".join([f"{device.name}, one rank of it", *(f"  {name:<10}{text}" for name, text in lines.items())])
