"""Hugging Face's `config.json` as a model.

An entry that is not understood is refused if the sizes depend on it, and is otherwise named in a remark. Nothing is guessed: what
a file lacks has the usual value of its type's configuration class (`engine.imports.model_types`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.imports.fields import Fields, Imported, brief
from engine.imports.model_types import CAPS, MODEL_TYPES
from engine.imports.parts import Values
from engine.spec import ModelSpec, RequestError, Sentence, sentence

# Entries that change neither sizes nor parts: of saving, loading and generating, of initial values, and of other tasks.
_HARMLESS_NAMES = """
architectures model_type transformers_version torch_dtype dtype auto_map _name_or_path name_or_path use_cache use_return_dict
bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id decoder_start_token_id
forced_bos_token_id forced_eos_token_id prefix tokenizer_class language_model license
initializer_range initializer_factor init_std embedding_initializer_range rms_norm_eps layer_norm_eps layer_norm_epsilon
layernorm_epsilon norm_epsilon norm_eps scale_attn_weights scale_decoder_outputs
attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled attention_softmax_in_fp32
masked_softmax_fusion bias_dropout_fusion skip_bias_add skip_bias_add_qkv slow_but_exact offset_alibi pretraining_tp
cache_implementation gradient_checkpointing torchscript tf_legacy_loss use_bfloat16 pruned_heads is_encoder_decoder
id2label label2id num_labels finetuning_task problem_type task_specific_params task_params num_return_sequences
output_attentions output_hidden_states output_past return_dict return_dict_in_generate output_scores remove_invalid_values
do_sample temperature top_k top_p typical_p num_beams num_beam_groups diversity_penalty repetition_penalty length_penalty
early_stopping max_length min_length max_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
begin_suppress_tokens suppress_tokens exponential_decay_length_penalty
summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout summary_last_dropout
classifier_dropout classifier_dropout_prob start_n_top end_n_top n_ctx original_max_position_embeddings
chunk_size_feed_forward cross_attention_hidden_size tie_encoder_decoder tie_word_embeddings gradient_checkpointing_kwargs
relative_attention_max_distance reuse_len clamp_len same_length bi_data use_mems_eval use_mems_train is_decoder
directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
ep_size seq_aux no_rope_layers no_rope_layer_interval attention_chunk_size use_qk_norm attn_temperature_tuning attn_scale
floor_scale for_llm_compression experts_per_token swiglu_limit initial_context_length
dense_act_fn is_gated_act is_llama_config rope_interleaved rotary sliding_window_size _comments
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
# Entries of models whose layers are others than ours, so that the sizes would be wrong.
_EXPERTS = sentence("a mixture of experts")
_OTHER_LAYERS = {
    "num_local_experts": _EXPERTS,
    "num_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "moe_intermediate_size": _EXPERTS,
    "kv_lora_rank": sentence("latent attention"),
    "q_lora_rank": sentence("latent attention"),
    "mamba_d_state": sentence("a state space"),
    "linear_num_value_heads": sentence("linear attention"),
}
_KNOWN_WITH_EXPERTS = {
    "num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank",
}  # fmt: skip
# Entries that change what is computed, and no size.
_LEFT_OUT = {
    "rope_scaling": sentence("{name} is left out: it changes the angles of rotary positions, and no size", name="rope_scaling"),
    "attn_logit_softcapping": sentence("attn_logit_softcapping is left out: scores of attention are not capped"),
    "final_logit_softcapping": sentence("final_logit_softcapping is left out: logits are not capped"),
    "quantization_config": sentence("quantization_config is left out: the precision is chosen for the run"),
    "num_nextn_predict_layers": sentence("num_nextn_predict_layers is left out: one token is predicted, not more (MTP)"),
    "mem_len": sentence("mem_len is left out: there is no memory of the text before"),
}
_DROPOUTS = (
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "dropout_rate", "layerdrop",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout",
)  # fmt: skip
_LONG = 8192  # tokens; most models are trained on no longer sequences from the start


