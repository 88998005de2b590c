"""How Hugging Face's `config.json` says what experts and what latents a model has: see `engine.imports.parts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.imports.fields import Fields, unsupported
from engine.imports.parts import Values
from engine.spec import ModelSpec

_RATE = 0.001  # of balancing, unless a model has its own


def _chosen(fields: Fields, experts: int) -> int:
    """Experts of a token; 0: as many as a model has that does not say it."""
    chosen = fields.whole("num_experts_per_tok")
    return 0 if chosen == min(2, experts) else chosen


def _some(fields: Fields, name: str) -> int:
    """A number of experts, which a model of such a type has."""
    if (experts := fields.whole(name)) < 1:
        raise unsupported(name, experts, ["1"])
    return experts


def _rate(value: float) -> float:
    return 0.0 if value == _RATE else value


@dataclass(frozen=True)
class Experts:
    """`count`, `width`: the entries of their number, and of their inner width if that is not the MLP's."""

    count: str
    width: str = ""

    def read(self, fields: Fields, model: Values) -> Values:
        experts = _some(fields, self.count)
        found: Values = {"experts": experts, "experts_per_token": _chosen(fields, experts)}
        if self.width:
            width = fields.whole(self.width)
            found["expert_ffn"] = 0 if width == model["ffn"] else width
        return found

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        entries = {self.count: model.experts, "num_experts_per_tok": model.expert_choices}
        return entries | ({self.width: model.expert_width} if self.width else {})


@dataclass(frozen=True)
class Balanced:
    """An auxiliary loss, which is added where the router's output is asked for."""

    def read(self, fields: Fields, model: Values) -> Values:
        rate = fields.get("router_aux_loss_coef")
        if not fields.get("output_router_logits") or not rate:
            return {}
        return {"balancing": "loss", "balancing_rate": _rate(fields.number("router_aux_loss_coef"))}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        on = model.parts.balancing == "loss"
        return {"output_router_logits": on} | ({"router_aux_loss_coef": model.rate_of_balancing} if on else {})


@dataclass(frozen=True)
class Interleaved:
    """Of Llama 4: every so many layers has experts, one that all tokens go to among them. The router is a sigmoid."""

    def read(self, fields: Fields, model: Values) -> Values:
        every = fields.whole("interleave_moe_layer_step")
        fields.demand("moe_layers", list(range(every - 1, model["layers"], max(1, every))))
        return {
            "router": "sigmoid", "normalized_router": False, "shared_ffn": fields.whole("intermediate_size"),
            "expert_every": 0 if every == 1 else every,
        }  # fmt: skip

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"interleave_moe_layer_step": model.expert_every or 1}


@dataclass(frozen=True)
class Deepseek:
    """Latent attention; experts in groups, with shared ones, behind dense layers. `router`: V3 has a sigmoid, and a bias."""

    router: str

    def read(self, fields: Fields, model: Values) -> Values:
        fields.demand("num_key_value_heads", model["heads"])
        fields.demand("moe_layer_freq", 1)
        experts, width = _some(fields, "n_routed_experts"), fields.whole("moe_intermediate_size")
        found: Values = {
            "experts": experts, "experts_per_token": _chosen(fields, experts),
            "expert_ffn": 0 if width == model["ffn"] else width,
            "shared_ffn": (fields.whole("n_shared_experts") if fields.get("n_shared_experts") else 0) * width,
            "dense_layers": fields.whole("first_k_dense_replace"), "router_scale": fields.number("routed_scaling_factor"),
            "router": fields.one_of("scoring_func", {self.router: self.router}),
        }  # fmt: skip
        methods = {"greedy": "", "group_limited_greedy": "groups"} if self.router == "softmax" else {"noaux_tc": "bias"}
        method = fields.one_of("topk_method", methods)
        groups, chosen = fields.get("n_group"), fields.get("topk_group")
        if method and groups not in (None, 1):
            found |= {"expert_groups": fields.whole("n_group"), "chosen_groups": 0 if chosen == 1 else fields.whole("topk_group")}
        if method == "bias":
            found["balancing"] = "bias"
        elif fields.get("aux_loss_alpha"):
            found |= {"balancing": "loss", "balancing_rate": _rate(fields.number("aux_loss_alpha"))}
        return found | _latents(fields)

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        parts, width = model.parts, model.expert_width
        method = "group_limited_greedy" if model.expert_groups else "greedy"
        method = "noaux_tc" if self.router == "sigmoid" else method
        entries: dict[str, Any] = {
            "num_key_value_heads": model.key_heads, "n_routed_experts": model.experts, "moe_intermediate_size": width,
            "num_experts_per_tok": model.expert_choices, "n_shared_experts": model.shared_ffn // width or None,
            "first_k_dense_replace": model.dense_layers, "moe_layer_freq": 1, "routed_scaling_factor": model.router_scale,
            "scoring_func": self.router, "topk_method": method, "n_group": model.expert_groups or 1,
            "topk_group": model.chosen_groups or 1,
            "aux_loss_alpha": model.rate_of_balancing if parts.balancing == "loss" else 0.0,
            "q_lora_rank": model.q_lora_rank or None, "kv_lora_rank": model.kv_lora_rank,
            "qk_nope_head_dim": model.unturned, "qk_rope_head_dim": model.rotated, "v_head_dim": model.value_width,
        }  # fmt: skip
        return entries


def _latents(fields: Fields) -> Values:
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    found: Values = {name: fields.whole(name) for name in names}
    if not found["kv_lora_rank"]:
        raise unsupported("kv_lora_rank", 0, ["512"])
    return found | {"q_lora_rank": fields.whole("q_lora_rank") if fields.get("q_lora_rank") else 0}
