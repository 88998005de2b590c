"""Models to run on this machine, of every family."""

from __future__ import annotations

from typing import Any

from engine.families import FamilyName
from engine.spec import TRAINED, TRAINED_NAME, ModelSpec

# With a mask token 257 values are needed. That is rounded up to a multiple of 8, so that tp up to 8 divides it.
_TINY = {"layers": 4, "hidden": 64, "heads": 4, "seq": 64}
_SMALL = {"layers": 8, "hidden": 256, "heads": 8, "seq": 128}
_WITH_MASK = 264
# The parts of DeepSeek-V3: latent attention; a dense layer first, a shared expert, groups of experts, sigmoid and bias.
_LATENTS: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_EXPERTS: dict[str, Any] = {"experts": 8, "expert_ffn": 64, "shared_ffn": 64, "dense_layers": 1, "expert_groups": 4}
_EXPERTS |= {"chosen_groups": 2, "router": "sigmoid", "router_scale": 2.5, "balancing": "bias"}


def _sizes(family: FamilyName, vocab: int = 256) -> dict[str, ModelSpec]:
    """The models of a family to run on this machine."""
    both = {"tiny": _TINY, "small": _SMALL}
    return {f"{family}-{name}": ModelSpec(family=family, vocab=vocab, **size) for name, size in both.items()}


MODELS: dict[str, ModelSpec] = {
    **_sizes("gpt"),
    TRAINED_NAME: TRAINED,
    "gpt-medium": ModelSpec(layers=12, hidden=512, heads=8, vocab=1024, seq=256),
    "gpt-tiny-moe": ModelSpec(vocab=256, experts=4, expert_ffn=128, **_TINY),
    "deepseek-tiny": ModelSpec(family="llama", vocab=256, ffn=192, **_LATENTS, **_EXPERTS, **_TINY),
    **_sizes("bert", _WITH_MASK),
    **_sizes("roberta", _WITH_MASK),
    **_sizes("transformer"),
    "t5-tiny": ModelSpec(family="t5", vocab=256, **_TINY),  # the next larger one is the released t5-small
    **_sizes("xlnet", _WITH_MASK),
    "llama-tiny": ModelSpec(family="llama", vocab=256, kv_heads=2, ffn=192, **_TINY),
    "llama-small": ModelSpec(family="llama", vocab=256, kv_heads=4, ffn=704, **_SMALL),
}
