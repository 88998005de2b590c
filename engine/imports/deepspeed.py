"""DeepSpeed's configuration as layout and workload. It does not say what the model is.

`engine.export.deepspeed` is the inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.imports.fields import Fields, Imported, brief, in_groups
from engine.imports.parts import Values
from engine.spec import LayoutSpec, RequestError, Sentence, WorkloadSpec, sentence

# Entries by which the file is known.
KNOWN_BY = ("train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization")
_OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "fusedadam": "adamw", "sgd": "sgd", "lion": "lion"}
# The precision of accumulated gradients. fp16 has the size of bf16.
_ACCUMULATED = {"fp32": "fp32", "float32": "fp32"} | dict.fromkeys(("bf16", "bfloat16", "fp16", "float16"), "bf16")
_MICS_STAGE = 3  # the ZeRO stage that its hybrid sharding is of
_HARMLESS = (
    "_comments", "gradient_clipping", "scheduler", "steps_per_print", "wall_clock_breakdown", "tensorboard", "wandb",
    "csv_monitor", "comet", "flops_profiler", "dump_state", "prescale_gradients", "zero_allow_untested_optimizer", "comms_logger",
    "checkpoint", "zero_force_ds_cpu_optimizer", "memory_breakdown", "data_types", "monitor_config", "communication_data_type",
)  # fmt: skip

# Entries of zero_optimization: buckets, overlap, prefetching and saving.
_HARMLESS_OF_ZERO = (
    "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce", "allgather_partitions",
    "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "elastic_checkpoint", "sub_group_size",
    "round_robin_gradients", "ignore_unused_parameters", "legacy_stage1", "memory_efficient_linear",
    "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks",
)  # fmt: skip
_OF_STAGE_3 = "stage3_"  # thresholds and buckets


def request(entries: Mapping[str, Any]) -> Imported:
    """Raises `RequestError`."""
    fields = Fields(entries, {})
    remarks: list[Sentence] = []
    precision = _precision(fields, remarks)
    each, count = _batch(fields)
    layout = _layout(fields, each * count, remarks)
    workload: Values = {"microbatch_size": each, "microbatches": count, **precision, **_optimizer(fields)}
    unknown = [
        sentence("{name}={value} is not understood, and left out", name=brief(name), value=brief(value))
        for name, value in fields.unread().items()
        if name not in _HARMLESS and not (isinstance(value, dict) and value.get("enabled") is False)
    ]
    return Imported(None, (*remarks, *unknown), LayoutSpec.model_validate(layout), WorkloadSpec.model_validate(workload))


def _section(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(sentence("{name}={value} must be an object", name=name, value=brief(value)))
    # DeepSpeed accumulates in the model's precision.
    return Fields(value or {}, {"enabled": False, "stage": 0, "autotp_size": 1, "params": {}, "grad_accum_dtype": "bf16"})


def _batch(fields: Fields) -> tuple[int, int]:
    """Sequences in a microbatch, and microbatches. Without their number, the whole batch is one rank's."""
    if "train_micro_batch_size_per_gpu" not in fields:
        raise RequestError(sentence("train_micro_batch_size_per_gpu is missing, and there is no usual value of it"))
    each, count = fields.whole("train_micro_batch_size_per_gpu"), 1
    if "gradient_accumulation_steps" in fields:
        count = fields.whole("gradient_accumulation_steps")
    elif "train_batch_size" in fields and each > 0:
        count = max(1, fields.whole("train_batch_size") // each)
    if each < 1 or count < 1:
        raise RequestError(sentence("train_micro_batch_size_per_gpu={each} × {count} is no batch", each=each, count=count))
    return each, count


def _layout(fields: Fields, of_a_replica: int, remarks: list[Sentence]) -> Values:
    tp = _section(fields, "tensor_parallel").whole("autotp_size")
    found: Values = {"tp": max(tp, 1), "dp": 1}
    if "train_batch_size" in fields:
        batch = fields.whole("train_batch_size")
        if batch % of_a_replica:
            values = {"batch": batch, "part": of_a_replica}
            raise RequestError(sentence("train_batch_size={batch} is not a multiple of a replica's {part} sequences", **values))
        found["dp"] = batch // of_a_replica
    if "train_batch_size" not in fields or "gradient_accumulation_steps" not in fields:
        remarks.append(sentence("the number of ranks is not in the file, so dp is 1"))
    found |= _zero(_section(fields, "zero_optimization"), found, remarks)
    checkpointing = _section(fields, "activation_checkpointing")
    if "number_checkpoints" in checkpointing or "partition_activations" in checkpointing:
        remarks.append(sentence("activation_checkpointing is left out: the model says what is computed again"))
    return found


def _zero(zero: Fields, layout: Values, remarks: list[Sentence]) -> Values:
    stage = zero.whole("stage")
    found: Values = {"zero": stage if layout["dp"] > 1 else 0}
    group = zero.whole("mics_shard_size") if "mics_shard_size" in zero else -1
    if group > 0 and stage != _MICS_STAGE:
        remarks.append(sentence("mics_shard_size={group} is left out: its groups are of ZeRO 3 alone", group=group))
    elif group > 0 and found["zero"]:
        if layout["dp"] % group:
            raise RequestError(sentence("mics_shard_size={group} does not divide dp={dp}", group=group, dp=layout["dp"]))
        found |= in_groups("mics_shard_size", group, layout | found, layout["dp"] // group, remarks)
    if "zero_hpz_partition_size" in zero and (size := zero.whole("zero_hpz_partition_size")) > 1:
        remarks.append(
            sentence(
                "zero_hpz_partition_size={size} is left out: no second copy of parameters is kept within a node here", size=size
            )
        )
    for name in ("offload_optimizer", "offload_param"):
        if zero.get(name) is not None:
            remarks.append(sentence("{name} is left out: all memory here is the device's", name=name))
    for name, value in zero.unread().items():
        if value is not False and name not in _HARMLESS_OF_ZERO and not name.startswith(_OF_STAGE_3):
            where = brief(f"zero_optimization.{name}")
            remarks.append(sentence("{name}={value} is not understood, and left out", name=where, value=brief(value)))
    return found


def _precision(fields: Fields, remarks: list[Sentence]) -> Values:
    bf16, fp16 = _section(fields, "bf16"), _section(fields, "fp16")
    if fp16.get("enabled") is True:
        remarks.append(sentence("fp16 is taken as bf16, which has the same size"))
    elif bf16.get("enabled") is not True:
        return {"precision": "fp32"}
    accumulated = _section(fields, "data_types").one_of("grad_accum_dtype", _ACCUMULATED)
    return {
        "precision": "bf16",
        "accumulate": accumulated,
        "bf16_optimizer": bf16.get("bf16_optimizer_states") is True,
    }


def _optimizer(fields: Fields) -> Values:
    if "optimizer" not in fields:
        return {}
    section = _section(fields, "optimizer")
    kind = section.text("type").lower()
    if kind not in _OPTIMIZERS:
        raise RequestError(
            sentence("there is no optimizer {name} here; {known} are", name=brief(kind), known=", ".join(_OPTIMIZERS))
        )
    inner = _section(section, "params")
    found: Values = {"optimizer": _OPTIMIZERS[kind]}
    if "lr" in inner and inner.get("lr") != "auto":
        found["learning_rate"] = inner.number("lr")
    if kind == "sgd" and "momentum" in inner:
        found["momentum"] = inner.number("momentum")
    return found
