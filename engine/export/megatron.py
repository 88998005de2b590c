"""Megatron-LM: a script of its training program with arguments.

Names and rules are those of release core_v0.17.1 (May 2026), the last with BERT and T5. `tests/engine/megatron_rules.py` has the
rules with their sources, and tests hold exports to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engine.export.common import (
    global_batch,
    learning_rate,
    learning_rate_note,
    loss_note,
    node_shape,
    optimizer_note,
    optimizer_settings,
    weights_note,
)
from engine.export.megatron_experts import experts, experts_differences, experts_layout, experts_refusal, latents
from engine.families import ModelParts
from engine.planner.frameworks import parts_lacked
from engine.spec import AttentionName, LayoutSpec, ModelSpec, RunSpec, recomputes

VERSION = "core_v0.17.1"
_SCRIPTS = {"gpt": "pretrain_gpt.py", "llama": "pretrain_gpt.py", "bert": "pretrain_bert.py", "roberta": "pretrain_bert.py"}
_SCRIPTS |= {"transformer": "pretrain_t5.py", "t5": "pretrain_t5.py"}
_BACKENDS: dict[AttentionName, str] = {"fused": "flash", "written": "unfused"}
_POSITIONS = {"rotary": "rope", "none": "none", "alibi": "none"}
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
_TOKENIZERS = {"pretrain_bert.py": "BertWordPieceLowerCase", "pretrain_t5.py": "BertWordPieceCase"}

# What its models of a family have otherwise.
_OTHERWISE = {
    "roberta": "Megatron-LM has no RoBERTa; its BERT adds token types",
    "bert": "its BERT puts norms before attention and MLP",
    "transformer": "its T5 puts norms first and learns positions; the sizes are the same",
    "t5": "its T5 divides scores by the root of a head's width, does not scale the output, and has GELU or SwiGLU",
}

Argument = tuple[str, object]


def arguments(spec: RunSpec) -> str:
    """A bash script: `torchrun` with the training script and its arguments, one a line.

    If Megatron-LM cannot start the layout at all, the script says so and ends before `torchrun`.
    """
    layout = spec.layout
    lines = [
        "#!/bin/bash",
        f"# Megatron-LM {VERSION}: {layout.ranks} ranks as {layout.code}, whose order (tp, dp, pp) is Megatron's own too.",
    ]
    lines += [f"# Not the same: {text}." for text in _differences(spec)]
    lines += [f"# {text}" for text in learning_rate_note(spec)]
    if _script(spec) in _TOKENIZERS:
        lines += [
            "# Its BERT and T5 have no mock data: DATA_PATH and VOCAB_FILE are yours, and so is the size of the vocabulary."
        ]
    else:
        lines += [
            "# --mock-data and NullTokenizer stand for data and tokenizer; --data-path and --tokenizer-model are yours.",
            "# NullTokenizer adds one token, the end of a document, to --vocab-size.",
        ]
    lines += [f"echo {text!r} >&2\nexit 1" for text in _refusal(spec)]
    if _shards_more_than_states(spec):
        lines += ["unset CUDA_DEVICE_MAX_CONNECTIONS  # its FSDP refuses 1"]
    elif layout.tp > 1:
        lines += ["export CUDA_DEVICE_MAX_CONNECTIONS=1  # demanded for tensor parallelism on GPUs before Blackwell"]
    given = [*_model(spec), *_layout(spec), *_levers(spec), *_workload(spec)]
    words = [name if value is True else f"{name} {value}" for name, value in given]
    return "\n".join(lines) + f"\n{_torchrun(spec)} {_script(spec)} \\\n" + " \\\n".join(f"  {word}" for word in words) + "\n"


def _script(spec: RunSpec) -> str:
    return _SCRIPTS.get(spec.model.family, "pretrain_gpt.py")


def _torchrun(spec: RunSpec) -> str:
    nodes, here = node_shape(spec.layout.ranks)
    started = f"torchrun --nnodes ${{NNODES:-{nodes}}} --nproc-per-node ${{GPUS_PER_NODE:-{here}}}"
    if nodes > 1:
        started += ' --node-rank ${NODE_RANK:-${SLURM_NODEID:-0}} --master-addr "${MASTER_ADDR:?the address of the first node}"'
        started += " --master-port ${MASTER_PORT:-29500}"
    return started


def _refusal(spec: RunSpec) -> Iterator[str]:
    """Why Megatron-LM cannot start the layout; nothing if it can."""
    if spec.model.parts.encoder and spec.layout.pp > 1:
        yield f"Megatron-LM {VERSION} has no pipeline for T5, and this layout has {spec.layout.pp} stages"
    yield from experts_refusal(spec)


def _differences(spec: RunSpec) -> Iterator[str]:
    model, layout = spec.model, spec.layout
    yield from _refusal(spec)
    yield from _model_differences(model)
    yield from _schedule_differences(spec)
    if _shards_more_than_states(spec) and layout.pp > 1:
        yield f"its FSDP stands for ZeRO {layout.zero}, and it is little tried with a pipeline"
    if layout.zero and not _zero(spec):
        yield f"its distributed optimizer takes Adam alone, so ZeRO {layout.zero} becomes none"
    if layout.split and _interleaves(spec) and len(set(layout.split)) > 1:
        yield "its layout string is experimental and counts layers by chunk, as here"
    yield from _workload_differences(spec)
    if spec.generate.prompt:
        yield "nothing is generated after training"


def _model_differences(model: ModelSpec) -> Iterator[str]:
    if model.family not in _SCRIPTS:
        yield f"Megatron-LM has no {model.family}; a GPT of this size is set up instead"
    if model.parts.position == "alibi":
        yield "Megatron-LM has no linear biases of distances; the model is set up without positions"
    if model.family in _OTHERWISE:
        yield _OTHERWISE[model.family]
    if "rotary_local_base" in model.sized_parts:
        yield "it has one base of rotary positions for layers with and without a window"
    yield from experts_differences(model)
    if model.family in _SCRIPTS and (lacked := parts_lacked("megatron", model)):
        yield f"it has no {', '.join(lacked)}; the nearest that it has stands there"


def _workload_differences(spec: RunSpec) -> Iterator[str]:
    layout, workload = spec.layout, spec.workload
    if _backend(spec) != _BACKENDS[spec.attention]:
        yield "its fused attention takes bf16 and fp16 alone, so in fp32 the scores are written out"
    if workload.bf16_optimizer and _states_in_bf16(spec):
        yield "its precision-aware optimizer has states in bf16, and keeps an fp32 or fp16 copy of the parameters"
    elif workload.bf16_optimizer:
        yield "its optimizer has an fp32 copy and fp32 states; states in bf16 need AdamW and its distributed optimizer (ZeRO)"
    if workload.precision == "bf16" and workload.accumulate == "bf16":
        yield "gradients are reduced in bf16 as well as added up in it"
    if layout.recompute_every > 1:
        yield (
            f"it recomputes the first layers of a chunk, and not every n-th; n={layout.recompute_every} becomes the first "
            f"{_recomputed_layers(spec)}"
        )
    if recomputes(layout.recompute, "mlp_act"):
        yield "it computes an activation again for experts alone (moe_act), or the whole MLP (mlp); mlp_act is left out"
    if workload.optimizer == "lion":
        yield "its Lion needs the package emerging_optimizers, 0.2 or newer"
    yield from optimizer_note(spec, "megatron", "Megatron-LM")
    yield from weights_note(spec)
    yield from loss_note(
        spec,
        "Megatron-LM keeps whole logits, unless --cross-entropy-fusion-impl is linear (its dev branch, on Blackwell)",
    )


def _schedule_differences(spec: RunSpec) -> Iterator[str]:
    layout = spec.layout
    if layout.pp == 1:
        return
    if "megatron" not in layout.facts.elsewhere:
        other = f"interleaved 1F1B over {layout.chunks} chunks a stage" if _interleaves(spec) else "1F1B"
        yield f"Megatron-LM has no {layout.schedule} schedule; {other} runs instead, with as many layers on each stage"
    elif layout.chunks > 1 and not _interleaves(spec):
        few = spec.workload.microbatches
        yield (
            f"its interleaving needs pp={layout.pp} microbatches or more, and there are {few}; 1F1B runs instead, with as many "
            "layers on each stage"
        )


def _interleaves(spec: RunSpec) -> bool:
    """Whether Megatron-LM runs 1F1B interleaved over the chunks; otherwise it runs plain 1F1B."""
    layout = spec.layout
    named = layout.facts.elsewhere.get("megatron", layout.facts.nearest.get("megatron"))
    return layout.pp > 1 and named == "interleaved 1F1B" and spec.workload.microbatches >= layout.pp


def _zero(spec: RunSpec) -> int:
    """The ZeRO stage that Megatron-LM runs."""
    return spec.layout.zero if spec.workload.optimizer == "adamw" else 0


def _shards_more_than_states(spec: RunSpec) -> bool:
    """Whether it is Megatron's FSDP that runs."""
    return _zero(spec) in _SHARDING


