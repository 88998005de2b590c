"""One rank of a run on more machines than one, started by torchrun, which does so on each of them:

    torchrun --nnodes 2 --nproc-per-node 4 … -m engine.launch.cluster --spec run.json --out DIR

The worker is that of a local run; this is its launcher. Where it is and whom to meet it learns from environment variables,
which is torchrun's interface, and the only place where the engine reads any. Rank 0 puts the run's folder into DIR, on its
machine. The exit status is 0 done, 1 a rank failed, 2 the request is wrong; torchrun makes both of the latter a 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from engine.launch import verdict
from engine.launch.draft import Draft
from engine.launch.ranks import account
from engine.launch.request import read_spec
from engine.launch.warm import preload
from engine.spec import RequestError, RunSpec
from engine.worker import work

DONE, FAILED, WRONG = 0, 1, 2

# At the time limit a rank that waits for others lets those speak first: torchrun ends all when one ends.
_GRACE_S = 1.0


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


class ClusterRank:
    """This process: one rank, and its link to the terminal of its machine."""

    def __init__(self, spec: RunSpec, place: Place, home: Path) -> None:
        self._spec, self._place = spec, place
        self._draft = Draft.new(home)
        self._doing, self._since = "", time.monotonic()

    def run(self) -> int:
        """Do the work. Returns the exit status."""
        place, spec = self._place, self._spec
        limit = self._alarm(spec.workload.time_limit, last=False)
        out = self._draft.folder if place.rank == 0 else None
        try:
            work(spec, place.rank, self._connect(), self, out, (place.local_rank, place.local_world))
            if place.rank == 0:
                _say(f"saved {self._draft.keep(spec)}")
            return DONE
        except Exception as error:  # noqa: BLE001  this rank's failure, whatever it is
            return self._explain(error)
        finally:
            limit.cancel()
            if place.rank == 0:
                self._draft.discard()

    def _connect(self) -> dist.Store:
        patience = timedelta(seconds=self._spec.workload.time_limit)
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        return store

    def _explain(self, error: Exception) -> int:
        raised = account(error)
        why = verdict.of_deaths(self._spec.layout, [verdict.Death(self._place.rank, self._doing, FAILED, raised)])
        if why.wrong:
            _say(why.sentence)
            return WRONG
        _say(why.sentence if raised.secondary else f"{why.sentence}\n{why.traceback}")
        return FAILED

    # ---------------------------------------------------------------------------------------------- the worker's link

    def at(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()

    def report(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            _say(f"ready: {event['why']}")
        elif kind == "step":
            _say(f"step {event['step']} of {self._spec.workload.steps}, loss {event['loss']:.4f}")
        elif kind == "phase":
            _say(event["phase"])
            if event["phase"] == "saving":
                signal.signal(signal.SIGTERM, self._leave)

    @staticmethod
    def _leave(number: int, frame: FrameType | None) -> None:
        """torchrun ends this rank while it saves: leave by way of `run`'s clean-up, and no half-written folder behind.

        Before there is something to clean up, the default serves better: it works in the middle of a collective too.
        """
        sys.exit(128 + number)

    # ------------------------------------------------------------------------------------------------- the time limit

    def _alarm(self, seconds: float, last: bool) -> threading.Timer:
        alarm = threading.Timer(seconds, self._time_is_up, (last,))
        alarm.daemon = True
        alarm.start()
        return alarm

    def _time_is_up(self, last: bool) -> None:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        layout, rank, limit = self._spec.layout, self._place.rank, self._spec.workload.time_limit
        if not verdict.is_waiting(stack):
            why = verdict.of_time_limit(layout, limit, [verdict.Halt(rank, self._doing, time.monotonic() - self._since, stack)])
            _say(f"{why.sentence}\n{why.traceback}")
        elif last:
            _say(f"the run reached its time limit of {limit:g} s: {verdict.named(layout, rank)} was waiting for other ranks")
        else:
            self._alarm(_GRACE_S, last=True)
            return
        if rank == 0:
            self._draft.discard()
        os._exit(FAILED)


def main(arguments: Sequence[str]) -> int:
    """Be one rank. Returns the exit status."""
    about = "Be one rank of a run on several machines."
    parser = argparse.ArgumentParser(prog="torchrun … -m engine.launch.cluster", description=about)
    parser.add_argument("--spec", required=True, metavar="FILE", help="what to run, as JSON")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where rank 0 puts the run's folder")
    given = parser.parse_args(arguments)
    try:
        place = Place.read(os.environ)
        spec = fitting(read_spec(given.spec), place.world)
    except RequestError as error:
        return _refuse(error)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's library otherwise prints two lines for every profile
    preload()  # before the clock of the run's time limit starts
    return ClusterRank(spec, place, given.out).run()


def _refuse(error: RequestError) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Local rank 0 has the same to say. torchrun ends all when the first ends, so that one has to be the first.
        time.sleep(_GRACE_S)
    else:
        _say(str(error))
    return WRONG


def fitting(spec: RunSpec, world: int) -> RunSpec:
    """`spec`, if it is for `world` ranks. Raises `RequestError` otherwise."""
    layout = spec.layout
    if layout.ranks != world:
        raise RequestError(
            f"{layout.code} is {layout.ranks} ranks and torchrun started {world}; nnodes × nproc-per-node must be {layout.ranks}"
        )
    return spec


def _say(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")  # in one call, so that ranks do not write into each other's lines
    sys.stderr.flush()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # at once: after a failure, torch may wait for ever for connections that are gone
