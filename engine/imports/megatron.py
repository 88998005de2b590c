"""Megatron-LM's arguments as a request: a script, or the arguments alone.

Names and usual values are those of release core_v0.17.1, `megatron/training/arguments.py`. `engine.export.megatron` is the
inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from engine.families import BUCKETS, FARTHEST, ROTARY_BASE
from engine.imports.fields import Fields, Imported, VocabularyError, brief, in_groups, unsupported
from engine.imports.megatron_experts import HARMLESS, USUAL, expert_layout, experts, latents
from engine.imports.parts import Values, stacks
from engine.imports.words import arguments, number_or_text
from engine.spec import LayoutSpec, ModelSpec, RequestError, Sentence, WorkloadSpec, sentence

# Arguments without a value.
_FLAGS = frozenset(
    (
        "group_query_attention", "swiglu", "squared_relu", "qk_layernorm", "add_qkv_bias", "disable_bias_linear",
        "untie_embeddings_and_output_weights", "use_rotary_position_embeddings", "sequence_parallel", "use_distributed_optimizer",
        "use_megatron_fsdp", "bf16", "fp16", "grad_reduce_in_bf16", "accumulate_allreduce_grads_in_fp32",
        "use_precision_aware_optimizer", "recompute_activations", "no_position_embedding", "quick_geglu",
        "multi_latent_attention", "attention_output_gate", "moe_router_pre_softmax", "moe_router_enable_expert_bias",
        "moe_grouped_gemm", "moe_permute_fusion", "moe_shared_expert_overlap", "moe_per_layer_logging", "moe_router_fusion",
        "moe_pad_expert_input_to_capacity", "moe_use_legacy_grouped_gemm",
    )
)  # fmt: skip
_LISTS = ("recompute_modules",)
_USUAL: dict[str, Any] = {
    "position_embedding_type": "learned_absolute", "rotary_base": 10_000, "rotary_percent": 1.0, "normalization": "LayerNorm",
    "make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "optimizer": "adam",
    "sgd_momentum": 0.9, "micro_batch_size": 1, "seed": 1234, "attention_backend": "auto", "recompute_method": "uniform",
    "data_parallel_sharding_strategy": "no_shard", **USUAL,
}  # fmt: skip
# Tokens of tokenizers that most scripts name without --vocab-size. The first two read files, which are usually those of GPT-2
# (Radford et al. 2019, section 2.2) and of Llama 2 (Touvron et al. 2023, section 2.2). The last has 2^17 whatever its file has.
_TOKENIZERS = {"GPT2BPETokenizer": 50_257, "Llama2Tokenizer": 32_000, "TikTokenizer": 131_072}
_POSITIONS = {"learned_absolute": "learned", "rope": "rotary", "relative": "buckets", "none": "none"}
_OPTIMIZERS = {"adam": "adamw", "sgd": "sgd", "lion": "lion"}
_NORMS = {"LayerNorm": "layer", "RMSNorm": "rms"}
_ZERO = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
_RECOMPUTED = ("core_attn", "layernorm")
_OTHER_LAYERS = ("quick_geglu", "mtp_num_layers", "moe_shared_expert_gate", "attention_output_gate")  # sizes depend on them
# Arguments of data, logging, checkpoints, launching, learning rates and kernels: they change no size.
_HARMLESS_PREFIXES = (
    "adam_", "lion_", "lr", "min_lr", "weight_decay", "clip_grad", "init_", "log_", "load", "eval_", "tensorboard", "wandb",
    "timing_", "data_", "train_data", "valid_data", "test_data", "split", "tokenizer_", "vocab_file", "merge_file",
    "mock_data", "num_workers", "no_load", "no_save", "ckpt_", "dist_ckpt", "async_", "distributed_", "overlap_", "no_",
    "use_flash", "transformer_", "nnodes", "nproc", "node_rank", "master_", "rdzv", "standalone", "rank", "tee", "log",
    "attention_softmax", "apply_query_key", "cross_entropy", "norm_epsilon", "initial_loss", "loss_scale", "hysteresis",
    "manual_gc", "exit_", "distribute_", "bert_no", "main_grads", "exp_avg", "use_mcore", "train_samples", "rotary_seq",
    "use_cpu", "deterministic", "check_", "empty_unused", "override_opt", "end_weight", "start_weight", "reset_", "eod_",
    "max_", "group_", "num_dataset", "tp_comm", "fp8_", "disable_bf16", "calculate_", "decoupled_", "use_checkpoint",
    "gradient_accumulation", "num_distributed", "local_rank", "profile", "config", "microbatch_group", "save", *HARMLESS,
)  # fmt: skip


def request(text: str, name: str, vocab: int | str | None = None) -> Imported:
    """The model, layout and workload of the arguments in a script. `name`: of the file. Raises `RequestError`.

    `vocab`: tokens of the vocabulary if the script does not say it. Raises `VocabularyError` if nothing does.
    """
    words = arguments(text, name)
    entries: dict[str, Any] = {}
    for key, values in words.items():
        if key in _FLAGS or not values:
            entries[key] = True
        else:
            entries[key] = values if key in _LISTS else number_or_text(values[0])
    fields = Fields(entries, _USUAL, flags=True)
    vocabulary, told = _vocabulary(fields, vocab)
    model = ModelSpec.model_validate(_model(fields, text) | vocabulary)
    layout, remarks = _layout(fields, model)
    workload, more = _workload(fields, layout)
    unknown = [
        sentence("--{name} is not understood, and left out", name=brief(key.replace("_", "-")))
        for key in fields.unread()
        if not key.startswith(_HARMLESS_PREFIXES)
    ]
    return Imported(model, (*told, *remarks, *more, *unknown), layout, workload)


def _model(fields: Fields, text: str) -> Values:
    for name in _OTHER_LAYERS:
        if fields.get(name):
            raise RequestError(sentence("--{name} has no part here", name=name.replace("_", "-")))
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    gated = _is_set(fields, "swiglu")
    ffn = fields.whole("ffn_hidden_size") if "ffn_hidden_size" in fields else _usual_ffn(hidden, gated)
    keys = fields.whole("num_query_groups") if _is_set(fields, "group_query_attention") else 0
    fields.get("num_query_groups")
    width = fields.whole("kv_channels") if "kv_channels" in fields else 0
    model: Values = {
        "hidden": hidden, "heads": heads, "ffn": 0 if ffn == 4 * hidden else ffn,
        "kv_heads": 0 if keys == heads else keys, "head_dim": 0 if width * heads == hidden else width,
        "norm": fields.one_of("normalization", _NORMS), "qk_norm": "head" if _is_set(fields, "qk_layernorm") else "none",
        "tied": not _is_set(fields, "untie_embeddings_and_output_weights"),
    }  # fmt: skip
    squared, biased, qkv = (_is_set(fields, name) for name in ("squared_relu", "disable_bias_linear", "add_qkv_bias"))
    model["mlp_bias"] = not biased
    model["attention_bias"] = "all" if not biased else "qkv" if qkv else "none"
    model |= _positions(fields, width or hidden // max(1, heads)) | _window(fields)
    if "pretrain_t5" in text or "encoder_num_layers" in fields:
        return model | _stacks(fields, "swiglu" if gated else None, model["position"] == "buckets")
    seq = fields.whole("seq_length")
    model |= {"layers": fields.whole("num_layers"), "seq": seq}
    model |= experts(fields, model["layers"], ffn) | latents(fields)
    if model.get("kv_lora_rank"):
        model |= {"qk_norm": "none", "head_dim": 0, "rotary_width": 0}
    if model["position"] == "learned":
        model["spare_positions"] = max(0, fields.whole("max_position_embeddings") - seq)
    model["inner"] = "swiglu" if gated else "relu2" if squared else None
    if "pretrain_bert" in text:
        return {**model, "family": "bert", "spare_positions": 0}
    llama = model["norm"] == "rms" and model["position"] == "rotary" and gated
    return {**model, "family": "llama" if llama else "gpt"}


def _stacks(fields: Fields, inner: str | None, relative: bool) -> Values:
    """Of its T5: with relative positions the parts of T5 that it has, otherwise those of Vaswani et al. of the same sizes."""
    encoder, decoder = fields.whole("encoder_num_layers"), fields.whole("decoder_num_layers")
    for name, wanted in (("relative_attention_num_buckets", BUCKETS), ("relative_attention_max_distance", FARTHEST)):
        fields.demand(name, wanted)
    sizes = stacks(encoder, decoder) | {"seq": fields.whole("encoder_seq_length"), "spare_positions": 0}
    if relative:
        return {**sizes, "family": "t5", "inner": inner or "gelu_tanh", "scaled_scores": True, "scaled_output": False}
    return {**sizes, "family": "transformer", "position": None, "inner": inner, "attention_bias": None}


def _positions(fields: Fields, width: int) -> Values:
    turned = int(width * fields.number("rotary_percent") + 1e-6)
    base = fields.whole("rotary_base")
    kind = fields.one_of("position_embedding_type", _POSITIONS)
    if _is_set(fields, "use_rotary_position_embeddings"):
        kind = "rotary"
    if _is_set(fields, "no_position_embedding") and kind == "learned":
        kind = "none"
    if kind != "rotary":
        return {"position": kind}
    return {
        "position": kind, "rotary_width": 0 if turned == width else turned, "rotary_base": 0 if base == ROTARY_BASE else base,
    }  # fmt: skip


def _window(fields: Fields) -> Values:
    """--window-size has the tokens before this one, and behind it."""
    text, every = fields.get("window_size"), fields.get("window_attn_skip_freq")
    if text is None:
        return {}
    before = re.fullmatch(r"\(?(\d{1,7}), ?0\)?", str(text))
    if before is None:
        raise unsupported("--window-size", text, ["127,0"])
    return {"window": int(before[1]) + 1, "global_every": 0 if every is None else fields.whole("window_attn_skip_freq")}


def _usual_ffn(hidden: int, gated: bool) -> int:
    """Megatron-LM's own: 4 × hidden, and two thirds of it with a gate, in multiples of 64."""
    return int(4 * hidden * 2 / 3 / 64) * 64 if gated else 4 * hidden


