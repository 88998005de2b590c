"""The records of optimizers: the states, the class and its settings, and the names in other frameworks.

Predictions, limits and exports use the record. `engine.optim` makes the optimizer itself. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.spec import BYTES_OF, WorkloadSpec, sentence
from engine.spec.parts import OptimizerName

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01  # of AdamW
LION_BETAS = (0.9, 0.99)  # as in the paper

StateName = Callable[[str], str]  # the name of a bucket → the name of its state, for readers
Settings = dict[str, Any]
Framework = Literal["megatron", "deepspeed", "torchtitan"]


@dataclass(frozen=True)
class Optimizer:
    """The record of an optimizer.

    states         the names of its states; each has one number for each parameter, of `WorkloadSpec.update_precision`
    counts_steps   it keeps one more fp32 number for each bucket
    class_name     a class of `module`
    settings       the arguments of this class, without the learning rate
    elsewhere      the settings in other frameworks: Megatron-LM's flags, DeepSpeed's "optimizer" entry, torchtitan's [optimizer]
    table. A
                   framework that is missing does not have the optimizer

    Predictions assume that a step allocates nothing: it works in place, and may use the gradients as its workspace.
    """

    states: Callable[[WorkloadSpec], tuple[StateName, ...]]
    counts_steps: bool
    class_name: str
    settings: Callable[[WorkloadSpec], Settings]
    elsewhere: Mapping[Framework, Callable[[WorkloadSpec], Settings]]
    module: str = "torch.optim"

    def bytes_of_a_parameter(self, workload: WorkloadSpec) -> int:
        """Bytes of the states of one parameter, without the fp32 copy of a bf16 parameter."""
        return BYTES_OF[workload.update_precision] * len(self.states(workload))

    def bytes_of_a_bucket(self) -> int:
        """Bytes of a bucket that do not depend on its size."""
        return 4 * self.counts_steps


_MOMENTS: tuple[StateName, ...] = (
    lambda bucket: sentence("first moment of {bucket}", bucket=bucket),
    lambda bucket: sentence("second moment of {bucket}", bucket=bucket),
)
_MOMENTUM: tuple[StateName, ...] = (lambda bucket: sentence("momentum of {bucket}", bucket=bucket),)

OPTIMIZERS: dict[OptimizerName, Optimizer] = {
    "adamw": Optimizer(
        states=lambda workload: _MOMENTS,
        counts_steps=True,
        class_name="AdamW",
        settings=lambda workload: {"betas": BETAS, "weight_decay": WEIGHT_DECAY, "fused": True},
        elsewhere={
            "megatron": lambda workload: {
                "--optimizer": "adam",
                "--adam-beta1": BETAS[0],
                "--adam-beta2": BETAS[1],
                "--weight-decay": WEIGHT_DECAY,
            },
            "deepspeed": lambda workload: {"type": "AdamW", "params": {"betas": list(BETAS), "weight_decay": WEIGHT_DECAY}},
            "torchtitan": lambda workload: {
                "name": "AdamW",
                "beta1": BETAS[0],
                "beta2": BETAS[1],
                "weight_decay": WEIGHT_DECAY,
            },
        },
    ),
    "sgd": Optimizer(
        states=lambda workload: _MOMENTUM if workload.momentum else (),
        counts_steps=False,
        class_name="SGD",
        settings=lambda workload: {"momentum": workload.momentum, "fused": True},
        elsewhere={
            "megatron": lambda workload: {
                "--optimizer": "sgd",
                "--sgd-momentum": f"{workload.momentum:g}",
                "--weight-decay": 0,
            },
            "deepspeed": lambda workload: {"type": "SGD", "params": {"momentum": workload.momentum}},
        },
    ),
    "lion": Optimizer(
        states=lambda workload: _MOMENTUM,
        counts_steps=False,
        module="engine.optim.lion",
        class_name="Lion",
        settings=lambda workload: {"betas": LION_BETAS, "weight_decay": WEIGHT_DECAY},
        elsewhere={
            "megatron": lambda workload: {
                "--optimizer": "lion",
                "--lion-beta1": LION_BETAS[0],
                "--lion-beta2": LION_BETAS[1],
                "--weight-decay": WEIGHT_DECAY,
            },
            "deepspeed": lambda workload: {"type": "Lion", "params": {"betas": list(LION_BETAS), "weight_decay": WEIGHT_DECAY}},
        },
    ),
}


def optimizer_of(workload: WorkloadSpec) -> Optimizer:
    return OPTIMIZERS[workload.optimizer]
