"""The warm host: a process that has imported torch, and forks the ranks of runs.

    python -m engine.launch.host.program --events FD [--reserve BYTES]

It is a program of its own, never forked or spawned from a server: a fork would keep the server's listening port, and a
spawn would run its main script again. Requests are JSON lines on standard input, events are JSON lines on FD:

    requests   {"do": "run", "run": …, "spec": {…}, "home": …, "share": …}
                                                                    "run": a name, which its events have too
                                                                    "share": bytes that all ranks may take
               {"do": "cancel", "run": …}
    events     {"event": "warm"}                                    ready for the first request
               {"event": "broken", "message": …, "traceback": …}    it cannot start
               {"event": "started"}                                 the run has begun
               what the worker reports                              see engine.worker
               {"event": "finished", "how": "done" | "failed" | "wrong" | "cancelled",
                "folder": …, "rank": …, "message": …, "traceback": …}

At the end of standard input the client is gone: every rank is killed and the host ends.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from select import select
from typing import TYPE_CHECKING

from engine.launch.host.free_memory import usual_reserve
from engine.launch.host.isolation import isolate_network
from engine.launch.parent import end_with_parent, wake_with_parents_end
from engine.launch.warm import preload

if TYPE_CHECKING:
    from engine.launch.host.local_runs import Host


def warm_host(requests: int, events: int, reserve: int) -> Host:
    """Import all that ranks need, then fork them with it."""
    preload()
    from engine.launch.host.local_runs import Host

    gc.collect()
    gc.freeze()  # a garbage collection in a rank would write to, and so copy, every page shared with the host
    return Host(requests, events, reserve)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launch.host.program")
    parser.add_argument("--events", type=int, required=True, metavar="FD", help="open file descriptor to write events to")
    parser.add_argument("--reserve", type=int, metavar="BYTES", help="memory to keep free, by ending runs")
    chosen = parser.parse_args(arguments)
    events = chosen.events
    os.set_inheritable(events, False)
    isolate_network()  # first: it takes back what the next line asks for, and torch has threads
    end_with_parent()  # importing takes seconds, in which the end of the requests is not seen
    if select([sys.stdin], [], [], 0)[
        0
    ]:  # no request comes before "warm": this is the end of the requests, from before the line above
        return 0
    try:
        host = warm_host(sys.stdin.fileno(), events, usual_reserve() if chosen.reserve is None else chosen.reserve)
    except Exception as error:  # noqa: BLE001  reported to the client, whatever it is
        message = f"the process that runs the ranks could not start: {type(error).__name__}: {error}"
        event = {"event": "broken", "message": message, "traceback": traceback.format_exc()}
        os.write(events, json.dumps(event).encode() + b"\n")
        return 1
    wake_with_parents_end()  # from here on the end of the requests ends the host, with time to clean up
    host.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
