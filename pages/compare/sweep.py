"""The predicted cost of all values of one lever, with everything else unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from engine.ledger.keep import Key
from engine.ledger.store import NotRecordedError
from engine.predict.run import predict
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, WHOLE_LOSS, RequestError, RunSpec
from engine.topology import AXES_AS_WRITTEN

# Lever (a spec's dotted field) → the values to try.
LEVERS: Mapping[str, tuple[Any, ...]] = {
    "layout.schedule": SCHEDULES,
    **{f"layout.{axis}": (1, 2, 4, 8, 16) for axis in AXES_AS_WRITTEN},
    "layout.chunks": (1, 2, 3, 4, 6, 8),
    "layout.zero": (0, 1, 2, 3),
    "layout.zero_replicas": (1, 2, 4, 8),
    "layout.sequence_parallel": (False, True),
    "layout.recompute": ("none", "core_attn", "layernorm", "mlp_act", "layernorm+mlp_act", "full"),
    "layout.recompute_layers": (0, 1, 2, 3, 4, 6, 8, 12, 16),
    "layout.recompute_every": (1, 2, 3, 4),
    "workload.microbatches": (1, 2, 4, 8, 16, 32),
    "workload.microbatch_size": (1, 2, 4, 8, 16),
    "workload.precision": ("fp32", "bf16"),
    "workload.bf16_optimizer": (False, True),
    "workload.attention": ("fused", "written"),
    "workload.loss_chunk": (WHOLE_LOSS, 32, 128, 512, 2048),
    "model.seq": (32, 64, 128, 256, 512, 1024, 2048, 4096),
}


@dataclass(frozen=True)
class Sweep:
    """`memory` has a row for each value and category, of the fullest rank. `figures` has a row for each value.

    `tried`: code in the tables → valid value. `left_out`: each value that is not valid, and the sentence that says why.
    """

    lever: str
    tried: Mapping[str, Any]
    memory: pd.DataFrame  # value, category, bytes
    figures: pd.DataFrame  # value, peak_bytes, peak_rank, wire_bytes_per_rank, bubble
    left_out: tuple[tuple[Any, str], ...]


def sweep(base: RunSpec, lever: str) -> Sweep:
    """The predictions of all values of a lever. Raises `NotRecordedError` with what all of them lack."""
    own = current_value(base, lever)
    values = sorted({*LEVERS[lever], own}) if isinstance(own, int) else LEVERS[lever]
    tried, memory, figures, left_out, missing = {}, [], [], [], list[Key]()
    for value in values:
        try:
            spec = with_value(base, lever, value)
            result = predict(spec)
        except RequestError as error:
            left_out.append((value, error.sentence))
            continue
        except NotRecordedError as error:
            missing += error.keys
            continue
        rank = result.summary["peak_rank"]
        peak = result.tables["memory_peak"]
        mine = peak.loc[peak["rank"] == rank, ["category", "bytes"]]
        tried[str(value)] = value
        memory.append(mine.assign(value=str(value)))
        figures.append({"value": str(value)} | result.summary)
    if missing:
        raise NotRecordedError(missing)
    return Sweep(lever, tried, pd.concat(memory, ignore_index=True), pd.DataFrame(figures), tuple(left_out))


def current_value(spec: RunSpec, lever: str) -> Any:
    """The value of the lever in a spec."""
    part, field = lever.split(".")
    return getattr(getattr(spec, part), field)


def with_value(base: RunSpec, lever: str, value: Any) -> RunSpec:
    """The spec with another value. Raises `RequestError` if that is not valid. Chunks follow the schedule; a split is removed."""
    if value == current_value(base, lever):
        return base
    part, field = lever.split(".")
    request = base.model_dump()
    request[part][field] = value
    if field == "schedule":
        request["layout"]["chunks"] = SCHEDULE_FACTS[value].least_chunks
    if field in ("pp", "schedule", "chunks"):
        request["layout"]["split"] = ()
    return RunSpec.model_validate(request)


def others(base: RunSpec, lever: str) -> dict[Any, RunSpec]:
    """Valid values of a lever other than the current one, and the spec with each."""
    found = {}
    for value in LEVERS[lever]:
        try:
            spec = with_value(base, lever, value)
        except RequestError:  # not valid, so not offered
            continue
        if spec != base:
            found[value] = spec
    return found
