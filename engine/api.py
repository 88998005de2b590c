"""The engine as a library. Import these names from `engine`. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from engine import catalog, devices, store
from engine.devices import DeviceSpec
from engine.launch.draft import folder_for, kept
from engine.launch.dry_run import client
from engine.launch.failure import RunError
from engine.launch.predicted import predicted
from engine.launch.queue.following import Progress, follow, saved_folder
from engine.launch.queue.run_queue import RunQueue, RunState
from engine.launch.recording.client import with_ledgers
from engine.optimizer import Framework
from engine.papers.accounting import AccountingName
from engine.planner import search as planner
from engine.planner.candidates import default_batch
from engine.planner.search import MIXED, Plan
from engine.predict.run import predict as predict_by_formula
from engine.predict.speed.rates import Assumptions
from engine.spec import GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import RunResult

__all__ = [
    "Assumptions",
    "DeviceSpec",
    "GenerateSpec",
    "LayoutSpec",
    "ModelSpec",
    "Plan",
    "RequestError",
    "RunError",
    "RunResult",
    "RunSpec",
    "RunState",
    "WorkloadSpec",
    "dry_run",
    "load",
    "predict",
    "run",
    "run_each",
    "search",
]

StrPath = str | os.PathLike[str]


def run(spec: RunSpec, out: StrPath | None = None, progress: Progress | None = None) -> RunResult:
    """Run `spec` on this machine, one process for each rank, and return the measurement. Blocks until all processes have ended.

    `out`: a folder of runs, created if it does not exist, in which this run is saved as a folder; None saves nothing. `progress`
    is called with each new `RunState`: its phase, finished steps and losses. The last one has the saved folder.

    Raises `RequestError` if this machine cannot run it, and `RunError` with the rank's traceback if a rank failed. Ctrl-C
    (`KeyboardInterrupt`) ends the run. In all cases, no process and no unfinished folder is left.
    """
    (result,) = run_each([spec], out, progress)
    return result


def run_each(
    specs: Iterable[RunSpec], out: StrPath | None = None, progress: Progress | None = None
) -> Generator[RunResult, None, None]:
    """`run` for several specs, one after another. torch is imported once, so each run but the first starts in half a second.

    Yields each result when its run ends. The first error ends the iteration. The process that starts the ranks ends with the
    iteration. To stop before the last spec, close the generator.
    """
    with folder_for(out) as home, RunQueue(home, unwatched_s=None) as queue:
        for spec in specs:
            yield store.load(saved_folder(follow(queue, queue.submit(spec), progress)))


def dry_run(
    spec: RunSpec,
    rank: int | None = None,
    device: str = "none",
    out: StrPath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Let the worker run one step of `spec` on fake tensors, and return what it would have allocated and sent.

    It needs no memory for the model, and the number of ranks is not limited. `rank`: the rank to run; None runs one rank of each
    stage, which represents the others of its stage. `device`: "cpu" or "cuda" uses real tensors on that device, measured by its
    allocator. `out`: as in `run`. `progress(done, of)` is called each time that a rank has ended.

    Raises `RequestError`, and `RunError` if a rank failed. Ctrl-C ends it. No process is left.
    """
    with folder_for(out) as home:
        return store.load(client.dry_run(spec, home, rank, device, progress or (lambda done, of: None)))


def predict(spec: RunSpec, out: StrPath | None = None) -> RunResult:
    """Memory and traffic of every rank and the textbook timeline, by formula: milliseconds, for any number of ranks.

    Tables have the schemas of a measurement's tables, with `source` "formula". `out`: as in `run`; what is saved has every table
    of a run. A model whose ledgers are neither shipped nor recorded on this machine takes some seconds, once. Raises
    `RequestError` if a number is too large for a table.
    """
    if out is None:
        return with_ledgers(lambda: predict_by_formula(spec))
    result = with_ledgers(lambda: predicted(spec))
    kept(result, Path(out))
    return result


def search(
    model: ModelSpec | str,
    ranks: int,
    device: DeviceSpec | str,
    global_batch: int | None = None,
    workload: WorkloadSpec | None = None,
    assumed: Assumptions | None = None,
    accounting: AccountingName = "engine",
    only: Framework | None = None,
    kept_free: int | None = None,
    announce: Callable[[str], None] = lambda what: None,
) -> Plan:
    """Estimate every layout of `model` on `ranks` devices: whether it fits, and the time of a step.

    `layouts` of the returned `Plan` is the table that `python -m engine search --out` writes. It has one row for each layout.
    Those that fit come first, the fastest at the top. `engine.planner.search.search` lists the columns. `plan.spec(row)`
    is the `RunSpec` of a row.

    `model`, `device`: a name of the catalog, a device's JSON file, or a spec of your own.
    `global_batch`: sequences in a step; None means 2 for each device.
    `workload`: precision, optimizer and other settings that are not the layout's; None means bf16 with fp32 gradients, and AdamW.
    `assumed`: the efficiencies of the device. `accounting`: whose formulas for memory.
    `only`: layouts that "megatron", "torchtitan" or "deepspeed" runs as they are; None means all.
    `kept_free`: bytes of a device that tensors must leave; None: for each layout what `engine.planner.reserve` says.
    `announce` hears what is happening if ledgers must be recorded first, which may take minutes.

    Raises `RequestError`, also if no layout is possible.
    """
    shape = catalog.model(model) if isinstance(model, str) else model
    chip = devices.device(device) if isinstance(device, str) else device
    batch = default_batch(ranks) if global_batch is None else global_batch
    return with_ledgers(
        lambda: planner.search(shape, ranks, chip, batch, workload or MIXED, assumed, accounting, only=only, kept_free=kept_free),
        announce,
    )


def load(folder: StrPath) -> RunResult:
    """Read a run or a dry run that was saved as `folder`. Raises `RequestError` if the folder is not a saved run."""
    return store.load(Path(folder))