def _model(spec: RunSpec) -> Iterator[Argument]:
    model = spec.model
    yield from _stacks(spec)
    yield "--hidden-size", model.hidden
    yield "--ffn-hidden-size", model.ffn_width
    yield "--num-attention-heads", model.heads
    if model.head_dim:
        yield "--kv-channels", model.head_dim
    if model.key_heads != model.heads:
        yield "--group-query-attention", True
        yield "--num-query-groups", model.key_heads
    yield from _positions(model)
    yield from _layer_parts(model.parts)
    yield from latents(model)
    yield from experts(model)
    yield "--attention-dropout", 0
    yield "--hidden-dropout", 0
    yield from _vocabulary(spec)


def _positions(model: ModelSpec) -> Iterator[Argument]:
    """Positions, and which of them attention sees."""
    parts = model.parts
    yield "--max-position-embeddings", model.places
    relative = parts.position == "buckets" and parts.encoder  # of as many buckets as here unless it is told otherwise
    yield "--position-embedding-type", "relative" if relative else _POSITIONS.get(parts.position, "learned_absolute")
    if parts.position == "rotary":
        yield "--rotary-base", model.angle_base
        if "rotary_width" in model.sized_parts:
            yield "--rotary-percent", model.rotated / model.head_width
    if "window" in model.sized_parts:
        yield "--window-size", f"{model.window - 1},0"  # the tokens before this one, and behind it
        if model.global_every:
            yield "--window-attn-skip-freq", model.global_every


