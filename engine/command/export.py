"""`python -m engine export`: a saved run as files for other programs, or a spec as settings of another framework."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import files, run_archive, store
from engine.command.output import HOME, print_json
from engine.export import FRAMEWORKS, csv_zip, perfetto, settings
from engine.launch.request import read_spec
from engine.spec import RequestError, RunSpec

# File formats of a run, with their file extensions.
_FILES = {"perfetto": ".perfetto.json", "csv": ".csv.zip", "zip": ".zip"}
TARGETS = (*_FILES, *FRAMEWORKS)


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s RUN --to TARGET [--runs DIR] [--out FILE]"
    parser.add_argument("run", nargs="?", metavar="RUN", help="a saved run: its folder, or its name in the folder of runs")
    parser.add_argument("--runs", type=Path, default=HOME, metavar="DIR", help=f"the folder of runs (default {HOME})")
    parser.add_argument("--to", required=True, metavar="TARGET", help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--spec", metavar="FILE", help="for settings, in place of RUN: a spec as JSON; - reads standard input")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write; otherwise settings are printed, and a run goes to a file here",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(do=_export, kept=lambda arguments: arguments.out is not None or arguments.to in _FILES)


def _export(arguments: argparse.Namespace) -> int:
    to = arguments.to
    if to == "html":
        raise RequestError("the HTML report is drawn by the pages, not by the engine; download it on the Runs page")
    if to not in TARGETS:
        raise RequestError(f"there is no export to {to!r}; there are {', '.join(TARGETS)}")
    if (arguments.run is None) == (arguments.spec is None):
        raise RequestError("export takes one of two: the RUN, or with --spec the spec")
    if to in _FILES:
        if arguments.run is None:
            raise RequestError(f"{to} shows what a run measured, and a spec has measured nothing; name the RUN")
        folder = _folder(arguments.run, arguments.runs)
        content, file = _written(folder, to), arguments.out or Path(folder.name + _FILES[to])
    else:
        spec = _spec(arguments)
        text = settings(spec, to)
        if arguments.out is None and not arguments.json:
            print(text, end="")
            return 0
        content, file = text.encode(), arguments.out
    if file is not None:
        _write(file, content)
    if arguments.json:
        print_json({"to": to, "file": str(file), "bytes": len(content)} if file else {"to": to, "text": content.decode()})
    else:
        print(file)
    return 0


def _folder(run: str, home: Path) -> Path:
    """The folder at that path, or with that name in the folder of runs. Raises `RequestError` that lists both."""
    for folder in (Path(run), home / run):
        if folder.is_dir():
            return folder
    raise RequestError(
        f"there is no saved run {run!r}, neither as a path nor as a name in {home}; if it was saved elsewhere, give its folder's "
        "path, or the folder of runs with --runs"
    )


def _spec(arguments: argparse.Namespace) -> RunSpec:
    return read_spec(arguments.spec) if arguments.spec else store.head(_folder(arguments.run, arguments.runs)).spec


def _written(folder: Path, to: str) -> bytes:
    if to == "zip":
        return run_archive.pack(folder)
    result = store.load(folder)
    return csv_zip(result) if to == "csv" else perfetto(result).encode()


def _write(file: Path, content: bytes) -> None:
    try:
        files.write(file, content)
    except OSError as error:
        raise RequestError(f"cannot write {file}: {error.strerror or error}") from error
