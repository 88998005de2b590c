"""Megatron-LM: the arguments of its training scripts. Names as in its `megatron/training/arguments.py` of 2025."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from engine.export.common import global_batch, loss_note, optimizer_note, optimizer_settings
from engine.spec import AttentionName, RunSpec

_SCRIPTS = {"gpt": "pretrain_gpt.py", "llama": "pretrain_gpt.py", "bert": "pretrain_bert.py", "roberta": "pretrain_bert.py"}
_SCRIPTS |= {"transformer": "pretrain_t5.py"}
_BACKENDS: dict[AttentionName, str] = {"fused": "flash", "written": "unfused"}
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}

Argument = tuple[str, object]
_NODE = 8  # devices of a node, at most


def arguments(spec: RunSpec) -> str:
    """A bash script: `torchrun` with the training script and its arguments, one a line."""
    layout = spec.layout
    script = _SCRIPTS.get(spec.model.family, "pretrain_gpt.py")
    lines = [
        "#!/bin/bash",
        f"# Megatron-LM: {layout.ranks} ranks as {layout.code}, whose order (tp, dp, pp) is Megatron's own too.",
    ]
    lines += [f"# Not the same: {text}." for text in _differences(spec)]
    lines += ["# --mock-data and --vocab-size stand for data and tokenizer; --data-path and --tokenizer-model are yours."]
    here = layout.ranks if layout.ranks <= _NODE else gcd(layout.ranks, _NODE)
    given = [*_model(spec), *_layout(spec), *_levers(spec), *_workload(spec)]
    words = [name if value is True else f"{name} {value}" for name, value in given]
    nodes = f"--nnodes ${{NNODES:-{layout.ranks // here}}} --nproc-per-node ${{GPUS_PER_NODE:-{here}}}"
    return "\n".join(lines) + f"\ntorchrun {nodes} {script} \\\n" + " \\\n".join(f"  {word}" for word in words) + "\n"


def _differences(spec: RunSpec) -> Iterator[str]:
    model, layout, workload = spec.model, spec.layout, spec.workload
    if model.family not in _SCRIPTS:
        yield f"Megatron-LM has no {model.family}; a GPT of this size is set up instead"
    if model.family == "roberta":
        yield "Megatron-LM has no RoBERTa; its BERT adds token types and a next-sentence task"
    if model.family == "bert":
        yield "its BERT puts norms before attention and MLP, and trains on the next sentence too unless --bert-no-binary-head"
    if model.family == "transformer":
        yield "its T5 puts norms first and learns positions; the sizes are the same"
    if "megatron" not in layout.facts.elsewhere and layout.pp > 1:
        yield f"Megatron-LM has no {layout.schedule} schedule; it runs 1F1B, interleaved where there are chunks"
    if layout.zero in _SHARDING and layout.pp > 1:
        yield f"its FSDP stands for ZeRO {layout.zero}, and not every version takes it with a pipeline"
    if layout.split and layout.chunks > 1 and len(set(layout.split)) > 1:
        yield "its layout string is experimental and counts layers by chunk, as here"
    if workload.bf16_optimizer and _states_in_bf16(spec):
        yield "its precision-aware optimizer has states in bf16, and keeps an fp32 or fp16 copy of the parameters"
    elif workload.bf16_optimizer:
        yield "its optimizer has an fp32 copy and fp32 states; states in bf16 need AdamW and its distributed optimizer (ZeRO)"
    if workload.precision == "bf16" and workload.accumulate == "bf16":
        yield "gradients are reduced in bf16 as well as added up in it"
    yield from optimizer_note(spec, "megatron", "Megatron-LM")
    yield from loss_note(
        spec,
        "Megatron-LM keeps whole logits, unless --cross-entropy-fusion-impl is linear (its dev branch, on Blackwell)",
    )
    if spec.generate.prompt:
        yield "nothing is generated after training"


def _model(spec: RunSpec) -> Iterator[Argument]:
    model = spec.model
    parts = model.parts
    if parts.encoder:
        yield "--encoder-num-layers", model.encoder_layers
        yield "--decoder-num-layers", model.layers - model.encoder_layers
    else:
        yield "--num-layers", model.layers
    yield "--hidden-size", model.hidden
    yield "--ffn-hidden-size", model.ffn_width
    yield "--num-attention-heads", model.heads
    if model.head_dim:
        yield "--kv-channels", model.head_dim
    if model.key_heads != model.heads:
        yield "--group-query-attention", True
        yield "--num-query-groups", model.key_heads
    yield ("--encoder-seq-length" if parts.encoder else "--seq-length"), model.seq
    if parts.encoder:
        yield "--decoder-seq-length", model.seq
    yield "--max-position-embeddings", model.seq
    yield "--position-embedding-type", "rope" if parts.position == "rotary" else "learned_absolute"
    yield "--normalization", "RMSNorm" if parts.norm == "rms" else "LayerNorm"
    if parts.inner == "swiglu":
        yield "--swiglu", True
    if not parts.mlp_bias:
        yield "--disable-bias-linear", True
    if not parts.tied:
        yield "--untie-embeddings-and-output-weights", True
    yield "--attention-dropout", 0
    yield "--hidden-dropout", 0
    yield "--tokenizer-type", "NullTokenizer"
    yield "--vocab-size", model.vocab
    yield "--make-vocab-size-divisible-by", 1


def _layout(spec: RunSpec) -> Iterator[Argument]:
    layout, layers = spec.layout, spec.model.layers
    yield "--tensor-model-parallel-size", layout.tp
    yield "--pipeline-model-parallel-size", layout.pp
    if layout.pp == 1:
        return
    counts = layout.chunk_layers(layers)
    if len(set(counts)) == 1 and layout.chunks > 1:
        yield "--num-layers-per-virtual-pipeline-stage", counts[0]
    elif len(set(counts)) > 1 and not spec.model.parts.encoder:
        # E is the embedding, L the loss, t a layer. A bar ends a chunk. Chunks are assigned to stages 0 to pp − 1 in turn.
        yield "--pipeline-model-parallel-layout", "'E" + "|".join("t" * count for count in counts) + "L'"


def _levers(spec: RunSpec) -> Iterator[Argument]:
    layout, workload = spec.layout, spec.workload
    if layout.sequence_parallel:
        yield "--sequence-parallel", True
    if layout.zero:
        yield "--use-distributed-optimizer", True
    if layout.zero in _SHARDING:
        yield "--use-megatron-fsdp", True
        yield "--data-parallel-sharding-strategy", _SHARDING[layout.zero]
        yield "--ckpt-format", "fsdp_dtensor"
        yield "--no-gradient-accumulation-fusion", True
    yield "--attention-backend", _BACKENDS[spec.attention]
    if layout.recompute == "selective":
        yield "--recompute-granularity", "selective"
        yield "--recompute-modules", "core_attn"
    elif layout.recompute == "full":
        yield "--recompute-granularity", "full"
        yield "--recompute-method", "uniform"
        yield "--recompute-num-layers", 1
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
    yield "--lr", f"{workload.learning_rate:g}"
    yield "--lr-decay-style", "constant"
    yield from optimizer_settings(spec, "megatron").items()
    yield "--clip-grad", 0
    yield "--seed", max(1, workload.seed)  # Megatron-LM refuses 0
    yield "--mock-data", True
