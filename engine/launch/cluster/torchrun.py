"""What torchrun tells a rank through its environment, and messages on the terminal. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from engine.spec import RequestError, RunSpec

DONE, FAILED, WRONG = 0, 1, 2

# torchrun ends all ranks of a machine when one ends. A rank with no message of its own waits this long before it ends.
GRACE_S = 1.0


@dataclass(frozen=True)
class TorchrunRank:
    """The rank of this process under torchrun."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> TorchrunRank:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        missing = [name for name in names if name not in environment]
        if missing:
            raise RequestError(f"{missing[0]} is not set: this is one rank of a run, to be started by torchrun")
        return cls(*(int(environment[name]) for name in names))


def refuse(error: RequestError, place: TorchrunRank) -> int:
    """Print the error once on each machine. Returns the exit status."""
    if place.local_rank:
        time.sleep(GRACE_S)  # local rank 0 prints the same message, and must be the first to end
    else:
        print_line(error.sentence)
    return WRONG


def check_world_size(spec: RunSpec, world: int) -> RunSpec:
    """`spec`, if it is for `world` ranks. Raises `RequestError` otherwise."""
    layout = spec.layout
    if layout.ranks != world:
        raise RequestError(
            f"{layout.code} is {layout.ranks} ranks and torchrun started {world}; nnodes × nproc-per-node must be {layout.ranks}"
        )
    return spec


def print_line(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")  # one call, so that the lines of ranks do not mix
    sys.stderr.flush()
