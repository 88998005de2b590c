"""Random valid specs of every family, schedule and lever. The same seed gives the same specs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from engine.families import FAMILIES
from engine.grid import RECOMPUTES
from engine.ledger.keep import LedgerFolder
from engine.ledger.store import ARCHIVES, LedgerStore
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, AttentionName, LayoutSpec, ModelSpec, Precision, RequestError, RunSpec, WorkloadSpec
from tests.covering import ledgers_of


def random_specs(count: int, seed: int = 0, most: int = 6) -> Iterator[RunSpec]:
    """`count` specs. Each axis has a degree of up to `most`; layers are split evenly. All their ledgers are shipped."""
    random = np.random.default_rng(seed)
    found = 0
    while found < count:
        try:
            spec = _any(random, most)
        except RequestError:
            continue
        if not are_shipped(spec):
            continue
        found += 1
        yield spec


def are_shipped(spec: RunSpec) -> bool:
    """Whether all ledgers of a spec are."""
    shipped = _shipped()
    return all(key in shipped for key in ledgers_of(spec))


@cache
def _shipped() -> LedgerStore:
    return LedgerStore(ARCHIVES, lambda: LedgerFolder(Path("none")))


def _any(random: np.random.Generator, most: int) -> RunSpec:
    def one_of(choices: Any) -> Any:
        return choices[random.integers(len(choices))]

    schedule = one_of(SCHEDULES)
    chunks = SCHEDULE_FACTS[schedule].chunks or int(random.integers(2, 4))
    dp, tp, pp = (int(random.integers(1, most + 1)) for _ in range(3))
    zero = int(random.integers(4)) if dp > 1 else 0
    replicas = one_of([count for count in range(1, dp) if dp % count == 0]) if zero else 1
    heads = tp * int(random.integers(1, 3))
    precision, family = one_of(get_args(Precision)), one_of(sorted({*FAMILIES} - {"t5"}))  # whose ledgers are not shipped
    recompute = one_of(RECOMPUTES)
    some = one_of(({}, {"recompute_layers": int(random.integers(1, 6))}, {"recompute_every": int(random.integers(2, 5))}))
    return RunSpec(
        model=ModelSpec(
            family=family, layers=int(random.integers(2, 25)), hidden=8 * heads, heads=heads, ffn=6 * heads,
            vocab=int(random.integers(257, 400)), seq=max(4, tp * int(random.integers(2, 9))),
        ),
        layout=LayoutSpec(
            dp=dp, tp=tp, pp=pp, schedule=schedule, chunks=chunks, zero=zero, zero_replicas=replicas,
            sequence_parallel=bool(random.integers(2)) and tp > 1, recompute=recompute,
            **(some if recompute == "full" else {}),
        ),
        workload=WorkloadSpec(
            microbatches=int(random.integers(1, 25)), microbatch_size=int(random.integers(1, 4)), precision=precision,
            accumulate=one_of(get_args(Precision)) if precision == "bf16" else "fp32", attention=one_of(get_args(AttentionName)),
            bf16_optimizer=precision == "bf16" and bool(random.integers(2)),
            loss_chunk=one_of((0, int(random.integers(2, 20)))) if family != "xlnet" else 0,  # whose ledgers are not shipped
        ),
    )  # fmt: skip
