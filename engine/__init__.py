"""Shardscope's engine: shard a Transformer over ranks, run it, predict it, and search for the best layout.

    from engine import LayoutSpec, RunSpec, WorkloadSpec, catalog, predict, run

    spec = RunSpec(
        model=catalog.model("gpt-tiny"),
        layout=LayoutSpec(dp=2, tp=2, pp=2, schedule="1f1b"),
        workload=WorkloadSpec(microbatches=4, steps=5),
    )
    measured, predicted = run(spec), predict(spec)
    print(measured.tables["memory_peak"])

- `run(spec)` starts one process for each rank on this machine; `run_each(specs)` does so for several specs.
- `predict(spec)` predicts by formula, in milliseconds, for any number of ranks.
- `dry_run(spec)` lets the worker run a step on fake tensors, for any number of ranks.
- `search(model, ranks, device)` estimates every layout.
- `load(folder)` reads a saved run.

`run`, `predict`, `dry_run` and `load` return a `RunResult`, `run_each` one for each spec. Their `tables` are described in
`engine.tables` and are the same for all. A mistake in a request raises `RequestError`; a run that fails raises `RunError`.

Importing this package loads nothing else: each name is loaded from `engine.api` when it is first used. A script that calls `run`
needs no `if __name__ == "__main__"`: ranks are forked from another process and do not import the script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from engine.api import (
        Assumptions,
        DeviceSpec,
        GenerateSpec,
        LayoutSpec,
        ModelSpec,
        Plan,
        RequestError,
        RunError,
        RunResult,
        RunSpec,
        RunState,
        WorkloadSpec,
        dry_run,
        load,
        predict,
        run,
        run_each,
        search,
    )
else:
    # The function `predict` has the name of a subpackage. Python sets the attribute `engine.predict` once, when it first loads
    # the subpackage. So it is loaded now, and the attribute is removed: from then on `engine.predict` is the function. Modules of
    # the subpackage are imported by `from engine.predict… import …`.
    from engine import predict

    del predict

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from engine import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
