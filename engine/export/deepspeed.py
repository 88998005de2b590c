"""DeepSpeed: its configuration in JSON.

Names and rules are those of release 0.19.8 (October 2026): `deepspeed/runtime/config.py`, `deepspeed/runtime/engine.py` and
`deepspeed/runtime/pipe/engine.py`. Tests hold exports to the rules, and a nightly test asks DeepSpeed itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine.export.common import (
    global_batch,
    learning_rate,
    learning_rate_note,
    loss_note,
    optimizer_note,
    optimizer_settings,
    weights_note,
)
from engine.spec import RunSpec

VERSION = "0.19.8"
_SHARDS_PARAMETERS = 3  # the ZeRO stage that does
_WITH_PIPELINE = 1  # the highest ZeRO stage that it supports with a pipeline


def config(spec: RunSpec) -> str:
    """The configuration as JSON. JSON has no comments, so they are in an entry that DeepSpeed ignores."""
    layout, workload = spec.layout, spec.workload
    found: dict[str, Any] = {
        "_comments": [
            f"DeepSpeed {VERSION}: {layout.ranks} ranks as {layout.code}. The model is yours: this file sizes only its training.",
            *(f"Not the same: {text}." for text in _differences(spec)),
            *learning_rate_note(spec),
        ],
        # DeepSpeed requires: train_batch_size = micro batch × accumulation steps × dp. But it counts the ranks of AutoTP as dp.
        **({} if _is_cut_by_autotp(spec) else {"train_batch_size": global_batch(spec)}),
        "train_micro_batch_size_per_gpu": workload.microbatch_size,
        "gradient_accumulation_steps": workload.microbatches,
        "optimizer": _optimizer(spec),
        "gradient_clipping": 0.0,
        "bf16": {"enabled": workload.precision == "bf16"} | _bf16_optimizer(spec),
        "data_types": {"grad_accum_dtype": workload.accumulate if workload.precision == "bf16" else "fp32"},
        "zero_optimization": {"stage": _stage(spec)} | ({"mics_shard_size": layout.shards} if _is_mics(spec) else {}),
    }
    if workload.optimizer == "sgd" and _stage(spec):
        found["zero_allow_untested_optimizer"] = True
    if _is_cut_by_autotp(spec):
        found["tensor_parallel"] = {"autotp_size": layout.tp}
    if layout.recompute != "none":
        found["activation_checkpointing"] = {
            "partition_activations": layout.sequence_parallel,
            "number_checkpoints": _checkpoints(spec),
        }
    return json.dumps(found, indent=2) + "\n"


def _checkpoints(spec: RunSpec) -> int:
    """On the first stage."""
    layout, layers = spec.layout, spec.model.layers
    if layout.recompute != "full":
        return layout.stage_layers(layers)[0]
    each = zip(layout.placement, layout.recomputed_whole(layers, spec.model.encoder_layers), strict=True)
    return sum(sum(again) for stage, again in each if stage == 0)


def _differences(spec: RunSpec) -> Iterator[str]:
    layout = spec.layout
    stages = ",".join(map(str, layout.stage_layers(spec.model.layers)))
    if layout.pp > 1:
        order = layout.facts.elsewhere.get("deepspeed", "1F1B")
        module = "DualPipeVModule" if order == "DualPipeV" else "PipelineModule"
        yield f"stages are made in code: {module}(num_stages={layout.pp}), {stages} layers each; its order is {order}"
    if layout.pp > 1 and "deepspeed" not in layout.facts.elsewhere:
        yield f"DeepSpeed has no {layout.schedule} schedule; 1F1B runs instead"
    if layout.pp > 1 and layout.tp > 1:
        yield (
            f"with a pipeline DeepSpeed has no tensor parallelism of its own; tp={layout.tp} comes from the model, through "
            f"PipeModelDataParallelTopology(num_pp={layout.pp}, num_mp={layout.tp}, num_dp={layout.dp})"
        )
    elif layout.tp > 1:
        yield f"tp={layout.tp} is DeepSpeed's AutoTP, which cuts the linear layers of Hugging Face models"
    if layout.cp > 1:
        yield f"cp={layout.cp} by {layout.context_parallel} is no setting of DeepSpeed; its own, Ulysses, is made in code"
    if layout.sequence_parallel:
        yield "its sequence parallelism is another (Ulysses); this one, of tensor parallelism, it has not"
    if layout.pp > 1 and layout.zero > _WITH_PIPELINE:
        yield f"a pipeline goes with ZeRO up to {_WITH_PIPELINE}, so ZeRO {layout.zero} becomes {_WITH_PIPELINE}"
    yield from _hybrid_differences(spec)
    if layout.recompute != "none":
        what: str = "each layer" if layout.recompute == "full" else layout.recompute
        if layout.recompute_layers:
            what = f"each of the first {layout.recompute_layers} layers of a stage"
        elif layout.recompute_every > 1:
            what = f"every n-th layer of a stage, n = {layout.recompute_every}"
        yield f"recompute is called in the model: deepspeed.checkpointing.checkpoint around {what}"
    how = "scaled_dot_product_attention" if spec.attention == "fused" else "the scores written out"
    yield f"attention is the model's: {how}, here"
    yield from _precision_differences(spec)
    yield from optimizer_note(spec, "deepspeed", "DeepSpeed")
    yield from weights_note(spec)
    yield from loss_note(spec, "in your model a fused linear cross-entropy does the same, such as Liger Kernel's")
    yield "steps, sequence length and data are the training script's"


def _hybrid_differences(spec: RunSpec) -> Iterator[str]:
    layout = spec.layout
    if layout.zero_replicas > 1 and not _is_mics(spec):
        yield f"its hybrid sharding, MiCS, is of ZeRO 3 alone, so all ranks shard, and not {layout.zero_replicas} groups of them"
    elif layout.zero_replicas > 1:
        yield "for mics_shard_size the model is made inside deepspeed.zero.MiCS_Init"


def _precision_differences(spec: RunSpec) -> Iterator[str]:
    workload = spec.workload
    if workload.precision == "bf16" and spec.layout.zero == 0 and spec.layout.dp > 1:
        yield "its bf16 comes with ZeRO alone, so ZeRO 0 becomes 1"
    if workload.bf16_optimizer and workload.accumulate == "fp32":
        yield "with bf16 masters it keeps gradients in bf16 too"


def _bf16_optimizer(spec: RunSpec) -> dict[str, bool]:
    """Only its ZeRO optimizers have these settings."""
    if not spec.workload.bf16_optimizer or not _stage(spec):
        return {}
    return {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def _is_cut_by_autotp(spec: RunSpec) -> bool:
    """Whether AutoTP cuts the layers. With a pipeline, the model itself must."""
    return spec.layout.tp > 1 and spec.layout.pp == 1


def _stage(spec: RunSpec) -> int:
    """The ZeRO stage that DeepSpeed runs."""
    wanted = max(spec.layout.zero, 1 if spec.workload.precision == "bf16" else 0)  # see `_differences`
    return min(wanted, _WITH_PIPELINE) if spec.layout.pp > 1 else wanted


def _is_mics(spec: RunSpec) -> bool:
    """Whether it is DeepSpeed's MiCS, whose groups shard all. Its hpZ is another: a second copy of parameters within a node."""
    return spec.layout.zero_replicas > 1 and _stage(spec) == _SHARDS_PARAMETERS


def _optimizer(spec: RunSpec) -> dict[str, Any]:
    found = optimizer_settings(spec, "deepspeed")
    return {**found, "params": {"lr": learning_rate(spec), **found["params"]}}
