"""What stands after `--` on the command line of the app, and of `make classroom`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pages.shared.classroom import Rules

_USUAL = Path(__file__).parents[2] / "runs"


def parser(program: str, parents: Sequence[argparse.ArgumentParser] = ()) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog=program, description="Shardscope in the browser.", parents=list(parents))
    found.add_argument("--runs", type=Path, default=_USUAL, metavar="DIR", help="where runs are saved")
    found.add_argument(
        "--cores",
        type=_positive,
        metavar="N",
        help="how many cores runs may use at once; otherwise all, or one run at a time on a machine with a GPU",
    )
    rules = found.add_argument_group("a class", "what each person may take")
    usual = Rules()
    rules.add_argument("--ranks", type=_positive, default=usual.ranks, metavar="N", help=f"of one run (default {usual.ranks})")
    rules.add_argument(
        "--seconds", type=_positive, default=usual.seconds, metavar="N", help=f"of one run (default {usual.seconds:g})"
    )
    rules.add_argument(
        "--runs-each", type=_positive, default=usual.runs, metavar="N", help=f"that wait or are active (default {usual.runs})"
    )
    rules.add_argument(
        "--megabytes", type=_positive, default=usual.megabytes, metavar="N", help=f"of runs and texts (default {usual.megabytes})"
    )
    rules.add_argument(
        "--people", type=_positive, default=usual.people, metavar="N", help=f"in 12 hours (default {usual.people})"
    )
    return found


def of_app(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of `streamlit run app.py -- …`. `classroom`: whether a code is asked for."""
    found = parser("streamlit run app.py --")
    found.add_argument("--classroom", action="store_true", help="ask for the code of a class; used by `make classroom`")
    return found.parse_args(arguments)


def rules(chosen: argparse.Namespace) -> Rules:
    return Rules(chosen.ranks, chosen.seconds, chosen.runs_each, chosen.megabytes, chosen.people)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
