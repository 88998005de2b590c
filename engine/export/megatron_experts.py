"""Megatron-LM's arguments of experts and of latent attention, at the release that `engine.export.megatron` names."""

from __future__ import annotations

from collections.abc import Iterator

from engine.spec import ModelSpec, RunSpec

Argument = tuple[str, object]
_BALANCING = {"none": "none", "loss": "aux_loss", "bias": "none"}


def latents(model: ModelSpec) -> Iterator[Argument]:
    """Its norms of latents are there with --qk-layernorm alone, and its angles are YaRN's unless they are told otherwise."""
    if not model.latent:
        return
    yield "--multi-latent-attention", True
    yield "--qk-layernorm", True
    if model.q_lora_rank:
        yield "--q-lora-rank", model.q_lora_rank
    yield "--kv-lora-rank", model.kv_lora_rank
    yield "--qk-head-dim", model.unturned
    yield "--qk-pos-emb-head-dim", model.rotated
    yield "--v-head-dim", model.value_width
    yield "--rope-type", "rope"


def experts(model: ModelSpec) -> Iterator[Argument]:
    if not model.experts:
        return
    parts = model.parts
    yield "--num-experts", model.experts
    yield "--moe-ffn-hidden-size", model.expert_width
    yield "--moe-router-topk", model.expert_choices
    yield "--moe-router-score-function", parts.router
    if parts.router == "softmax" and not parts.normalized_router:
        yield "--moe-router-pre-softmax", True  # over all experts, not over those that are chosen
    if model.expert_groups:
        yield "--moe-router-num-groups", model.expert_groups
        yield "--moe-router-group-topk", model.chosen_groups or 1
    if model.router_scale != 1:
        yield "--moe-router-topk-scaling-factor", model.router_scale
    yield "--moe-router-load-balancing-type", _BALANCING[parts.balancing]
    if parts.balancing == "loss":
        yield "--moe-aux-loss-coeff", model.rate_of_balancing
    elif parts.balancing == "bias":
        yield "--moe-router-enable-expert-bias", True
        yield "--moe-router-bias-update-rate", model.rate_of_balancing
    if model.shared_ffn:
        yield "--moe-shared-expert-intermediate-size", model.shared_ffn
    if model.expert_layers < model.layers:
        yield "--moe-layer-freq", "'[" + ",".join(str(int(model.has_experts(layer))) for layer in range(model.layers)) + "]'"
    if model.capacity_factor:
        yield "--moe-expert-capacity-factor", model.capacity_factor
    yield "--moe-token-dispatcher-type", "alltoall"
    yield "--moe-grouped-gemm", True


def experts_layout(spec: RunSpec) -> Iterator[Argument]:
    if spec.model.experts:
        yield "--expert-model-parallel-size", spec.layout.ep
        yield "--expert-tensor-parallel-size", spec.layout.tp


def experts_refusal(spec: RunSpec) -> Iterator[str]:
    """Why it cannot train them in this layout."""
    if spec.model.experts and spec.layout.tp > 1 and not spec.layout.sequence_parallel:
        yield "Megatron-LM trains experts with tensor parallelism under sequence parallelism alone, and this layout has none"


def experts_differences(model: ModelSpec) -> Iterator[str]:
    if not model.experts:
        return
    parts = model.parts
    if parts.mlp_bias:
        yield "its experts have biases, as its MLP has, and cannot be grouped then; here they have none"
    if parts.router == "sigmoid" and not parts.normalized_router and model.expert_choices > 1:
        yield "its router divides scores of a sigmoid by their sum; here they are not divided"
