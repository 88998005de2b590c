"""One rank of a run on more machines than one, started by torchrun, which does so on each of them:

    torchrun --nnodes 2 --nproc-per-node 4 … -m engine.launch.cluster --spec run.json --out DIR

The worker is that of a local run; `engine.launch.cluster_rank` is its launcher. Where it is and whom to meet it learns from
environment variables, which is torchrun's interface, and the only place where the engine reads any. Rank 0 puts the run's
folder into DIR, on its machine. The exit status is 0 done, 1 a rank failed, 2 the request is wrong; torchrun makes both of the
latter a 1.

What is trusted: the network between the machines. torchrun's store listens on all addresses of the first, and gloo's and NCCL's
connections are as open; none of them has a password. Who reaches them can disturb a run or make its numbers wrong. He cannot have
anything run: what ranks tell each other is read as numbers and text, and held against what it should be.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from engine.launch.parent import end_with_parent
from engine.launch.torchrun import WRONG, TorchrunRank, print_error
from engine.launch.warm import preload
from engine.spec import RequestError


def main(arguments: Sequence[str]) -> int:
    """Be one rank. Returns the exit status."""
    about = "Be one rank of a run on several machines."
    parser = argparse.ArgumentParser(prog="torchrun … -m engine.launch.cluster", description=about)
    parser.add_argument("--spec", required=True, metavar="FILE", help="what to run, as JSON")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where rank 0 puts the run's folder")
    given = parser.parse_args(arguments)
    try:
        place = TorchrunRank.read(os.environ)
    except RequestError as error:
        print_error(str(error))
        return WRONG
    end_with_parent()  # torchrun's agent may be killed, and nobody would end this rank
    quieten(os.environ)
    preload()  # before the clock of the run's time limit starts
    from engine.launch.cluster_rank import ClusterRank

    return ClusterRank(place, given.spec, given.out).run()


def quieten(environment: MutableMapping[str, str]) -> None:
    """Tell torch's libraries, which hear of it in no other way and only before they are loaded, to print errors alone."""
    environment.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's otherwise prints two lines for every profile
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that is gone otherwise is told with 26 frames of C++


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # at once: after a failure, torch may wait for ever for connections that are gone
