"""Hugging Face: the model as a `config.json`, for transformers 5.24 and programs that read its files.

Of the model types that `engine.imports.huggingface` reads, the first that is read as the same model is written. If there is none,
it is the one with the fewest differences, and the file lists them. Models that transformers 5.24 made of the files of the
catalog's decoders had as many parameters as here, to the last one.
"""

from __future__ import annotations

import json
from typing import Any

from engine.imports import huggingface
from engine.imports.model_types import MODEL_TYPES
from engine.spec import ModelSpec, RequestError, RunSpec

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
    "opt": "OPTForCausalLM",
    "bloom": "BloomForCausalLM",
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "xlnet": "XLNetLMHeadModel",
}
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_NO_DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "opt": ("dropout",),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
    "xlnet": ("dropout",),
}  # entries that are not 0 unless a file says so


def config(spec: RunSpec) -> str:
    """The text of a `config.json`. JSON has no comments, so they are in an entry that transformers ignores."""
    kind, differences = _nearest(spec.model)
    if kind == "roberta":
        differences.append("the embedding has one row of segments in this file, and none here")
    differences += [f"the model has {what} in this file, and not here" for what in MODEL_TYPES[kind].besides]
    entries: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind, **_written(kind, spec.model)}
    entries |= {"torch_dtype": _DTYPES[spec.workload.precision], **dict.fromkeys(_NO_DROPOUT.get(kind, ()), 0.0)}
    if differences:
        entries["_comments"] = [f"Not the same: {text}." for text in differences]
    return json.dumps(entries, indent=2) + "\n"


def _written(kind: str, model: ModelSpec) -> dict[str, Any]:
    return MODEL_TYPES[kind].write(model)


def _nearest(model: ModelSpec) -> tuple[str, list[str]]:
    """The model type with the fewest differences, and these."""
    found: dict[str, list[str]] = {}
    for kind in MODEL_TYPES:
        try:
            read = huggingface.model({"model_type": kind, **_written(kind, model)}).model
        except RequestError:  # the type cannot have such sizes
            continue
        assert read is not None
        found[kind] = _differences(model, read)
        if not found[kind]:
            break
    kind = min(found, key=lambda kind: (len(found[kind]), MODEL_TYPES[kind].family != model.family))
    return kind, found[kind]


def _differences(model: ModelSpec, read: ModelSpec) -> list[str]:
    """What the model that is read has otherwise, with families seen as their parts."""
    here, there = _complete(model), _complete(read)
    return [f"{name} is {there[name]} in this file, and {here[name]} here" for name in here if here[name] != there[name]]


def _complete(model: ModelSpec) -> dict[str, Any]:
    """Sizes and parts, whatever of them is left to the family."""
    parts = {name: getattr(model.parts, name) for name in type(model.parts).__dataclass_fields__}
    sizes = {name: value for name, value in model if name not in parts and name not in ("family", "decoder_layers")}
    sizes |= {"head_dim": model.head_width, "kv_heads": model.key_heads, "ffn": model.ffn_width}
    if model.experts:
        sizes |= {"expert_ffn": model.expert_width, "experts_per_token": model.expert_choices}
        balances = model.parts.balancing != "none"
        sizes |= {"chosen_groups": model.chosen_groups or 1, "balancing_rate": model.rate_of_balancing if balances else 0.0}
    if model.latent:
        sizes |= {"qk_nope_head_dim": model.unturned, "qk_rope_head_dim": model.rotated, "v_head_dim": model.value_width}
    return sizes | parts | {"encoder_layers": model.encoder_layers}
