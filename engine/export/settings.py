"""Settings that launch a layout in another framework, or by this engine on a cluster, and the model alone. Comments list what is
not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from engine.export import deepspeed, huggingface, megatron, slurm, torchtitan
from engine.planner import frameworks
from engine.spec import RequestError, RunSpec, refuse_experts, sentence
from engine.spec.numbers import listed
from engine.spec.sentence import brief

Framework = Literal["megatron", "torchtitan", "deepspeed", "slurm", "huggingface"]
FRAMEWORKS: tuple[Framework, ...] = get_args(Framework)

# The name of each framework, and the extension of its file of settings. Slurm starts this engine. Hugging Face's file has the
# model alone.
NAMES: Mapping[Framework, str] = {
    "megatron": frameworks.NAMES["megatron"],
    "torchtitan": frameworks.NAMES["torchtitan"],
    "deepspeed": frameworks.NAMES["deepspeed"],
    "slurm": "Slurm",
    "huggingface": "Hugging Face",
}
ENDINGS: Mapping[Framework, str] = {
    "megatron": "sh",
    "torchtitan": "toml",
    "deepspeed": "json",
    "slurm": "sbatch",
    "huggingface": "json",
}

_WRITERS: dict[Framework, Callable[[RunSpec], str]] = {
    "megatron": megatron.arguments,
    "torchtitan": torchtitan.toml,
    "deepspeed": deepspeed.config,
    "slurm": slurm.script,
    "huggingface": huggingface.config,
}


def settings(spec: RunSpec, to: Framework) -> str:
    """The text of a file of settings: a shell script, TOML or JSON. Raises `RequestError` for another framework."""
    if to not in _WRITERS:
        raise RequestError(
            sentence("there are no settings for {to}; there are for {known}", to=brief(to), known=listed(FRAMEWORKS))
        )
    # DeepSpeed's settings say no experts, and torchtitan's only those of some models.
    if to == "deepspeed" or (to == "torchtitan" and torchtitan.expert_flavor(spec.model) is None):
        refuse_experts(spec.model, sentence("an export to {framework}", framework=NAMES[to]))
    return _WRITERS[to](spec)
