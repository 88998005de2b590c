"""Dry runs for tests, many from one program that imported torch once. Requests and answers are pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.launch.client import environment
from engine.spec import RunSpec


class Asked(NamedTuple):
    spec: RunSpec
    ranks: tuple[int, ...]
    device: Any = "none"


def rehearse(asked: Sequence[Asked]) -> list[dict[int, Any]]:
    """For each request: rank → its `Rehearsal`.

    On real tensors each rank has a process to itself, as in the product: what an earlier one left would be measured too. Of fake
    ones nothing is left but what torch has learnt about operations, so that two processes do all of them, in half the time.
    """
    command = [sys.executable, "-m", "tests.launch.rehearsals"]
    done = subprocess.run(command, input=pickle.dumps(list(asked)), stdout=subprocess.PIPE, env=environment(), check=True)
    return pickle.loads(done.stdout)


def one(spec: RunSpec, rank: int) -> Any:
    from engine.launch.rehearsal import rehearse as alone
    from engine.launch.textbook import textbook

    return alone(spec, rank, "none", textbook(spec))


def main() -> None:
    import gc
    import multiprocessing

    from engine.launch.dry import rehearse_all
    from engine.launch.warm import preload

    asked: list[Asked] = pickle.loads(sys.stdin.buffer.read())
    preload()
    import engine.launch.rehearsal  # noqa: F401

    gc.collect()
    gc.freeze()  # as in the product: a collection in a child would copy what it shares with this process
    real = {i: rehearse_all(a.spec, a.ranks, a.device, most=2) for i, a in enumerate(asked) if a.device != "none"}
    fake = [(i, rank) for i, a in enumerate(asked) if a.device == "none" for rank in a.ranks]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(one, [(asked[i].spec, rank) for i, rank in fake], chunksize=1)
    for (i, rank), answer in zip(fake, found, strict=True):
        real.setdefault(i, {})[rank] = answer
    sys.stdout.buffer.write(pickle.dumps([real[i] for i in range(len(asked))]))


if __name__ == "__main__":
    main()