def _vocabulary(fields: Fields, given: int | str | None) -> tuple[Values, list[Sentence]]:
    """`given`: all tokens, if the script has no --vocab-size. Raises `VocabularyError` if the size is nowhere."""
    multiple = fields.whole("make_vocab_size_divisible_by")
    if multiple < 1:
        raise RequestError(sentence("{name}={value} must be a whole number", name="make_vocab_size_divisible_by", value=multiple))
    extra = fields.whole("vocab_extra_ids") if "vocab_extra_ids" in fields else 0
    padded = {"vocab_multiple": multiple if multiple > 1 else 0}
    if "vocab_size" not in fields and given is not None:
        return {"vocab": given, **padded}, []
    tokens, remarks = _tokens(fields)
    return {"vocab": tokens + extra, **padded}, remarks


def _tokens(fields: Fields) -> tuple[int, list[Sentence]]:
    """The tokens of the tokenizer, without --vocab-extra-ids. NullTokenizer adds one, the end of a document."""
    kind = fields.get("tokenizer_type")
    if "vocab_size" in fields:
        return fields.whole("vocab_size") + (kind == "NullTokenizer"), []
    if kind is None:
        raise VocabularyError(
            sentence("there is no --vocab-size and no --tokenizer-type: say how many tokens the vocabulary has")
        )
    if kind not in _TOKENIZERS:
        text = sentence(
            "there is no --vocab-size, and {kind} has its tokens in files: say how many tokens the vocabulary has",
            kind=brief(kind),
        )
        raise VocabularyError(text)
    usual = _TOKENIZERS[kind]
    told = sentence("there is no --vocab-size; the usual {tokens} tokens of {kind} are taken", tokens=usual, kind=kind)
    return usual, [told]


