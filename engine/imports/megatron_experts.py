"""Megatron-LM's arguments of experts and of latent attention. `engine.export.megatron_experts` is the inverse."""

from __future__ import annotations

import re
from typing import Any

from engine.imports.fields import Fields, brief, unsupported
from engine.imports.parts import Values
from engine.spec import RequestError, sentence

USUAL: dict[str, Any] = {
    "moe_router_topk": 2, "moe_router_score_function": "softmax", "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 0.0, "moe_router_bias_update_rate": 1e-3, "expert_model_parallel_size": 1, "kv_lora_rank": 32,
    "qk_head_dim": 128, "qk_pos_emb_head_dim": 64, "v_head_dim": 128, "rope_type": "yarn",
}  # fmt: skip
# Of kernels, logging and dispatching: they change no size.
HARMLESS = (
    "moe_grouped_gemm", "moe_permute", "moe_token_dispatcher", "moe_shared_expert_overlap", "moe_per_layer", "moe_router_fusion",
    "moe_router_dtype", "moe_use_legacy", "moe_enable_deepep", "moe_flex", "moe_z_loss", "rotary_scaling", "mscale", "beta_",
    "original_max", "moe_pad", "moe_token_drop",
)  # fmt: skip


def experts(fields: Fields, layers: int, ffn: int) -> Values:
    """Those of a model with `layers` and that inner width of its MLP, if it has any."""
    if fields.get("num_experts") is None:
        return {}
    count, chosen = fields.whole("num_experts"), fields.whole("moe_router_topk")
    width = fields.whole("moe_ffn_hidden_size") if "moe_ffn_hidden_size" in fields else ffn
    score = fields.one_of("moe_router_score_function", {"softmax": "softmax", "sigmoid": "sigmoid"})
    found: Values = {
        "experts": count, "experts_per_token": 0 if chosen == min(2, count) else chosen,
        "expert_ffn": 0 if width == ffn else width, "router": score, **_balancing(fields), **_layers(fields, layers),
    }  # fmt: skip
    # With one expert a token, it takes the softmax over all experts: that of one would be 1.
    before = fields.get("moe_router_pre_softmax") is True or (score == "softmax" and chosen == 1)
    found["normalized_router"] = not (before if score == "softmax" else chosen == 1)
    names = {"moe_router_num_groups": "expert_groups", "moe_shared_expert_intermediate_size": "shared_ffn"}
    found |= {ours: fields.whole(theirs) for theirs, ours in names.items() if theirs in fields}
    if "moe_router_group_topk" in fields:
        groups = fields.whole("moe_router_group_topk")
        found["chosen_groups"] = 0 if groups == 1 else groups
    numbers = {"moe_router_topk_scaling_factor": "router_scale", "moe_expert_capacity_factor": "capacity_factor"}
    return found | {ours: fields.number(theirs) for theirs, ours in numbers.items() if theirs in fields}


def _balancing(fields: Fields) -> Values:
    kind = fields.one_of(
        "moe_router_load_balancing_type", {"aux_loss": "loss", "seq_aux_loss": "loss", "global_aux_loss": "loss", "none": "none"}
    )
    weight, rate = fields.number("moe_aux_loss_coeff"), fields.number("moe_router_bias_update_rate")
    if fields.get("moe_router_enable_expert_bias") is True:
        return {"balancing": "bias", "balancing_rate": 0.0 if rate == 1e-3 else rate}
    if kind == "none" or not weight:
        return {}
    return {"balancing": "loss", "balancing_rate": 0.0 if weight == 1e-3 else weight}


def _layers(fields: Fields, layers: int) -> Values:
    """Which layers have experts: every so many, from the first on; or a list of 0 and 1, whose parts may be repeated."""
    text = fields.get("moe_layer_freq")
    if text in (None, 1):
        return {}
    if isinstance(text, int) and not isinstance(text, bool):
        kinds = [int(layer % max(1, text) == 0) for layer in range(layers)]
    else:
        kinds = _listed(str(text))
    for every in range(1, layers + 1):
        for dense in range(layers):
            if kinds == [int(layer >= dense and (layer + 1) % every == 0) for layer in range(layers)]:
                return {"dense_layers": dense, "expert_every": 0 if every == 1 else every}
    raise RequestError(
        sentence("--moe-layer-freq {text} has no regular order of layers with experts and without", text=brief(text))
    )


def _listed(text: str) -> list[int]:
    """([0]*3+[1]*58) as a list. Nothing is run that a file says."""
    plain = re.sub(r"[\s'\"()]", "", text)
    found: list[int] = []
    for part in plain.split("+"):
        match = re.fullmatch(r"\[([01](?:,[01])*)\](?:\*(\d{1,4}))?", part)
        if match is None:
            raise unsupported("--moe-layer-freq", text, ["([0]*3+[1]*58)"])
        found += [int(kind) for kind in match[1].split(",")] * int(match[2] or 1)
    return found


def latents(fields: Fields) -> Values:
    """Those of latent attention, if the model has it."""
    names = {
        "kv_lora_rank": "kv_lora_rank", "qk_head_dim": "qk_nope_head_dim", "qk_pos_emb_head_dim": "qk_rope_head_dim",
        "v_head_dim": "v_head_dim",
    }  # fmt: skip
    if fields.get("multi_latent_attention") is not True:
        return {}
    fields.get("rope_type")
    found: Values = {ours: fields.whole(theirs) for theirs, ours in names.items()}
    return found | ({"q_lora_rank": fields.whole("q_lora_rank")} if "q_lora_rank" in fields else {})


def expert_layout(fields: Fields, tp: int, dp: int) -> Values:
    """How many ranks share the experts. Its tp of experts is that of the other layers."""
    fields.demand("expert_tensor_parallel_size", tp)
    ep = fields.whole("expert_model_parallel_size")
    return {"ep": ep} if ep != 1 else {}
