"""Where a rank is under torchrun, and how it speaks to the terminal of its machine. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from engine.spec import RequestError, RunSpec

DONE, FAILED, WRONG = 0, 1, 2

# torchrun ends all ranks of a machine when one ends: those who have less to say let the others speak first.
GRACE_S = 1.0


@dataclass(frozen=True)
class Place:
    """Where this process is, as torchrun has it."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Place:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        missing = [name for name in names if name not in environment]
        if missing:
            raise RequestError(f"{missing[0]} is not set: this is one rank of a run, to be started by torchrun")
        return cls(*(int(environment[name]) for name in names))


def refuse(error: RequestError, place: Place) -> int:
    """Say it once on each machine. Returns the exit status."""
    if place.local_rank:
        time.sleep(GRACE_S)  # local rank 0 has the same to say, and has to be the first to end
    else:
        tell(error.sentence)
    return WRONG


def fitting(spec: RunSpec, world: int) -> RunSpec:
    """`spec`, if it is for `world` ranks. Raises `RequestError` otherwise."""
    layout = spec.layout
    if layout.ranks != world:
        raise RequestError(
            f"{layout.code} is {layout.ranks} ranks and torchrun started {world}; nnodes × nproc-per-node must be {layout.ranks}"
        )
    return spec


def tell(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")  # in one call, so that ranks do not write into each other's lines
    sys.stderr.flush()
