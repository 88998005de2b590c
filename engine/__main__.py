"""The command line: python -m engine run | dry-run | predict | search | calibrate | models | devices | runs | export | schema.

Exit status 0 done, 1 a rank failed, 2 the request is wrong, 130 cancelled by Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from engine.command import streams


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit status."""
    return _run_command(arguments)[0]


def _run_command(arguments: Sequence[str]) -> tuple[int, bool]:
    """Returns the exit status, and whether the command's result is kept in a file, not only printed."""
    from engine.command import calibrate, dry_run, export, flags, lists, output, predict, run, search
    from engine.launch.failure import RunError
    from engine.spec import RequestError

    parser = flags.Parser(prog="python -m engine", description="Run a Transformer sharded over ranks, and measure it.")
    commands = parser.add_subparsers(required=True, metavar="command")
    run.add(commands.add_parser("run", help="run a spec on this machine and save what was measured"))
    dry_run.add(commands.add_parser("dry-run", help="say what each rank would hold and send, without running them"))
    predict.add(commands.add_parser("predict", help="what a run would cost, by the formulas; nothing is started"))
    search.add(commands.add_parser("search", help="the best layouts of a model on so many devices, and why"))
    calibrate.add(commands.add_parser("calibrate", help="measure this machine as a device for plans"))
    lists.add_models(commands.add_parser("models", help="list the named models"))
    lists.add_devices(commands.add_parser("devices", help="list the named devices"))
    lists.add_runs(commands.add_parser("runs", help="list the saved runs"))
    export.add(commands.add_parser("export", help="write a saved run for other programs, or as another framework's settings"))
    lists.add_schema(commands.add_parser("schema", help="print the JSON Schema of a spec"))
    try:
        parsed = parser.parse_args(arguments)
        return parsed.do(parsed), parsed.kept(parsed) if "kept" in parsed else False
    except RequestError as error:
        output.complain(str(error))
        return run.WRONG, False
    except RunError as error:
        output.complain(f"{error}\n{error.traceback}".rstrip())
        return run.FAILED, False


def _program(arguments: Sequence[str]) -> int:
    """Run the program. A command's output is written when the command has ended, so that a full disk does not interrupt it."""
    streams.make_usable()
    printed = io.StringIO()
    status, kept = 0, False
    try:
        with redirect_stdout(printed):
            status, kept = _run_command(arguments)
    except SystemExit as leaving:  # after --help
        status = int(leaving.code or 0)
    except KeyboardInterrupt:  # before there was a run to cancel
        status = 130
    if lost := streams.written(printed.getvalue(), sys.stdout):
        streams.written(f"standard output cannot be written: {lost}\n", sys.stderr)
        return status or (0 if kept else 2)
    return status


if __name__ == "__main__":
    sys.exit(_program(sys.argv[1:]))
