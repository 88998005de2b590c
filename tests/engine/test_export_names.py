"""Exports use only names that their targets have."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from engine import catalog
from engine.export import Framework, settings
from engine.spec import LayoutSpec, ModelSpec, RunSpec
from tests.engine.test_export import megatron, spec_of

# Every name that is written, as in Megatron-LM's megatron/training/arguments.py, in torchtitan's
# torchtitan/config/job_config.py, and in DeepSpeed's documentation of its JSON, at the releases that exports name.
NAMED: dict[Framework, str] = {
    "megatron": """
        --num-layers --encoder-num-layers --decoder-num-layers --hidden-size --ffn-hidden-size --num-attention-heads --kv-channels
        --group-query-attention --num-query-groups --seq-length --encoder-seq-length --decoder-seq-length
        --max-position-embeddings --position-embedding-type --rotary-base --rotary-percent --window-size
        --window-attn-skip-freq --normalization --qk-layernorm --swiglu
        --squared-relu --disable-bias-linear --add-qkv-bias
        --untie-embeddings-and-output-weights --attention-dropout --hidden-dropout --tokenizer-type --vocab-size
        --make-vocab-size-divisible-by --tensor-model-parallel-size --pipeline-model-parallel-size
        --num-layers-per-virtual-pipeline-stage --pipeline-model-parallel-layout --sequence-parallel --use-distributed-optimizer
        --use-megatron-fsdp --data-parallel-sharding-strategy --ckpt-format --no-gradient-accumulation-fusion --attention-backend
        --recompute-granularity --recompute-modules --recompute-method --recompute-num-layers --bf16
        --accumulate-allreduce-grads-in-fp32 --grad-reduce-in-bf16 --micro-batch-size --global-batch-size --train-iters --lr
        --lr-decay-style --use-precision-aware-optimizer --main-grads-dtype --exp-avg-dtype --exp-avg-sq-dtype --optimizer
        --weight-decay --adam-beta1 --adam-beta2 --clip-grad --seed --mock-data --log-interval --sgd-momentum
        --microbatch-group-size-per-virtual-pipeline-stage --vocab-file --vocab-extra-ids --bert-no-binary-head --data-path""",
    "torchtitan": """
        model.name model.flavor training.local_batch_size training.global_batch_size training.seq_len training.max_norm
        training.steps training.mixed_precision_param training.mixed_precision_reduce debug.seed optimizer.name optimizer.lr
        optimizer.beta1 optimizer.beta2 optimizer.weight_decay lr_scheduler.warmup_steps lr_scheduler.decay_ratio
        parallelism.data_parallel_replicate_degree parallelism.data_parallel_shard_degree
        parallelism.fsdp_reshard_after_forward parallelism.tensor_parallel_degree parallelism.pipeline_parallel_degree
        parallelism.pipeline_parallel_schedule parallelism.pipeline_parallel_microbatch_size
        parallelism.module_fqns_per_model_part parallelism.pipeline_parallel_first_stage_less_layers
        parallelism.pipeline_parallel_last_stage_less_layers activation_checkpoint.mode
        activation_checkpoint.selective_ac_option""",
    "deepspeed": """
        _comments train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer.type optimizer.params
        gradient_clipping bf16.enabled bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states
        data_types.grad_accum_dtype zero_optimization.stage tensor_parallel.autotp_size
        activation_checkpointing.partition_activations activation_checkpointing.number_checkpoints
        zero_allow_untested_optimizer""",
}


def test_exports_use_only_settings_that_the_frameworks_have_and_all_are_covered() -> None:
    levers: list[dict[str, Any]] = [
        {}, {"zero": 1}, {"zero": 3}, {"recompute": "full"}, {"recompute": "core_attn", "sequence_parallel": True},
        {"split": (3, 1), "code": "dp1.tp1.pp2"}, {"schedule": "interleaved"}, {"code": "dp2.tp2.pp1", "zero": 2},
    ]  # fmt: skip
    specs = [spec_of(**lever) for lever in levers] + [spec_of("transformer"), spec_of("llama"), spec_of("bert")]
    specs.append(RunSpec(model=catalog.model("llama3-70b"), layout=LayoutSpec(tp=8)))
    wider = {"model": spec_of("llama").model.model_dump() | {"head_dim": 64}}
    specs.append(RunSpec.model_validate(specs[0].model_dump() | wider))
    parted = {"model": spec_of("llama").model.model_dump() | {"rotary_width": 8, "window": 16, "global_every": 2}}
    specs.append(RunSpec.model_validate(specs[0].model_dump() | parted))
    in_bf16 = {"precision": "bf16", "bf16_optimizer": True}
    specs.append(RunSpec.model_validate(specs[1].model_dump() | {"workload": specs[1].workload.model_dump() | in_bf16}))
    specs += [RunSpec(model=catalog.model(name)) for name in ("qwen2.5-7b", "qwen3-8b", "gpt-neox-20b")]
    specs.append(RunSpec(model=ModelSpec(inner="relu2")))
    interleaved = spec_of(schedule="interleaved").model_dump()
    specs.append(RunSpec.model_validate(interleaved | {"workload": interleaved["workload"] | {"microbatches": 3}}))
    for workload in ({"precision": "bf16"}, {"precision": "bf16", "accumulate": "bf16", "optimizer": "sgd"}):
        specs.append(RunSpec.model_validate(specs[0].model_dump() | {"workload": specs[0].workload.model_dump() | workload}))
    written: dict[Framework, set[str]] = {framework: set() for framework in NAMED}
    for spec in specs:
        written["megatron"] |= set(megatron(spec)) - {""}
        sections = tomllib.loads(settings(spec, "torchtitan"))
        written["torchtitan"] |= {f"{section}.{name}" for section, names in sections.items() for name in names}
        entries = json.loads(settings(spec, "deepspeed"))
        written["deepspeed"] |= {
            f"{name}.{inner}" if isinstance(entry, dict) else name
            for name, entry in entries.items()
            for inner in (entry if isinstance(entry, dict) else [""])
        }
    assert written == {framework: set(names.split()) for framework, names in NAMED.items()}
