"""The levers that are set, in short: what a form's closed part and the list of runs say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.spec import RunSpec
from pages.charts.names import attentions, context_kinds, loss_in_chunks, recompute, zero_stage
from pages.charts.words import Words
from pages.shared.choice import DEFAULTS


def set_levers(value_of: Callable[[str], Any], say: Words) -> list[str]:
    """`value_of`: the value of a spec's dotted field."""
    said = []
    if (cp := value_of("layout.cp")) != DEFAULTS["layout.cp"]:
        said.append(say("{kind} over cp={cp}", kind=context_kinds(say)[value_of("layout.context_parallel")], cp=cp))
    if zero := value_of("layout.zero"):
        said.append(zero_stage(zero, value_of("layout.zero_replicas"), say))
    if (kind := value_of("layout.recompute")) != DEFAULTS["layout.recompute"]:
        which = value_of("layout.recompute_layers"), value_of("layout.recompute_every")
        said.append(say("recompute {what}", what=recompute(kind, *which, say)))
    if (attention := value_of("workload.attention")) != DEFAULTS["workload.attention"]:
        said.append(say("{attention} attention", attention=attentions(say)[attention]))
    said += [value for f in ("workload.precision", "workload.optimizer") if (value := value_of(f)) != DEFAULTS[f]]
    said += [say("optimizer in bf16")] * value_of("workload.bf16_optimizer")
    said += [say("sequence parallel")] * value_of("layout.sequence_parallel")
    if chunk := value_of("workload.loss_chunk"):
        said.append(loss_in_chunks(chunk, say))
    return said


def levers_of(spec: RunSpec, say: Words) -> str:
    """The levers of a run; empty if none is set."""

    def value_of(field: str) -> Any:
        part, name = field.split(".")
        return getattr(getattr(spec, part), name)

    return say(", ").join(set_levers(value_of, say))
