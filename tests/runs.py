"""Real runs for tests: one warm host for the whole session. Every saved run is checked against the contract."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self, cast

from engine.launch.queue.run_queue import RunQueue, RunState
from engine.spec import LayoutSpec, ModelSpec, RunSpec, ScheduleName, WorkloadSpec
from engine.store import load
from engine.tables import CATEGORIES, KV_CACHE, RunResult
from tests.check_run import findings
from tests.patience import PATIENCE_S

# One chunk a stage, and backward in one piece.
PLAIN: tuple[ScheduleName, ...] = ("naive", "gpipe", "1f1b")
SMALL = ModelSpec(layers=5, hidden=32, heads=4, vocab=256, seq=16)


def small(
    code: str = "dp1.tp1.pp1",
    schedule: ScheduleName = "1f1b",
    *,
    split: tuple[int, ...] = (),
    chunks: int = 1,
    parity: bool = False,
    model: dict[str, Any] | None = None,
    **workload: Any,
) -> RunSpec:
    """A run that takes about a second: two steps of a five-layer model. `model` and `workload` change fields of those."""
    return RunSpec(
        model=SMALL.model_copy(update=model or {}),
        layout=LayoutSpec(**LayoutSpec.degrees(code), schedule=schedule, split=split, chunks=chunks),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 1} | workload),
        parity=parity,
    )


class Runs:
    """Runs specs one at a time. A context manager: leaving it ends the host and every rank."""

    def __init__(self, home: Path) -> None:
        self._queue = RunQueue(home, unwatched_s=None)
        self._results: dict[RunSpec, RunResult] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.close()

    def result(self, spec: RunSpec) -> RunResult:
        """The saved result of a run of `spec`. A spec runs only once. Do not change the tables."""
        if spec not in self._results:
            self._results[spec] = self.fresh(spec)
        return self._results[spec]

    def fresh(self, spec: RunSpec) -> RunResult:
        """The result of a new run."""
        state = self.ended(spec)
        assert state.phase == "done", f"{spec.layout.code}: {state.message}\n{state.traceback}"
        assert state.folder is not None
        broken = list(findings(state.folder))
        result = load(state.folder)
        assert result.spec == spec
        broken += _broken(result)
        assert not broken, "\n".join(broken)
        return result

    def ended(self, spec: RunSpec) -> RunState:
        """Run `spec`, and return its last state, even if it failed."""
        id = self._queue.submit(spec)
        state: RunState | None = None
        while state is None or not state.finished:
            before = state
            state = self._queue.wait(id, before, timeout=PATIENCE_S)
            assert state is not before, f"nothing heard of {spec.layout.code} for {PATIENCE_S} s"
            assert state is not None
        return state


def _broken(result: RunResult) -> list[str]:
    """Check what every run promises beyond the contract of tables. A sentence for each broken promise."""
    ranks = list(range(result.spec.layout.ranks))
    of_each_rank = ("memory_peak", "memory_curve", "process", "spans")
    broken = [f"{name} has not every rank" for name in of_each_rank if sorted(result.tables[name]["rank"].unique()) != ranks]
    generate = result.spec.generate
    steps = generate.new_tokens if generate.skip_training else result.spec.workload.steps
    categories = (*CATEGORIES, KV_CACHE) if generate.skip_training else CATEGORIES
    if list(result.tables["steps"]["step"]) != list(range(1, steps + 1)):
        broken.append("steps has not every step once")
    peak = result.tables["memory_peak"]
    if list(zip(peak["rank"], peak["category"], strict=True)) != [(r, c) for r in ranks for c in categories]:
        broken.append("memory_peak has not every category of every rank once")
    totals = peak.groupby("rank")["bytes"].sum()
    for entry in result.summary["allocator"]:
        rank, unaccounted, workspace = entry["rank"], entry["unaccounted_bytes"], entry["workspace_bytes"]
        if unaccounted != 0:
            broken.append(f"rank {rank}: {unaccounted} bytes live that no event explains")
        if totals[rank] + workspace != entry["peak_bytes"]:
            broken.append(f"rank {rank}: categories {totals[rank]} + workspace {workspace}, allocator {entry['peak_bytes']}")
    return broken


def rows_of(result: RunResult, table: str) -> list[SimpleNamespace]:
    """The rows of a table, with a field for each column."""
    return [SimpleNamespace(**cast(dict[str, Any], row)) for row in result.tables[table].to_dict("records")]


def parameters_held(model: ModelSpec, tp: int, layers: int, first: bool, last: bool) -> int:
    """Parameters of one rank, from the model's definition: its slice of `layers` layers and of the ends.

    Norms, position embedding and the biases that are added after a sum are whole on every tp rank.
    """
    h, f = model.hidden, model.ffn_width
    sliced = 3 * h * h + 3 * h + h * h + h * f + f + f * h  # qkv with bias, attention's output, MLP in with bias, MLP out
    whole = 2 * h + h + 2 * h + h  # norm, bias of the attention's output, norm, bias of the MLP's output
    table = -(-model.vocab // tp) * h  # rounded up: the vocabulary is padded to a multiple of tp
    ends = (table if first or last else 0) + (model.seq * h if first else 0) + (2 * h if last else 0)
    return layers * (sliced // tp + whole) + ends


def buckets_held(layers: int, first: bool, last: bool) -> int:
    """The token table at both ends, the positions at the first, each layer, and the last norm at the last."""
    return (first or last) + first + layers + last
