"""torchtitan: a job file in TOML. Names as in its `torchtitan/config/job_config.py` of 2025."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine.export.common import global_batch, loss_note, optimizer_note, optimizer_settings
from engine.spec import LayoutSpec, ModelSpec, RunSpec

# The flavors of its llama3, by layers, hidden size and heads.
_FLAVORS = {(32, 4096, 32): "8B", (80, 8192, 64): "70B", (126, 16384, 128): "405B"}


def toml(spec: RunSpec) -> str:
    """The text of a job file."""
    sections = {
        "model": _model(spec.model),
        "training": _training(spec),
        "optimizer": _optimizer(spec),
        "lr_scheduler": {"warmup_steps": 0, "decay_ratio": 0.0},
        "parallelism": _parallelism(spec),
        "activation_checkpoint": {"mode": spec.layout.recompute}
        | ({"selective_ac_option": "op"} if spec.layout.recompute == "selective" else {}),
    }
    lines = [f"# torchtitan: {spec.layout.ranks} ranks as {spec.layout.code}."]
    lines += [f"# Not the same: {text}." for text in _differences(spec)]
    for name, entries in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in entries.items())]
    return "\n".join(lines) + "\n"


def _differences(spec: RunSpec) -> Iterator[str]:
    model, layout, workload = spec.model, spec.layout, spec.workload
    if model.family != "llama":
        yield f"torchtitan has no {model.family}; a llama3 flavor stands in its place"
    if (model.layers, model.hidden, model.heads) not in _FLAVORS or model.family != "llama":
        yield (
            f"its sizes are flavors in its code; add one of {model.layers} layers, {model.hidden} wide, {model.heads} heads "
            f"({model.key_heads} of keys), {model.ffn_width} in the MLP, vocabulary {model.vocab}"
        )
    if layout.pp > 1 and "torchtitan" not in layout.facts.elsewhere:
        yield f"torchtitan has no {layout.schedule} schedule; {_schedule(layout)} is the nearest"
    if layout.zero == 1:
        yield "torchtitan shards optimizer and gradients together, so ZeRO 1 becomes ZeRO 2"
    if layout.tp > 1 and not layout.sequence_parallel:
        yield "its tensor parallelism is sequence parallel too"
    if spec.attention == "written":
        yield "its attention is always fused (scaled_dot_product_attention or FlexAttention); here the scores are written"
    if layout.recompute == "selective":
        yield "its selective recompute chooses among all operators; here attention alone is computed again"
    if workload.bf16_optimizer:
        yield "its parameters and the optimizer's states are fp32, which training.dtype bfloat16 of later versions changes"
    elif layout.zero == 0 and workload.precision == "bf16":
        yield "without sharding its bf16 is autocast over fp32 parameters; here parameters are bf16 with an fp32 copy"
    if workload.accumulate == "bf16" and workload.precision == "bf16":
        yield "it reduces gradients in fp32, not in bf16"
    yield from optimizer_note(spec, "torchtitan", "torchtitan")
    yield from loss_note(spec, "torchtitan keeps whole logits")
    if layout.split and layout.pp > 1 and (layout.chunks > 1 or len(set(layout.split[1:-1])) > 1):
        yield f"the split {','.join(map(str, layout.split))} has to be written as module_fqns_per_model_part"
    if spec.generate.prompt:
        yield "nothing is generated after training"


def _model(model: ModelSpec) -> dict[str, Any]:
    flavor = _FLAVORS.get((model.layers, model.hidden, model.heads), "debugmodel")
    return {"name": "llama3", "flavor": flavor if model.family == "llama" else "debugmodel"}


def _training(spec: RunSpec) -> dict[str, Any]:
    """With a pipeline, the local batch is split into microbatches. Without one, microbatches accumulate to the global batch."""
    workload = spec.workload
    piped = workload.microbatches if spec.layout.pp > 1 else 1
    return {
        "local_batch_size": workload.microbatch_size * piped,
        "global_batch_size": global_batch(spec),
        "seq_len": spec.model.seq,
        "max_norm": 1e9,  # clips nothing
        "steps": workload.steps,
        "mixed_precision_param": "bfloat16" if workload.precision == "bf16" else "float32",
        "mixed_precision_reduce": "float32",
        "seed": workload.seed,
    }


def _optimizer(spec: RunSpec) -> dict[str, Any]:
    return {**optimizer_settings(spec, "torchtitan"), "lr": spec.workload.learning_rate}


def _parallelism(spec: RunSpec) -> dict[str, Any]:
    """With a sharding degree of dp it is ZeRO 2 if parameters are kept after forward, and ZeRO 3 if they are freed."""
    layout = spec.layout
    sharded = layout.zero > 0
    found: dict[str, Any] = {
        "data_parallel_replicate_degree": 1 if sharded else layout.dp,
        "data_parallel_shard_degree": layout.dp if sharded else 1,
    }
    if sharded:
        found["fsdp_reshard_after_forward"] = "always" if layout.zero == 3 else "never"
    found["tensor_parallel_degree"] = layout.tp
    found["pipeline_parallel_degree"] = layout.pp
    if layout.pp > 1:
        counts = layout.chunk_layers(spec.model.layers)
        found["pipeline_parallel_schedule"] = _schedule(layout)
        found["pipeline_parallel_microbatch_size"] = spec.workload.microbatch_size
        found["pipeline_parallel_layers_per_stage"] = max(counts)
        found["pipeline_parallel_first_stage_less_layers"] = max(counts) - counts[0]
        found["pipeline_parallel_last_stage_less_layers"] = max(counts) - counts[-1]
    return found


def _schedule(layout: LayoutSpec) -> str:
    facts = layout.facts
    return facts.elsewhere.get("torchtitan", facts.nearest.get("torchtitan", "1F1B"))


def _value(value: Any) -> str:
    """A value in TOML. TOML writes these values as JSON does."""
    return json.dumps(value)
