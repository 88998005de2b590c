"""The parts that all files of settings have."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from engine.optimizer import OPTIMIZERS, Framework, Settings, optimizer_of
from engine.spec import RunSpec, WorkloadSpec

# Learning rates of GPT-3's sizes: parameters up to which one holds (Brown et al. 2020, table 2.1).
_LEARNING_RATES = {125e6: 6e-4, 350e6: 3e-4, 760e6: 2.5e-4, 1.3e9: 2e-4, 2.7e9: 1.6e-4, 6.7e9: 1.2e-4, 13e9: 1e-4}
_LARGEST, _SMALL = 0.6e-4, 50e6
_NODE = 8  # devices of a node, at most


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


def weights_note(spec: RunSpec) -> Iterator[str]:
    """A note if the run starts from trained weights; otherwise nothing."""
    if spec.workload.weights == "trained":
        yield "weights are drawn at random there; here they are the trained ones that come with Shardscope"


def loss_note(spec: RunSpec, elsewhere: str) -> Iterator[str]:
    """A note if the loss is computed in chunks of tokens; otherwise nothing. `elsewhere`: how the framework computes it."""
    tokens = spec.workload.loss_tokens(spec.model, spec.layout.tp, spec.layout.cp)
    if tokens:
        yield f"here logits and loss are computed {tokens} tokens at a time; {elsewhere}"


def global_batch(spec: RunSpec) -> int:
    """Sequences in a step, over all replicas."""
    return spec.workload.microbatch_size * spec.workload.microbatches * spec.layout.dp


def learning_rate(spec: RunSpec) -> float:
    """The learning rate of the spec. For its default, one that suits the model's size; small models keep the default."""
    parameters, given = spec.model.parameters(), spec.workload.learning_rate
    if given != WorkloadSpec().learning_rate or parameters < _SMALL:
        return given
    # Sizes are nominal: GPT-3's 175B has 174.6e9 parameters, Llama 3's 8B has 8.03e9. So each holds up to the middle to the next.
    sizes = [*_LEARNING_RATES, 175e9]
    held = zip(sizes, sizes[1:], _LEARNING_RATES.values(), strict=False)
    return next((rate for size, larger, rate in held if parameters < (size * larger) ** 0.5), _LARGEST)


def learning_rate_note(spec: RunSpec) -> Iterator[str]:
    """A remark if `learning_rate` is not the spec's; otherwise nothing."""
    if (rate := learning_rate(spec)) != spec.workload.learning_rate:
        given = spec.workload.learning_rate
        yield f"The learning rate is {rate:g}, that of a GPT-3 of this size (Brown et al. 2020, table 2.1), not {given:g}."


def node_shape(ranks: int) -> tuple[int, int]:
    """(nodes, ranks of a node): nodes of 8 devices if they divide the ranks, otherwise the largest that do."""
    here = ranks if ranks <= _NODE else gcd(ranks, _NODE)
    return ranks // here, here