def _layer_parts(parts: ModelParts) -> Iterator[Argument]:
    yield "--normalization", "RMSNorm" if parts.norm == "rms" else "LayerNorm"
    if parts.qk_norm != "none":
        yield "--qk-layernorm", True
    if parts.gated:
        yield "--swiglu", True
    elif parts.inner == "relu2":
        yield "--squared-relu", True
    if not parts.mlp_bias:
        yield "--disable-bias-linear", True
        if parts.attention_bias != "none":
            yield "--add-qkv-bias", True
    if not parts.tied:
        yield "--untie-embeddings-and-output-weights", True


def _stacks(spec: RunSpec) -> Iterator[Argument]:
    """Layers and lengths, of encoder and decoder where there are both."""
    model = spec.model
    if model.parts.encoder:
        yield "--encoder-num-layers", model.encoder_layers
        yield "--decoder-num-layers", model.layers - model.encoder_layers
        yield "--encoder-seq-length", model.seq
        yield "--decoder-seq-length", model.seq
    else:
        yield "--num-layers", model.layers
        yield "--seq-length", model.seq


def _vocabulary(spec: RunSpec) -> Iterator[Argument]:
    parts = spec.model.parts
    if (script := _script(spec)) in _TOKENIZERS:
        yield "--tokenizer-type", _TOKENIZERS[script]
        yield "--vocab-file", '"${VOCAB_FILE:?a word-piece vocabulary}"'
    else:
        yield "--tokenizer-type", "NullTokenizer"
        yield "--vocab-size", spec.model.vocab - 1  # it adds one for the end of a document
    if parts.encoder:
        yield "--vocab-extra-ids", 100  # its T5 marks spans with them
    if parts.objective == "masked":
        yield "--bert-no-binary-head", True  # without it, BERT learns the next sentence too
    yield "--make-vocab-size-divisible-by", spec.model.vocab_multiple or 1


