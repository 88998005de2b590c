"""DeepSpeed: its configuration in JSON. Names as in its `deepspeed/runtime/constants.py` and `config.py` of 2025."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine.export.common import global_batch, loss_note, optimizer_note, optimizer_settings
from engine.spec import RunSpec

_WITH_PIPELINE, _WITH_TP = 1, 2  # the highest ZeRO stages that it supports with a pipeline, and with its tensor parallelism


def config(spec: RunSpec) -> str:
    """The configuration as JSON. JSON has no comments, so they are in an entry that DeepSpeed ignores."""
    layout, workload = spec.layout, spec.workload
    found: dict[str, Any] = {
        "_comments": [
            f"DeepSpeed: {layout.ranks} ranks as {layout.code}. The model is yours: this file sizes only how it is trained.",
            *(f"Not the same: {text}." for text in _differences(spec)),
        ],
        # DeepSpeed requires: train_batch_size = micro batch × accumulation steps × dp.
        "train_batch_size": global_batch(spec),
        "train_micro_batch_size_per_gpu": workload.microbatch_size,
        "gradient_accumulation_steps": workload.microbatches,
        "optimizer": _optimizer(spec),
        "gradient_clipping": 0.0,
        "bf16": {"enabled": workload.precision == "bf16"} | _bf16_optimizer(spec),
        "data_types": {"grad_accum_dtype": workload.accumulate if workload.precision == "bf16" else "fp32"},
        "zero_optimization": {"stage": _stage(spec)},
    }
    if layout.tp > 1 and layout.pp == 1:
        found["tensor_parallel"] = {"autotp_size": layout.tp}
    if layout.recompute != "none":
        found["activation_checkpointing"] = {
            "partition_activations": layout.sequence_parallel,
            "number_checkpoints": layout.stage_layers(spec.model.layers)[0],
        }
    return json.dumps(found, indent=2) + "\n"


def _differences(spec: RunSpec) -> Iterator[str]:
    layout, workload = spec.layout, spec.workload
    stages = ",".join(map(str, layout.stage_layers(spec.model.layers)))
    if layout.pp > 1:
        yield f"stages are made in code: PipelineModule(num_stages={layout.pp}), {stages} layers each; its order is 1F1B alone"
    if layout.pp > 1 and "deepspeed" not in layout.facts.elsewhere:
        yield f"DeepSpeed has no {layout.schedule} schedule"
    if layout.pp > 1 and layout.tp > 1:
        yield (
            f"with a pipeline DeepSpeed has no tensor parallelism of its own; tp={layout.tp} comes from the model, through "
            f"PipeModelDataParallelTopology(num_pp={layout.pp}, num_mp={layout.tp}, num_dp={layout.dp})"
        )
    elif layout.tp > 1:
        yield f"tp={layout.tp} is DeepSpeed's AutoTP, which cuts the linear layers of Hugging Face models"
        if layout.zero > _WITH_TP:
            yield f"AutoTP goes with ZeRO up to {_WITH_TP}, so ZeRO {layout.zero} becomes {_WITH_TP}"
    if layout.sequence_parallel:
        yield "its sequence parallelism is another (Ulysses); this one, of tensor parallelism, it has not"
    if layout.pp > 1 and layout.zero > _WITH_PIPELINE:
        yield f"a pipeline goes with ZeRO up to {_WITH_PIPELINE}, so ZeRO {layout.zero} becomes {_WITH_PIPELINE}"
    if layout.recompute != "none":
        what = "each layer" if layout.recompute == "full" else "attention"
        yield f"recompute is called in the model: deepspeed.checkpointing.checkpoint around {what}"
    how = "scaled_dot_product_attention" if spec.attention == "fused" else "the scores written out"
    yield f"attention is the model's: {how}, here"
    if workload.bf16_optimizer and layout.zero == 0:
        yield "without ZeRO its bf16 keeps fp32 masters and fp32 states; here there are none"
    elif workload.bf16_optimizer and workload.accumulate == "fp32":
        yield "with bf16 masters it keeps gradients in bf16 too"
    elif workload.precision == "bf16" and layout.zero == 0:
        yield "its bf16 keeps fp32 masters as here, in an optimizer of its own"
    yield from optimizer_note(spec, "deepspeed", "DeepSpeed")
    yield from loss_note(spec, "in your model a fused linear cross-entropy does the same, such as Liger Kernel's")
    yield "steps, sequence length and data are the training script's"


def _bf16_optimizer(spec: RunSpec) -> dict[str, bool]:
    """Only its ZeRO optimizers have these settings."""
    if not spec.workload.bf16_optimizer or not _stage(spec):
        return {}
    return {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def _stage(spec: RunSpec) -> int:
    layout = spec.layout
    most = _WITH_PIPELINE if layout.pp > 1 else _WITH_TP if layout.tp > 1 else layout.zero
    return min(layout.zero, most)


def _optimizer(spec: RunSpec) -> dict[str, Any]:
    found = optimizer_settings(spec, "deepspeed")
    return {**found, "params": {"lr": spec.workload.learning_rate, **found["params"]}}
