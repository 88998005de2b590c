"""`python -m engine dry-run`: what each rank would hold and send, without running them."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from engine import catalog, store
from engine.command import flags
from engine.command.output import complain, highest, print_json, print_table, size
from engine.command.run import DONE
from engine.launch.draft import folder_for
from engine.launch.dry_run import client
from engine.spec import RunSpec
from engine.tables import RunResult


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--model NAME] [--layout CODE] [--rank K] …"
    flags.add(parser)
    parser.add_argument("--rank", type=int, metavar="K", help="the rank to dry-run; without it, one of each stage")
    parser.add_argument(
        "--device",
        choices=("none", "cpu", "cuda"),
        default="none",
        help="use real tensors there, measured by that allocator; none, the default, takes no memory for the model",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="save the result as a folder there; otherwise it is only printed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(do=dry_run, kept=lambda arguments: arguments.out is not None)


def dry_run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    spec = flags.read(arguments)
    try:
        with folder_for(arguments.out) as home:
            folder = client.dry_run(spec, home, arguments.rank, arguments.device, _show)
            result = store.load(folder)
    except KeyboardInterrupt:
        complain("cancelled")
        return 128 + signal.SIGINT
    saved = folder if arguments.out else None
    if arguments.json:
        print_json(_as_json(result, saved))
    else:
        _print(result, saved)
    return DONE


def _show(done: int, of: int) -> None:
    if of > 1:
        complain(f"{done} of {of} ranks")


def _as_json(result: RunResult, folder: Path | None) -> dict[str, Any]:
    memory = result.tables["memory_peak"]
    dry = memory[memory["rank"].isin(result.summary["rehearsed"])]
    return {
        "spec": result.spec.model_dump(mode="json"),
        "environment": result.environment,
        "summary": result.summary,
        "memory_peak": dry.drop(columns="source").to_dict("records"),
        "folder": None if folder is None else str(folder),
    }


def _print(result: RunResult, folder: Path | None) -> None:
    spec, summary = result.spec, result.summary
    layout = spec.layout
    name = catalog.name_of(spec.model)
    print(f"{name} as {layout.code}, {layout.schedule}, dry run in {summary['seconds']:.1f} s: {result.environment['why']}\n")
    print_table(_lines(spec, result))
    print(f"\n  memory   {highest(summary, layout)}")
    print(f"  traffic  {size(summary['wire_bytes_per_rank'])} sent by a rank in a step, on average")
    print(f"  bubble   {summary['bubble']:.1%} of the pipeline's time, where a backward takes twice as long as a forward")
    if folder is not None:
        print(f"  saved    {folder}")


def _lines(spec: RunSpec, result: RunResult) -> list[dict[str, Any]]:
    """One line for each rank that ran: its bytes at the peak, in total and by category."""
    memory = result.tables["memory_peak"]
    lines = []
    for rank in result.summary["rehearsed"]:
        bytes_ = memory[memory["rank"] == rank].set_index("category")["bytes"]
        stage = int(memory[memory["rank"] == rank]["pp"].iloc[0])
        lines.append(
            {"rank": str(rank), "stage": str(stage), "total": size(bytes_.sum())} | {c: size(n) for c, n in bytes_.items()}
        )
    return lines