def _layout(spec: RunSpec) -> Iterator[Argument]:
    layout, layers, microbatches = spec.layout, spec.model.layers, spec.workload.microbatches
    yield "--tensor-model-parallel-size", layout.tp
    if layout.cp > 1:
        yield "--context-parallel-size", layout.cp
        yield "--cp-comm-type", {"ring": "p2p", "all_gather": "all_gather", "ulysses": "a2a"}[layout.context_parallel]
    yield from experts_layout(spec)
    yield "--pipeline-model-parallel-size", layout.pp
    if layout.pp == 1 or spec.model.parts.encoder:
        return
    counts = layout.chunk_layers(layers) if _interleaves(spec) else layout.stage_layers(layers)
    if len(set(counts)) > 1:
        # E is the embedding, L the loss, t a layer. A bar ends a chunk. Chunks are assigned to stages 0 to pp − 1 in turn.
        yield "--pipeline-model-parallel-layout", "'E" + "|".join("t" * count for count in counts) + "L'"
    elif _interleaves(spec):
        yield "--num-layers-per-virtual-pipeline-stage", counts[0]
    if _interleaves(spec):
        # Microbatches that go through one chunk before the next begins. Breadth-first, all do.
        rounds = microbatches // layout.pp if layout.schedule == "interleaved" else 1
        if (each := microbatches // rounds) != layout.pp:
            yield "--microbatch-group-size-per-virtual-pipeline-stage", each


def _recomputed_layers(spec: RunSpec) -> int:
    """How many layers it recomputes of each stack in a chunk, the first ones: the most that are recomputed in any here.

    Where it does not interleave, a stage is one chunk.
    """
    layout, model = spec.layout, spec.model
    if layout.recompute_layers and (layout.chunks == 1 or _interleaves(spec)):
        return layout.recompute_layers
    ranges, whole = layout.layer_ranges(model.layers), layout.recomputed_whole(model.layers, model.encoder_layers)
    counts: Counter[tuple[int, bool]] = Counter()
    for chunk, (stage, layers, again) in enumerate(zip(layout.placement, ranges, whole, strict=True)):
        held = chunk if _interleaves(spec) else stage
        counts.update((held, layer < model.encoder_layers) for layer, recomputed in zip(layers, again, strict=True) if recomputed)
    return max(counts.values(), default=0)


def _recomputed_modules(layout: LayoutSpec) -> list[str]:
    """The parts of layers that backward computes again, which have the same names there. It has no mlp_act."""
    return [part for part in layout.recompute.split("+") if part in ("core_attn", "layernorm")]


def _backend(spec: RunSpec) -> str:
    """TransformerEngine's fused kernels take 16-bit numbers alone."""
    return _BACKENDS[spec.attention if spec.workload.precision == "bf16" else "written"]


def _levers(spec: RunSpec) -> Iterator[Argument]:
    layout, workload = spec.layout, spec.workload
    if layout.sequence_parallel:
        yield "--sequence-parallel", True
    if _zero(spec):
        yield "--use-distributed-optimizer", True
        if layout.zero_replicas > 1:
            yield "--num-distributed-optimizer-instances", layout.zero_replicas
    if _shards_more_than_states(spec):
        yield "--use-megatron-fsdp", True
        yield "--data-parallel-sharding-strategy", _SHARDING[layout.zero]
        yield "--ckpt-format", "fsdp_dtensor"
        yield "--no-gradient-accumulation-fusion", True
    yield "--attention-backend", _backend(spec)
    if modules := _recomputed_modules(layout):
        yield "--recompute-granularity", "selective"
        yield "--recompute-modules", " ".join(modules)
    elif layout.recompute == "full" and (count := _recomputed_layers(spec) if layout.recomputes_some else 1):
        yield "--recompute-granularity", "full"
        yield "--recompute-method", "block" if layout.recomputes_some else "uniform"
        yield "--recompute-num-layers", count
    if workload.precision == "bf16":
        yield "--bf16", True
        yield ("--accumulate-allreduce-grads-in-fp32" if workload.accumulate == "fp32" else "--grad-reduce-in-bf16"), True
    if _states_in_bf16(spec):
        yield "--use-precision-aware-optimizer", True
        yield "--main-grads-dtype", workload.accumulate
        yield "--exp-avg-dtype", "bf16"
        yield "--exp-avg-sq-dtype", "bf16"


def _states_in_bf16(spec: RunSpec) -> bool:
    """Its precision-aware optimizer is a kind of its distributed optimizer, and is AdamW."""
    return spec.workload.bf16_optimizer and spec.layout.zero > 0 and spec.workload.optimizer == "adamw"


def _workload(spec: RunSpec) -> Iterator[Argument]:
    workload = spec.workload
    yield "--micro-batch-size", workload.microbatch_size
    yield "--global-batch-size", global_batch(spec)
    yield "--train-iters", workload.steps
    yield "--lr", f"{learning_rate(spec):g}"
    yield "--lr-decay-style", "constant"
    yield from optimizer_settings(spec, "megatron").items()
    yield "--clip-grad", 0
    yield "--seed", max(1, workload.seed)  # Megatron-LM refuses 0
    yield "--log-interval", 1
    if _script(spec) in _TOKENIZERS:
        yield "--data-path", '"${DATA_PATH:?a tokenized corpus}"'
    else:
        yield "--mock-data", True