def model(entries: Mapping[str, Any]) -> Imported:
    """The model of a `config.json`. Raises `RequestError` for another type, and for parts that there are not."""
    remarks: list[Sentence] = []
    kind = entries.get("model_type")
    if isinstance(inner := entries.get("text_config"), dict):
        remarks.append(
            sentence("the text model of {type} is taken, in text_config; images and sound are left out", type=brief(kind))
        )
        entries = {"tie_word_embeddings": entries.get("tie_word_embeddings"), **inner}
        kind = entries.get("model_type")
    if kind is None:
        raise RequestError(sentence("there is no model_type, which names the kind of model"))
    known_type = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    for name, what in _OTHER_LAYERS.items():
        if entries.get(name) and not (known_type is not None and known_type.experts and name in _KNOWN_WITH_EXPERTS):
            text = sentence(
                "{name}={value} means {what}, and models of the type {type} have none here",
                name=name,
                value=brief(entries[name]),
                what=what,
                type=brief(kind),
            )
            raise RequestError(text)
    if known_type is None:
        known = ", ".join(MODEL_TYPES)
        raise RequestError(sentence("model_type={kind} is not known here; {known} are", kind=brief(kind), known=known))
    fields = Fields(entries, known_type.usual)
    values = known_type.read(fields)
    found = _plain(values)
    if "seq" in values and not any(name in fields for name in _names_of_seq(kind)):
        remarks.append(sentence("the file has no sequence length; {seq} tokens are taken", seq=found.seq))
    remarks += _missing_caps(entries) if kind == "gemma2" else []
    remarks += [sentence("of the type {type} are left out: {what}", type=kind, what=what) for what in known_type.besides]
    return Imported(found, (*remarks, *_remarks(fields, found)), seq=_LONG if _is_long(found) else None)


def _names_of_seq(kind: Any) -> list[str]:
    return MODEL_TYPES[kind].sizes.get("seq", "").split("|")


def _plain(values: Values) -> ModelSpec:
    """The model. Sizes that follow from others are 0, so that equal models have equal specs."""
    found = ModelSpec.model_validate(values)
    follows = {
        "head_dim": found.head_dim * found.heads == found.hidden,
        "kv_heads": found.kv_heads == found.heads,
        "ffn": found.ffn == 4 * found.hidden,
    }
    return ModelSpec.model_validate(values | {name: 0 for name, does in follows.items() if does})


def _remarks(fields: Fields, found: ModelSpec) -> Iterator[Sentence]:
    """What the file says and is not in the model."""
    yield from _scale_of_scores(fields, found)
    yield from _angles(fields, found)
    unread = {name: value for name, value in fields.unread().items() if value not in (False, 0, [], {})}
    if dropped := [name for name in _DROPOUTS if name in unread]:
        values = ", ".join(f"{name}={brief(unread[name])}" for name in dropped)
        yield sentence("models here have no dropout; left out: {values}", values=values)
    for name, value in unread.items():
        if name in _LEFT_OUT:
            yield _LEFT_OUT[name]
        elif name not in _HARMLESS and name not in _DROPOUTS:
            yield sentence("{name}={value} is not understood, and left out", name=brief(name), value=brief(value))
    if _is_long(found):
        yield sentence(
            "sequences have {seq} tokens, the most that the model takes; training often has shorter ones, so plans of it take "
            "{usual} tokens where no other length is chosen",
            seq=found.seq,
            usual=_LONG,
        )


def _is_long(model: ModelSpec) -> bool:
    """Whether training usually has shorter sequences. A table of learned positions has the size that the sequence has."""
    return model.seq > _LONG and model.parts.position != "learned"


def _missing_caps(entries: Mapping[str, Any]) -> list[Sentence]:
    """Of a Gemma 2, which has them unless its file says null."""
    return [
        sentence("{name} is not in the file, and then it is {usual}: {told}", name=name, usual=usual, told=_LEFT_OUT[name])
        for name, usual in CAPS.items()
        if name not in entries
    ]


def _scale_of_scores(fields: Fields, found: ModelSpec) -> Iterator[Sentence]:
    scale = fields.get("query_pre_attn_scalar")
    if scale not in (None, found.head_width):
        yield sentence(
            "query_pre_attn_scalar={scale} is left out: scores of attention are divided by the root of a head's width, {width}",
            scale=brief(scale),
            width=found.head_width,
        )


def _angles(fields: Fields, found: ModelSpec) -> Iterator[Sentence]:
    """Of rotary positions: files of version 5 of transformers have them in one entry, or in one for each kind of layer."""
    entries = fields.get("rope_parameters")
    given = entries if isinstance(entries, dict) else {}
    for part in (given, given.get("full_attention"), given.get("sliding_attention")):
        kind = part.get("rope_type") if isinstance(part, dict) else None
        if kind not in (None, "default"):
            name = f"rope_type={brief(kind)}"
            yield sentence("{name} is left out: it changes the angles of rotary positions, and no size", name=name)
    windowed = given.get("sliding_attention")
    local = windowed.get("rope_theta") if isinstance(windowed, dict) else None
    if local is None:
        local = fields.get("rope_local_base_freq")
    if found.parts.position == "rotary" and local not in (None, found.rotary_local_base or found.angle_base):
        yield sentence(
            "the base {base} of layers with a window is left out: all layers have one base of rotary positions", base=brief(local)
        )
