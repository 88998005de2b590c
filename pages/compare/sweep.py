"""One lever moved through all its values, everything else held: what each would cost, from the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from engine.predict.run import predict
from engine.schedule import SCHEDULES
from engine.spec import V_SHAPED, RequestError, RunSpec

# Lever (a spec's dotted field) → the values to try.
LEVERS: Mapping[str, tuple[Any, ...]] = {
    "layout.dp": (1, 2, 4, 8, 16),
    "layout.tp": (1, 2, 4, 8, 16),
    "layout.pp": (1, 2, 4, 8, 16),
    "layout.schedule": SCHEDULES,
    "layout.zero": (0, 1, 2, 3),
    "layout.sequence_parallel": (False, True),
    "layout.recompute": ("none", "selective", "full"),
    "workload.microbatches": (1, 2, 4, 8, 16, 32),
    "workload.microbatch_size": (1, 2, 4, 8, 16),
    "workload.precision": ("fp32", "bf16"),
    "model.seq": (32, 64, 128, 256, 512, 1024, 2048, 4096),
}
_LEAST_CHUNKS = {**dict.fromkeys(V_SHAPED, 2), "interleaved": 2}


@dataclass(frozen=True)
class Sweep:
    """`memory` has a row for each value and category, of the fullest rank; `figures` one for each value.

    `left_out`: the values that do not go with the rest, and the sentence that says why.
    """

    lever: str
    memory: pd.DataFrame  # value, category, bytes
    figures: pd.DataFrame  # value, peak_bytes, peak_rank, wire_bytes_per_rank, bubble
    left_out: tuple[tuple[str, str], ...]


def sweep(base: RunSpec, lever: str) -> Sweep:
    part, field = lever.split(".")
    own = getattr(getattr(base, part), field)
    values = sorted({*LEVERS[lever], own}) if isinstance(own, int) else LEVERS[lever]
    memory, figures, left_out = [], [], []
    for value in values:
        try:
            result = predict(having(base, lever, value))
        except RequestError as error:
            left_out.append((shown(value), error.sentence))
            continue
        rank = result.summary["peak_rank"]
        peak = result.tables["memory_peak"]
        mine = peak.loc[peak["rank"] == rank, ["category", "bytes"]]
        memory.append(mine.assign(value=shown(value)))
        figures.append({"value": shown(value), "this": value == own} | result.summary)
    return Sweep(lever, pd.concat(memory, ignore_index=True), pd.DataFrame(figures), tuple(left_out))


def shown(value: Any) -> str:
    """A value as a label: the same in every language."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def having(base: RunSpec, lever: str, value: Any) -> RunSpec:
    """Raises `RequestError` where the value does not go with the rest. Chunks follow the schedule; a split by hand is dropped."""
    part, field = lever.split(".")
    request = base.model_dump()
    request[part][field] = value
    if field == "schedule":
        request["layout"]["chunks"] = _LEAST_CHUNKS.get(value, 1)
    if field in ("pp", "schedule"):
        request["layout"]["split"] = ()
    return RunSpec.model_validate(request)
