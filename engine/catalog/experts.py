"""Released models whose attention or experts are of another kind than those of `engine.catalog.released`, by their maker.

Sizes and parts are those of each checkpoint's `config.json`. `tests/engine/published_counts.py` has the numbers of parameters.
"""

from __future__ import annotations

from typing import Any

from engine.spec import ModelSpec

_LATENTS: dict[str, Any] = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def _deepseek(layers: int, hidden: int, ffn: int, heads: int, vocab: int, **parts: Any) -> ModelSpec:
    sizes = {"layers": layers, "hidden": hidden, "ffn": ffn, "heads": heads, "vocab": vocab, "seq": 4096}
    return ModelSpec(family="llama", rotary_base=10_000, **_LATENTS, **sizes, **parts)


DEEPSEEK: dict[str, ModelSpec] = {
    # DeepSeek-AI 2024, DeepSeek-V2, section 3.1.2 and appendix B. Its losses that keep devices alike are left out.
    "deepseek-v2": _deepseek(
        60, 5120, 12288, 128, 102400, q_lora_rank=1536, experts=160, experts_per_token=6, expert_ffn=1536, shared_ffn=3072,
        dense_layers=1, expert_groups=8, chosen_groups=3, router_scale=16, normalized_router=False, balancing="loss",
    ),
    "deepseek-v2-lite": _deepseek(
        27, 2048, 10944, 16, 102400, experts=64, experts_per_token=6, expert_ffn=1408, shared_ffn=2816, dense_layers=1,
        normalized_router=False, balancing="loss",
    ),
    # DeepSeek-AI 2024, DeepSeek-V3, section 4.2, without the module that predicts one more token (MTP, section 2.2).
    "deepseek-v3": _deepseek(
        61, 7168, 18432, 128, 129280, q_lora_rank=1536, experts=256, experts_per_token=8, expert_ffn=2048, shared_ffn=2048,
        dense_layers=3, expert_groups=8, chosen_groups=4, router="sigmoid", router_scale=2.5, balancing="bias",
    ),
}  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> ModelSpec:
    return ModelSpec(
        family="llama", layers=layers, hidden=2880, ffn=2880, heads=64, kv_heads=8, head_dim=64, vocab=201088, seq=4096,
        rotary_base=150_000, attention_bias="all", window=128, global_every=2, experts=experts, experts_per_token=4,
    )  # fmt: skip


# OpenAI 2025, gpt-oss-120b & gpt-oss-20b model card, section 2. Left out are the sinks of attention, one number a head, the
# biases of router and experts, and the bounds of their gate.
GPT_OSS: dict[str, ModelSpec] = {"gpt-oss-20b": _gpt_oss(24, 32), "gpt-oss-120b": _gpt_oss(36, 128)}

# The text model of Llama 4 Scout (Meta 2025, its model card). All layers have rotary positions here: there, every fourth has
# none, and the others see chunks of 8,192 tokens, as long as these sequences. Its norms of queries and keys learn nothing, and
# are left out. The weight of a token's expert multiplies what comes out of it here, and there what goes into it.
LLAMA4: dict[str, ModelSpec] = {
    "llama4-scout": ModelSpec(
        family="llama", layers=48, hidden=5120, heads=40, kv_heads=8, vocab=202048, seq=8192, ffn=16384, experts=16,
        experts_per_token=1, expert_ffn=8192, shared_ffn=8192, router="sigmoid", normalized_router=False,
    ),
}  # fmt: skip
