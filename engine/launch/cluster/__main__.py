"""One rank of a run on several machines. torchrun starts it on each of them:

    torchrun --nnodes 2 --nproc-per-node 4 … -m engine.launch.cluster --spec run.json --out DIR

The worker is that of a local run. `engine.launch.cluster.rank` is its launcher. Rank numbers and the address of the store come
from environment variables, which are torchrun's interface; the engine reads no others. Rank 0 saves the run's folder in DIR, on
its machine. The exit status is 0 done, 1 a rank failed, 2 the request is wrong. torchrun turns 2 into 1.

The network between the machines is trusted. torchrun's store listens on all addresses of the first machine, and gloo's and NCCL's
connections are open too; none has a password. Whoever reaches them can disturb a run or falsify its numbers, but cannot execute
code: messages between ranks are read as numbers and text, and checked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from engine.launch.cluster.torchrun import WRONG, TorchrunRank, print_line
from engine.launch.parent import end_with_parent
from engine.launch.warm import preload
from engine.spec import RequestError


def main(arguments: Sequence[str]) -> int:
    """Run one rank. Returns the exit status."""
    about = "Be one rank of a run on several machines."
    parser = argparse.ArgumentParser(prog="torchrun … -m engine.launch.cluster", description=about)
    parser.add_argument("--spec", required=True, metavar="FILE", help="what to run, as JSON")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where rank 0 puts the run's folder")
    given = parser.parse_args(arguments)
    try:
        place = TorchrunRank.read(os.environ)
    except RequestError as error:
        print_line(str(error))
        return WRONG
    end_with_parent()  # otherwise this rank would outlive a torchrun agent that was killed
    quieten(os.environ)
    preload()  # before the clock of the run's time limit starts
    from engine.launch.cluster.rank import ClusterRank

    return ClusterRank(place, given.spec, given.out).run()


def quieten(environment: MutableMapping[str, str]) -> None:
    """Make torch's libraries print errors only. They read these variables when they are loaded."""
    environment.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler's library prints two lines for every profile
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # otherwise a lost store prints 26 frames of C++


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # at once: after a failure, torch may wait forever for lost connections
