"""Which layouts another framework runs as they are. `engine.export` says for the others what it would run instead."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import RECOMPUTES, Grid
from engine.optimizer import Framework, optimizer_of
from engine.spec import ModelSpec, RequestError, WorkloadSpec, sentence

NAMES: dict[Framework, str] = {"megatron": "Megatron-LM", "torchtitan": "torchtitan", "deepspeed": "DeepSpeed"}
SPLIT_BY: tuple[Framework, ...] = ("megatron", "torchtitan")  # where settings say how many layers each stage has


def had_by(framework: Framework, model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> NDArray[np.bool_]:
    """Which layouts the framework has, at the release that its export names. (n,)

    Raises `RequestError` if it has none of the model's family or not the optimizer.
    """
    if framework not in NAMES:
        raise RequestError(sentence("there is no framework {name!r}; there are {names}", name=framework, names=", ".join(NAMES)))
    lacks = {"megatron": model.family == "xlnet", "torchtitan": model.family != "llama", "deepspeed": False}
    what = model.family if lacks[framework] else ", ".join(parts_lacked(framework, model))
    if what:
        raise RequestError(sentence("{framework} has no {what}", framework=NAMES[framework], what=what))
    if framework not in optimizer_of(workload).elsewhere:
        raise RequestError(sentence("{framework} has no {what}", framework=NAMES[framework], what=workload.optimizer))
    one_stage = grid.pp == 1
    scheduled = one_stage | grid.by_schedule(lambda facts: framework in facts.elsewhere)
    rule = {"megatron": _megatron, "torchtitan": _torchtitan, "deepspeed": _deepspeed}[framework]
    found: NDArray[np.bool_] = scheduled & rule(model, workload, grid)
    return found


def parts_lacked(framework: Framework, model: ModelSpec) -> list[str]:
    """The parts and numbers of the model that the framework's own models do not have, such as "placement=both".

    DeepSpeed trains any model. Torchtitan's are Llamas: no part of one is chosen, but for the base of rotary positions.
    """
    if framework == "deepspeed":
        return []
    if framework == "torchtitan":
        chosen = [name for name, _ in model.chosen_parts] + [*model.sized_parts] + ["vocab_multiple"] * (model.vocab_multiple > 1)
        return [f"{name}={getattr(model, name)}".lower() for name in chosen]
    return [f"{name}={getattr(model.parts, name)}".lower() for name, has in _megatron_has(model).items() if not has]


def _megatron_has(model: ModelSpec) -> dict[str, bool]:
    """Which of the model's parts its arguments can say. Those of BERT and T5 that follow from the script are not asked."""
    parts, of_its_own = model.parts, model.parts.objective != "causal"
    biases = {("all", True), ("qkv", False), ("none", False)}  # of attention and MLP: one argument for both, one for qkv
    return {
        "placement": of_its_own or parts.placement == "pre",
        "qk_norm": parts.qk_norm != "full",  # its norm of queries and keys is of each head
        "parallel": parts.parallel == "none",
        "position": (of_its_own and parts.position != "buckets")
        or parts.position in ("learned", "rotary", "none")
        or parts.encoder,
        "inner": of_its_own or parts.inner in ("gelu", "gelu_tanh", "relu2", "swiglu"),
        "head": of_its_own or parts.head == "norm",
        "output_bias": of_its_own or not parts.output_bias,
        "attention_bias": of_its_own or (parts.attention_bias, parts.mlp_bias) in biases,
        "embedding_norm": of_its_own or not parts.embedding_norm,
        "scaled_embedding": of_its_own or not parts.scaled_embedding,
        "scaled_scores": of_its_own or parts.scaled_scores,
        "scaled_output": of_its_own or not parts.scaled_output,
    }


def _megatron(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Any:
    """Its interleaving wants pp microbatches. T5 has no pipeline. Only Adam is sharded, and with a pipeline only its states.
    Of a dense MLP it does not recompute the activation alone. Of whole layers it recomputes the first, not every n-th.
    """
    fine = (grid.chunks == 1) | (grid.microbatches >= grid.pp)
    if model.parts.encoder:
        fine &= grid.pp == 1
    fine &= (grid.zero < 2) | (grid.pp == 1)
    fine &= np.array(["mlp_act" not in name for name in RECOMPUTES])[grid.recompute] & (grid.recomputed % 2 == 0)
    return fine if workload.optimizer == "adamw" else fine & (grid.zero == 0)


def _torchtitan(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Any:
    """It shards gradients with the optimizer, always over cp. Replicas that do not shard are alone. bf16 with an fp32 copy comes
    with sharding. Groups of hybrid sharding are of dp, and not of dp × cp. tp cuts the sequence, and the key heads evenly. Its
    1F1B wants pp microbatches. Its selective recompute is another, but for that of every n-th layer.
    """
    alone = grid.cp * grid.tp * grid.pp == 1
    if workload.precision == "bf16":
        fine = (grid.zero >= 2) | (alone & (grid.replicas == 1))
    else:
        fine = (grid.zero >= 2) | (grid.replicas == 1) | ((grid.zero == 0) & alone)
    fine &= ((grid.tp == 1) | grid.sequence_parallel) & (model.key_heads % grid.tp == 0)
    fine &= grid.dp % grid.zero_replicas == 0
    one_chunk = grid.by_schedule(lambda facts: facts.elsewhere.get("torchtitan") == "1F1B")
    fine &= (grid.pp == 1) | ~one_chunk | (grid.microbatches >= grid.pp)
    fine &= np.array([name in ("none", "full") for name in RECOMPUTES])[grid.recompute]
    fine &= (grid.recomputed == 0) | (grid.recomputed % 2 == 1)
    return fine & (model.seq % (2 * grid.tp) == 0)


def _deepspeed(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Any:
    """With a pipeline it shards the optimizer's states alone. bf16 keeps an fp32 copy with ZeRO. tp does not cut the sequence,
    and of cp there is no setting. Hybrid sharding is of ZeRO 3 alone.
    """
    fine = (grid.cp == 1) & ((grid.zero < 2) | (grid.pp == 1)) & ~grid.sequence_parallel
    fine &= (grid.zero_replicas == 1) | (grid.zero == 3)
    return fine & ((grid.zero > 0) | (grid.replicas == 1)) if workload.precision == "bf16" else fine
