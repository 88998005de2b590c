"""Each optimizer takes the steps of its paper, keeps the states of its record, and has the right names in other frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.optim import make_optimizer
from engine.optimizer import OPTIMIZERS, Framework
from engine.predict.memory import memory
from engine.spec import WorkloadSpec
from tests.runs import Runs, small

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, STEPS = 0.05, 4

Update = Callable[[Tensor, list[Tensor]], Tensor]  # (values, gradients of several steps) → values; float64


def adamw(p: Tensor, gradients: list[Tensor]) -> Tensor:
    """Loshchilov & Hutter 2019, algorithm 2."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        p = p - RATE * (m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.01 * p)
    return p


def sgd(p: Tensor, gradients: list[Tensor]) -> Tensor:
    for g in gradients:
        p = p - RATE * g
    return p


def momentum(p: Tensor, gradients: list[Tensor]) -> Tensor:
    m = torch.zeros_like(p)
    for g in gradients:
        m = 0.9 * m + g
        p = p - RATE * m
    return p


def lion(p: Tensor, gradients: list[Tensor]) -> Tensor:
    """Chen et al. 2023, algorithm 2."""
    m = torch.zeros_like(p)
    for g in gradients:
        update = (0.9 * m + 0.1 * g).sign()
        m = 0.99 * m + 0.01 * g
        p = p - RATE * (update + 0.01 * p)
    return p


UPDATES: dict[str, Update] = {"adamw": adamw, "sgd": sgd, "momentum": momentum, "lion": lion}
WORKLOADS = {name: WorkloadSpec(optimizer=name, learning_rate=RATE) for name in OPTIMIZERS}
EACH = {**WORKLOADS, "momentum": WorkloadSpec(optimizer="sgd", momentum=0.9, learning_rate=RATE)}


def drawn(seed: int) -> Tensor:
    return torch.randn(257, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", EACH)
def test_an_optimizers_steps_are_those_of_its_paper(name: str) -> None:
    values, gradients = drawn(0), [drawn(1 + step) for step in range(STEPS)]
    expected = UPDATES[name](values.double(), [g.double() for g in gradients])
    optimizer = make_optimizer(EACH[name], [values])
    for g in gradients:
        values.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(values, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_an_optimizer_keeps_the_states_of_its_record(name: str) -> None:
    workload, sizes = EACH[name], (7, 12)
    record = OPTIMIZERS[workload.optimizer]
    tensors = [torch.zeros(size) for size in sizes]
    for t in tensors:
        t.grad = torch.ones_like(t)
    optimizer = make_optimizer(workload, tensors)
    optimizer.step()
    kept = [s for state in optimizer.state.values() for s in state.values() if isinstance(s, Tensor)]
    assert sum(s.nbytes for s in kept) == sum(
        record.bytes_of_a_parameter(workload) * n + record.bytes_of_a_bucket() for n in sizes
    )


@pytest.mark.parametrize(("bf16_optimizer", "accumulate"), [(False, "bf16"), (True, "bf16"), (True, "fp32")])
@pytest.mark.parametrize("name", EACH)
def test_an_optimizers_step_allocates_nothing(runs: Runs, name: str, bf16_optimizer: bool, accumulate: str) -> None:
    """With so few tokens, the peak is in the optimizer's step where all gradients exist in the type of what is updated too."""
    shape = {"layers": 12, "hidden": 32, "heads": 4, "seq": 4}
    numbers: dict[str, Any] = {"precision": "bf16", "accumulate": accumulate, "microbatches": 1, "microbatch_size": 1}
    numbers["bf16_optimizer"] = bf16_optimizer
    chosen = {"optimizer": EACH[name].optimizer, "momentum": EACH[name].momentum}
    case = small("dp1.tp1.pp1", "interleaved", chunks=2, model=shape, **numbers, **chosen)
    [peak] = memory(case).peaks
    assert (peak.action == "step") == (accumulate != case.workload.update_precision)
    assert runs.result(case).tables["memory_peak"]["bytes"].sum() == peak.total


# Framework → names of an optimizer and its settings there: Megatron-LM's `megatron/training/arguments.py` (Lion since
# 2026), torchtitan's `torchtitan/config/job_config.py`, DeepSpeed's documentation of its JSON and the arguments of its classes.
NAMED: dict[Framework, tuple[str, str]] = {
    "megatron": ("adam lion sgd", "--weight-decay --adam-beta1 --adam-beta2 --lion-beta1 --lion-beta2 --sgd-momentum"),
    "deepspeed": ("AdamW Lion SGD", "betas weight_decay momentum"),
    "torchtitan": ("AdamW", "beta1 beta2 weight_decay"),
}
KIND: dict[Framework, str] = {"megatron": "--optimizer", "deepspeed": "type", "torchtitan": "name"}


@pytest.mark.parametrize("framework", NAMED)
def test_exports_use_each_frameworks_name_of_an_optimizer(framework: Framework) -> None:
    kinds, names = set[str](), set[str]()
    for name, record in OPTIMIZERS.items():
        if ask := record.elsewhere.get(framework):
            settings: dict[str, Any] = dict(ask(WORKLOADS[name]))
            kinds.add(settings.pop(KIND[framework]))
            names |= set(settings.get("params", settings))
    assert (kinds, names) == tuple(set(listed.split()) for listed in NAMED[framework])
