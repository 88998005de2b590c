"""The parts that all files of settings have."""

from __future__ import annotations

from collections.abc import Iterator

from engine.optimizer import OPTIMIZERS, Framework, Settings, optimizer_of
from engine.spec import RunSpec


def optimizer_settings(spec: RunSpec, framework: Framework) -> Settings:
    """The framework's settings of the optimizer. If it does not have this optimizer, those of AdamW; see `optimizer_note`."""
    workload = spec.workload
    usual = OPTIMIZERS["adamw"].elsewhere[framework]
    return optimizer_of(workload).elsewhere.get(framework, usual)(workload)


def optimizer_note(spec: RunSpec, framework: Framework, name: str) -> Iterator[str]:
    """A note if the framework does not have the optimizer; otherwise nothing. `name`: the framework's name for readers."""
    record = optimizer_of(spec.workload)
    if framework not in record.elsewhere:
        yield f"{name} has no {record.class_name}; AdamW stands in its place"


def loss_note(spec: RunSpec, elsewhere: str) -> Iterator[str]:
    """A note if the loss is computed in chunks of tokens; otherwise nothing. `elsewhere`: how the framework computes it."""
    tokens = spec.workload.loss_tokens(spec.model, spec.layout.tp)
    if tokens:
        yield f"here logits and loss are computed {tokens} tokens at a time; {elsewhere}"


def global_batch(spec: RunSpec) -> int:
    """Sequences in a step, over all replicas."""
    return spec.workload.microbatch_size * spec.workload.microbatches * spec.layout.dp
