"""One record an optimizer: what it keeps between steps, its class and settings, and its names in other frameworks.

Predictions, limits and settings files ask the record; `engine.optim` makes the optimizer itself. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.spec import WorkloadSpec, sentence
from engine.spec.parts import OptimizerName

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01  # of AdamW
LION_BETAS = (0.9, 0.99)  # as in the paper

StateName = Callable[[str], str]  # the name of a bucket → what its state is called in an explanation
Settings = dict[str, Any]
Framework = Literal["megatron", "deepspeed", "torchtitan"]


@dataclass(frozen=True)
class Optimizer:
    """`states`: of each parameter one fp32 number of each. `counts_steps`: one more fp32 number a bucket.

    `class_name` names a class of `module`, `settings` are its arguments but for the learning rate. `elsewhere` says the same to
    other frameworks: Megatron-LM's flags, DeepSpeed's "optimizer" entry, torchtitan's [optimizer] table. One that is missing has
    no such optimizer.

    Predictions take it that a step allocates nothing: it works in place, in the gradients too if it needs to.
    """

    states: Callable[[WorkloadSpec], tuple[StateName, ...]]
    counts_steps: bool
    class_name: str
    settings: Callable[[WorkloadSpec], Settings]
    elsewhere: Mapping[Framework, Callable[[WorkloadSpec], Settings]]
    module: str = "torch.optim"

    def bytes_of_a_parameter(self, workload: WorkloadSpec) -> int:
        """Bytes of the states that one parameter has; the fp32 copy of a bf16 parameter is not one of them."""
        return 4 * len(self.states(workload))

    def bytes_of_a_bucket(self) -> int:
        """Bytes that a bucket has besides, however large it is."""
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
