"""What every settings file says."""

from __future__ import annotations

from collections.abc import Iterator

from engine.optimizer import OPTIMIZERS, Framework, Settings, optimizer_of
from engine.spec import RunSpec


def optimizer_settings(spec: RunSpec, framework: Framework) -> Settings:
    """The optimizer as the framework is asked for it; AdamW's where it has no such one, of which `optimizer_note` tells."""
    workload = spec.workload
    usual = OPTIMIZERS["adamw"].elsewhere[framework]
    return optimizer_of(workload).elsewhere.get(framework, usual)(workload)


def optimizer_note(spec: RunSpec, framework: Framework, name: str) -> Iterator[str]:
    """At most one. `name`: what the framework is called."""
    record = optimizer_of(spec.workload)
    if framework not in record.elsewhere:
        yield f"{name} has no {record.class_name}; AdamW stands in its place"


def global_batch(spec: RunSpec) -> int:
    """Sequences in a step, over all replicas."""
    return spec.workload.microbatch_size * spec.workload.microbatches * spec.layout.dp