def _context(fields: Fields) -> Values:
    """Context parallelism, if there is any."""
    if "context_parallel_size" not in fields:
        return {}
    found: Values = {"cp": fields.whole("context_parallel_size")}
    if "cp_comm_type" in fields:
        kinds = {"p2p": "ring", "all_gather": "all_gather", "a2a": "ulysses"}
        found["context_parallel"] = fields.one_of("cp_comm_type", kinds)
    return found


def _layout(fields: Fields, model: ModelSpec) -> tuple[LayoutSpec, list[Sentence]]:
    tp, pp = fields.whole("tensor_model_parallel_size"), fields.whole("pipeline_model_parallel_size")
    ranks, remarks = _ranks(fields)
    of_context = _context(fields)
    cp = of_context.get("cp", 1)
    if ranks and (min(tp, cp, pp) < 1 or ranks % (tp * cp * pp)):
        text = sentence("tp={tp} × pp={pp} does not divide the {ranks} ranks of torchrun", tp=tp, pp=pp, ranks=ranks)
        if cp != 1:
            text = sentence(
                "tp={tp} × cp={cp} × pp={pp} does not divide the {ranks} ranks of torchrun", tp=tp, cp=cp, pp=pp, ranks=ranks
            )
        raise RequestError(text)
    dp = ranks // (tp * cp * pp) if ranks else 1
    values: Values = {"dp": dp, "tp": tp, "pp": pp, **of_context, **expert_layout(fields, tp, dp)}
    parallel = _is_set(fields, "sequence_parallel") and tp > 1  # Megatron-LM turns it off without tp
    values |= {"sequence_parallel": parallel, **_recompute(fields, remarks)}
    sharded = fields.one_of("data_parallel_sharding_strategy", _ZERO)
    states = _is_set(fields, "use_distributed_optimizer")
    values["zero"] = (sharded if _is_set(fields, "use_megatron_fsdp") else int(states)) if values["dp"] * cp > 1 else 0
    if "num_distributed_optimizer_instances" in fields:
        groups = fields.whole("num_distributed_optimizer_instances")
        values |= in_groups("--num-distributed-optimizer-instances", groups, values, groups, remarks)
    counts = _chunks(fields, model.layers, pp)
    if len(counts) > pp:
        values |= {"chunks": len(counts) // pp, "schedule": "interleaved"}
    if len({*counts}) > 1:
        values["split"] = counts
    return LayoutSpec.model_validate(values), remarks


def _ranks(fields: Fields) -> tuple[int, list[Sentence]]:
    """The number of ranks that torchrun starts. 0 if it is not said."""
    each = next((fields.get(name) for name in ("nproc_per_node", "gpus_per_node") if name in fields), None)
    nodes = fields.get("nnodes") if "nnodes" in fields else 1
    for name in ("nproc_per_node", "nnodes"):
        fields.get(name)
    if isinstance(each, int) and isinstance(nodes, int) and not isinstance(each, bool) and each > 0 and nodes > 0:
        return each * nodes, []
    return 0, [sentence("the number of ranks is not in the file, so dp is 1")]


def _chunks(fields: Fields, layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each chunk: of all stages, then of all once more."""
    text = fields.get("pipeline_model_parallel_layout")
    if isinstance(text, str):
        counts = tuple(part.count("t") for part in text.split("|"))
        if len(counts) % max(pp, 1) or sum(counts) != layers:
            raise RequestError(sentence("--pipeline-model-parallel-layout {text} is not understood", text=brief(text)))
        return counts
    each = fields.get("num_layers_per_virtual_pipeline_stage")
    virtual = fields.get("num_virtual_stages_per_pipeline_rank")
    if virtual is not None:
        chunks = pp * fields.whole("num_virtual_stages_per_pipeline_rank")
    elif each is not None:
        chunks = layers // max(1, fields.whole("num_layers_per_virtual_pipeline_stage"))
    else:
        return (0,) * max(pp, 1)
    return (1,) * max(chunks, pp, 1)


def _recompute(fields: Fields, remarks: list[Sentence]) -> Values:
    kind = _kind_of_recompute(fields, remarks)
    if kind == "full" and fields.get("recompute_method") == "block":
        count = fields.whole("recompute_num_layers")  # Megatron-LM demands it too
        return {"recompute": kind, "recompute_layers": count} if count else {"recompute": "none"}
    return {"recompute": kind}


def _kind_of_recompute(fields: Fields, remarks: list[Sentence]) -> str:
    granularity, modules = fields.get("recompute_granularity"), fields.get("recompute_modules") or ["core_attn"]
    method, count = fields.get("recompute_method"), fields.get("recompute_num_layers")
    if granularity == "full":
        if method not in ("uniform", "block") or (method == "uniform" and count not in (None, 1)):
            text = sentence(
                "--recompute-method {method} of {count} layers is left out: every layer is recomputed here, each on its own",
                method=brief(method),
                count=1 if count is None else brief(count),
            )
            remarks.append(text)
        return "full"
    if granularity is None and not _is_set(fields, "recompute_activations"):
        return "none"
    known = [name for name in modules if name in _RECOMPUTED]
    if len(known) < len(modules):
        raise RequestError(
            sentence("--recompute-modules {modules} has parts that are not recomputed here; {known} are", modules=brief(modules),
                     known=", ".join(_RECOMPUTED))
        )  # fmt: skip
    return "+".join(known)


def _workload(fields: Fields, layout: LayoutSpec) -> tuple[WorkloadSpec, list[Sentence]]:
    each = fields.whole("micro_batch_size")
    values: Values = {"microbatch_size": each, "microbatches": 1}  # Megatron-LM's usual global batch: micro batch × dp
    remarks: list[Sentence] = []
    if "global_batch_size" in fields:
        batch = fields.whole("global_batch_size")
        if each < 1 or batch % (each * layout.dp):
            text = sentence(
                "--global-batch-size {batch} is not a multiple of {each} × dp={dp}", batch=batch, each=each, dp=layout.dp
            )
            raise RequestError(text)
        values["microbatches"] = batch // (each * layout.dp)
    if "train_iters" in fields:
        values["steps"] = fields.whole("train_iters")
        if values["steps"] > _most("steps"):
            del values["steps"]
            remarks.append(sentence("--train-iters is left out: runs here have at most {most} steps", most=_most("steps")))
    if "lr" in fields:
        values["learning_rate"] = fields.number("lr")
    values["optimizer"] = fields.one_of("optimizer", _OPTIMIZERS)
    if values["optimizer"] == "sgd":
        values["momentum"] = fields.number("sgd_momentum")
    fields.get("sgd_momentum")
    if _is_set(fields, "fp16"):
        remarks.append(sentence("--fp16 is taken as bf16, which has the same size"))
    in_fp32 = _is_set(fields, "accumulate_allreduce_grads_in_fp32")
    if _is_set(fields, "bf16") or _is_set(fields, "fp16"):
        # Megatron-LM turns accumulation in fp32 on under --bf16 alone.
        reduced = _is_set(fields, "grad_reduce_in_bf16") or (_is_set(fields, "fp16") and not in_fp32)
        values |= {"precision": "bf16", "accumulate": "bf16" if reduced else "fp32"}
        aware = _is_set(fields, "use_precision_aware_optimizer")
        values["bf16_optimizer"] = aware and fields.get("exp_avg_dtype") == "bf16"
        if values["bf16_optimizer"]:
            remarks.append(sentence("Megatron-LM keeps an fp32 copy of the parameters beside states in bf16; here there is none"))
    if "fp8_format" in fields:
        value, precision = brief(fields.get("fp8_format")), values.get("precision", "fp32")
        remarks.append(
            sentence("--fp8-format {value} is left out: the precision is {precision}", value=value, precision=precision)
        )
    values["attention"] = "written" if fields.get("attention_backend") in ("unfused", "local") else "fused"
    values["seed"] = fields.whole("seed")
    remarks += _dropout(fields)
    return WorkloadSpec.model_validate(values), remarks


def _dropout(fields: Fields) -> Iterator[Sentence]:
    """Both are 0.1 unless the arguments say otherwise."""
    rates = {name: fields.get(name) for name in ("attention_dropout", "hidden_dropout")}
    if any(rate != 0 for rate in rates.values()):
        values = ", ".join(f"{name}={0.1 if rate is None else brief(rate)}" for name, rate in rates.items() if rate != 0)
        yield sentence("models here have no dropout; left out: {values}", values=values)


def _most(name: str) -> int:
    return next(rule.le for rule in WorkloadSpec.model_fields[name].metadata if hasattr(rule, "le"))


def _is_set(fields: Fields, name: str) -> bool:
    return fields.get(name) is True
