"""Many dry runs for tests from one program that imports torch once. Requests and answers are pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.launch.host.client import environment
from engine.spec import RunSpec


class DryRunRequest(NamedTuple):
    spec: RunSpec
    ranks: tuple[int, ...]
    device: Any = "none"


def dry_run_all(requests: Sequence[DryRunRequest]) -> list[dict[int, Any]]:
    """For each request: rank → its `DryRank`.

    With real tensors each rank has its own process, as in the product, because memory left by an earlier rank would be measured.
    Fake tensors leave only torch's caches of operations, so two processes run all ranks, in half the time.
    """
    command = [sys.executable, "-m", "tests.launch.dry_runs"]
    done = subprocess.run(command, input=pickle.dumps(list(requests)), stdout=subprocess.PIPE, env=environment(), check=True)
    return pickle.loads(done.stdout)


def one(spec: RunSpec, rank: int) -> Any:
    from engine.launch.dry_run.rank import dry_run_rank
    from engine.launch.textbook import textbook

    return dry_run_rank(spec, rank, "none", textbook(spec))


def main() -> None:
    import gc
    import multiprocessing

    from engine.launch.dry_run.program import dry_run_ranks
    from engine.launch.warm import preload

    requests: list[DryRunRequest] = pickle.loads(sys.stdin.buffer.read())
    preload()
    import engine.launch.dry_run.rank  # noqa: F401

    gc.collect()
    gc.freeze()  # as in the product: garbage collection in a child would copy memory shared with this process
    real = {i: dry_run_ranks(a.spec, a.ranks, a.device, most=2) for i, a in enumerate(requests) if a.device != "none"}
    fake = [(i, rank) for i, a in enumerate(requests) if a.device == "none" for rank in a.ranks]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(one, [(requests[i].spec, rank) for i, rank in fake], chunksize=1)
    for (i, rank), answer in zip(fake, found, strict=True):
        real.setdefault(i, {})[rank] = answer
    sys.stdout.buffer.write(pickle.dumps([real[i] for i in range(len(requests))]))


if __name__ == "__main__":
    main()
