"""Memory by the formulas of papers, so that their tables can be reproduced and held beside the engine's own account.

    engine            this engine's own tensors, to the byte: see `engine.predict.bulk.memory`
    korthikanti2022   Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, table 2
    zero2020          Rajbhandari et al. 2020, ZeRO, figure 1 and section 3

The papers' are for mixed precision with Adam, whatever the workload says, and leave out everything temporary; Korthikanti's,
which takes every layer for a GPT's, embeddings and head too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.predict.bulk import memory as bulk
from engine.predict.grid import RECOMPUTES, Grid, Whole
from engine.predict.papers.closed_forms import DIVIDED, LEFT_WHOLE, SCORES, SHARED_FROM, STATE_SIZES
from engine.schedule import SCHEDULES
from engine.spec import ModelSpec, RequestError, WorkloadSpec

AccountingName = Literal["engine", "korthikanti2022", "zero2020"]
ACCOUNTINGS: tuple[AccountingName, ...] = get_args(AccountingName)
Real = NDArray[np.float64]
Fullest = tuple[Whole, Whole]  # bytes of the fullest rank of each layout, and which stage it is on: (n,) each
_SELECTIVE, _FULL = RECOMPUTES.index("selective"), RECOMPUTES.index("full")


def accounting(name: str) -> Callable[[ModelSpec, WorkloadSpec, Grid], Fullest]:
    """The account of that name. Raises `RequestError` that lists the names."""
    if name not in ACCOUNTINGS:
        raise RequestError(f"there is no accounting {name!r}; there are {', '.join(ACCOUNTINGS)}")
    accounts = {"engine": bulk.fullest, "korthikanti2022": korthikanti2022, "zero2020": zero2020}
    return accounts[name]


def passes_held(grid: Grid) -> Whole:
    """Passes of one microbatch through one chunk that stage 0 holds at once, by schedule: `in_flight_bound`, in bulk. (n,)"""
    pp, m, chunks = grid.pp, grid.microbatches, grid.chunks
    each = m // np.maximum(1, m // pp)  # microbatches in a round of the interleaved schedule
    warm = np.minimum((chunks - 1) * each + 2 * (pp - 1), m * chunks)
    by_schedule: dict[str, Any] = {
        "naive": np.ones_like(pp),
        "gpipe": m,
        "1f1b": np.minimum(pp, m),
        "interleaved": np.minimum(warm + 1, m * chunks),
        "zb-h1": np.minimum(pp, m),
        "zb-v": np.minimum(2 * pp, 2 * m),
        "dualpipe-v": 2 * pp + 1,
    }
    return np.select([grid.schedule == i for i in range(len(SCHEDULES))], [by_schedule[name] for name in SCHEDULES])


# ------------------------------------------------------------------------------------------------------ korthikanti2022


def korthikanti2022(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Fullest:
    """States and activations of stage 0, which under 1F1B is the fullest.

    18 bytes a parameter: 2 of weights, 4 of gradients and 12 of the optimizer. The paper shards nothing over dp; where a
    layout does, that part is divided by dp.
    """
    sharded = _shared(STATE_SIZES | {"gradients": 4}, grid.dp, grid.zero)
    parameters = 12 * model.layers * model.hidden**2 / (grid.pp * grid.tp)
    held = passes_held(grid) / grid.chunks / grid.pp * model.layers  # layers' worth of activations
    total = sharded * parameters + held * activations_of_a_layer(model, grid)
    return np.ceil(total).astype(np.int64), np.zeros(len(grid), np.int64)


def activations_of_a_layer(model: ModelSpec, grid: Grid) -> Real:
    """Bytes that one layer keeps of one microbatch in 16 bits, table 2. (n,)

    s·b·h · (10 + 24/t + 5·a·s/(h·t)): sequence parallelism divides the 10 by t, selective recompute drops the last term, and
    full recompute keeps the layer's input alone, 2·s·b·h.
    """
    s, h, t = model.seq, model.hidden, grid.tp
    whole = LEFT_WHOLE / np.where(grid.sequence_parallel, t, 1.0)
    scores = np.where(grid.recompute == _SELECTIVE, 0.0, SCORES * model.heads * s / (h * t))
    return np.where(grid.recompute == _FULL, 2.0, whole + DIVIDED / t + scores) * (s * h * grid.microbatch_size)


# ------------------------------------------------------------------------------------------------------------- zero2020


def zero_states(parameters: Any, dp: Any, zero: Any) -> Any:
    """Bytes of Ψ parameters' states on one of dp ranks, figure 1: 2Ψ of weights, 2Ψ of gradients, 12Ψ of the optimizer.

    ZeRO 1 divides the optimizer's by dp, 2 the gradients' too, 3 the weights' too. Numbers or arrays.
    """
    return _shared(STATE_SIZES, dp, zero) * parameters


def _shared(sizes: Mapping[str, int], dp: Any, zero: Any) -> Any:
    """Bytes a parameter on one of dp ranks, of each category's size and by what ZeRO shares."""
    return sum(np.where(zero >= SHARED_FROM[category], size / dp, float(size)) for category, size in sizes.items())


def zero2020(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Fullest:
    """States as in figure 1; activations as in section 3.2, footnote 3: about 12 numbers of 16 bits a layer, token and unit of
    the hidden width, or the layer's input alone where it is computed again.
    """
    states = zero_states(model.parameters() / (grid.tp * grid.pp), grid.dp, grid.zero)
    numbers = np.where(grid.recompute == _FULL, 1, 12)
    held = passes_held(grid) / grid.chunks / grid.pp * model.layers
    activations = 2 * numbers * model.hidden * grid.microbatch_size * model.seq * held
    return np.ceil(states + activations).astype(np.int64), np.zeros(len(grid), np.int64)
