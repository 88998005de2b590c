"""The command line: python -m engine run | dry-run | predict | search | models | devices | runs | export | schema.

Exit status 0 done, 1 a rank failed, 2 the request is wrong, 130 cancelled by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Do one command. Returns the exit status."""
    from engine.command import dry_run, export, flags, lists, output, predict, run, search
    from engine.launch.failure import RunError
    from engine.spec import RequestError

    parser = flags.Parser(prog="python -m engine", description="Run a Transformer sharded over ranks, and measure it.")
    commands = parser.add_subparsers(required=True, metavar="command")
    run.add(commands.add_parser("run", help="run a spec on this machine and save what was measured"))
    dry_run.add(commands.add_parser("dry-run", help="say what each rank would hold and send, without running them"))
    predict.add(commands.add_parser("predict", help="what a run would cost, by the formulas; nothing is started"))
    search.add(commands.add_parser("search", help="the best layouts of a model on so many devices, and why"))
    lists.add_models(commands.add_parser("models", help="list the named models"))
    lists.add_devices(commands.add_parser("devices", help="list the named devices"))
    lists.add_runs(commands.add_parser("runs", help="list the saved runs"))
    export.add(commands.add_parser("export", help="write a saved run for other programs, or as another framework's settings"))
    lists.add_schema(commands.add_parser("schema", help="print the JSON Schema of a spec"))
    try:
        parsed = parser.parse_args(arguments)
        return parsed.do(parsed)
    except RequestError as error:
        output.complain(str(error))
        return run.WRONG
    except RunError as error:
        output.complain(f"{error}\n{error.traceback}".rstrip())
        return run.FAILED


def _flushed(status: int) -> int:
    """Hand on what was printed. A reader that has gone, as in `… | head`, is no error of the command."""
    try:
        if sys.stdout:  # None if it was closed from the start
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain as it ends
    return status


if __name__ == "__main__":
    try:
        sys.exit(_flushed(main(sys.argv[1:])))
    except KeyboardInterrupt:  # before there was a run to cancel
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(_flushed(0))
