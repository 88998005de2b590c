"""Released language models, by their maker. Sizes and parts are those of each checkpoint's `config.json` on Hugging Face.

Sequences are as long as in the first stage of pre-training, where the report says so. `tests/engine/test_catalog.py` lists the
number of parameters of each, with its source.
"""

from __future__ import annotations

from typing import Any

from engine.families import ROTARY_BASE
from engine.spec import ModelSpec


def _decoder(layers: int, hidden: int, ffn: int, heads: int, key_heads: int, vocab: int, seq: int, **parts: Any) -> ModelSpec:
    """A model with the parts of a llama, except for `parts`. Sizes that follow from others are 0."""
    base = parts.pop("rotary_base", ROTARY_BASE)
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "vocab": vocab, "seq": seq}
    sizes |= {"ffn": 0 if ffn == 4 * hidden else ffn, "kv_heads": 0 if key_heads == heads else key_heads}
    sizes |= {"rotary_base": 0 if base == ROTARY_BASE else base}
    return ModelSpec(family="llama", **sizes, **parts)


def _llama2(layers: int, hidden: int, ffn: int, heads: int, key_heads: int) -> ModelSpec:
    return _decoder(layers, hidden, ffn, heads, key_heads, 32000, 4096, rotary_base=10_000)


def _llama3(layers: int, hidden: int, ffn: int, heads: int, **parts: Any) -> ModelSpec:
    return _decoder(layers, hidden, ffn, heads, 8, 128256, 8192, **parts)


META: dict[str, ModelSpec] = {
    # Llama team 2024, The Llama 3 Herd of Models, table 3; the vocabulary is that of the released models, 256 special tokens
    # included; sequences of 8,192 as in the first stage of pre-training (section 3.4.1).
    "llama3-8b": _llama3(32, 4096, 14336, 32),
    "llama3-70b": _llama3(80, 8192, 28672, 64),
    "llama3-405b": _llama3(126, 16384, 53248, 128),
    "llama3.2-1b": _llama3(16, 2048, 8192, 32, tied=True),
    "llama3.2-3b": _llama3(28, 3072, 8192, 24, tied=True),
    # Touvron et al. 2023, Llama 2, table 1.
    "llama2-7b": _llama2(32, 4096, 11008, 32, 32),
    "llama2-13b": _llama2(40, 5120, 13824, 40, 40),
    "llama2-70b": _llama2(80, 8192, 28672, 64, 8),
}


def _qwen3_experts(layers: int, hidden: int, heads: int, width: int) -> ModelSpec:
    """128 experts, of which a token goes to eight, and four heads of keys. The MLP, which no layer has, is 3 × hidden wide."""
    return _decoder(
        layers, hidden, 3 * hidden, heads, 4, 151936, 4096, rotary_base=1_000_000, qk_norm="head", head_dim=128,
        experts=128, experts_per_token=8, expert_ffn=width,
    )  # fmt: skip


def _qwen25(layers: int, hidden: int, ffn: int, heads: int, key_heads: int, tied: bool = False) -> ModelSpec:
    # The small ones have the vocabulary without the rows that pad it for large ones.
    vocab = 151936 if tied else 152064
    return _decoder(
        layers, hidden, ffn, heads, key_heads, vocab, 4096, rotary_base=1_000_000, attention_bias="qkv", tied=tied
    )  # fmt: skip


def _qwen3(layers: int, hidden: int, ffn: int, heads: int, tied: bool = False) -> ModelSpec:
    width = 0 if heads * 128 == hidden else 128
    return _decoder(
        layers, hidden, ffn, heads, 8, 151936, 4096, rotary_base=1_000_000, qk_norm="head", head_dim=width, tied=tied
    )  # fmt: skip


QWEN: dict[str, ModelSpec] = {
    # Qwen team 2025, Qwen3 technical report, table 1; section 3.2 for the length of sequences.
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32),
    "qwen3-14b": _qwen3(40, 5120, 17408, 40),
    "qwen3-32b": _qwen3(64, 5120, 25600, 64),
    # Qwen team 2024, Qwen2.5 technical report, table 1; section 3.3 for the length of sequences.
    "qwen2.5-0.5b": _qwen25(24, 896, 4864, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen25(28, 1536, 8960, 12, 2, tied=True),
    "qwen2.5-3b": _qwen25(36, 2048, 11008, 16, 2, tied=True),
    "qwen2.5-7b": _qwen25(28, 3584, 18944, 28, 4),
    "qwen2.5-14b": _qwen25(48, 5120, 13824, 40, 8),
    "qwen2.5-32b": _qwen25(64, 5120, 27648, 40, 8),
    "qwen2.5-72b": _qwen25(80, 8192, 29568, 64, 8),
    # Qwen team 2025, Qwen3 Technical Report, table 2.
    "qwen3-30b-a3b": _qwen3_experts(48, 2048, 32, 768),
    "qwen3-235b-a22b": _qwen3_experts(94, 4096, 64, 1536),
}


def _gemma(layers: int, hidden: int, ffn: int, heads: int, key_heads: int, vocab: int, seq: int, **parts: Any) -> ModelSpec:
    gemma = {"inner": "geglu", "placement": "both", "scaled_embedding": True, "tied": True}
    return _decoder(layers, hidden, ffn, heads, key_heads, vocab, seq, **gemma, **parts)


def _gemma2(layers: int, hidden: int, ffn: int, heads: int, key_heads: int, width: int) -> ModelSpec:
    more = {"head_dim": width, "rotary_base": 10_000, "window": 4096, "global_every": 2}
    return _gemma(layers, hidden, ffn, heads, key_heads, 256000, 8192, **more)


def _gemma3(
    layers: int, hidden: int, ffn: int, heads: int, key_heads: int, width: int = 256, vocab: int = 262208, window: int = 1024
) -> ModelSpec:
    more: dict[str, Any] = {
        "head_dim": width,
        "rotary_base": 1_000_000,
        "rotary_local_base": 10_000,
        "window": window,
        "global_every": 6,
    }
    more |= {"qk_norm": "head"}
    return _gemma(layers, hidden, ffn, heads, key_heads, vocab, 32768, **more)


def _t5(layers: int, hidden: int, ffn: int, heads: int, width: int = 64, **parts: Any) -> ModelSpec:
    """`layers`: of the encoder, and as many of the decoder. The vocabulary has 28 rows that are no token, to be 251 × 128."""
    sizes = {"ffn": 0 if ffn == 4 * hidden else ffn, "head_dim": 0 if width * heads == hidden else width}
    return ModelSpec(family="t5", layers=2 * layers, hidden=hidden, heads=heads, vocab=32128, seq=512, **sizes, **parts)


def _t5_v11(layers: int, hidden: int, ffn: int, heads: int) -> ModelSpec:
    return _t5(layers, hidden, ffn, heads, inner="geglu", tied=False, scaled_output=False)


GOOGLE: dict[str, ModelSpec] = {
    # Gemma team 2025, Gemma 3 technical report, tables 1 and 2, section 2.1: the models of text. 262,144 tokens; those that see
    # images too have 64 rows more.
    "gemma3-1b": _gemma3(26, 1152, 6912, 4, 1, vocab=262144, window=512),
    "gemma3-4b": _gemma3(34, 2560, 10240, 8, 4),
    "gemma3-12b": _gemma3(48, 3840, 15360, 16, 8),
    "gemma3-27b": _gemma3(62, 5376, 21504, 32, 16, width=128),
    # Gemma team 2024, Gemma 2, table 1. Neither scores nor logits are capped here.
    "gemma2-2b": _gemma2(26, 2304, 9216, 8, 4, 256),
    "gemma2-9b": _gemma2(42, 3584, 14336, 16, 8, 256),
    "gemma2-27b": _gemma2(46, 4608, 36864, 32, 16, 128),
    # Raffel et al. 2020, T5, section 3.7. Heads of 3B and 11B are 128 wide.
    "t5-small": _t5(6, 512, 2048, 8),
    "t5-base": _t5(12, 768, 3072, 12),
    "t5-large": _t5(24, 1024, 4096, 16),
    "t5-3b": _t5(24, 1024, 16384, 32, 128),
    "t5-11b": _t5(24, 1024, 65536, 128, 128),
    # Version 1.1 of the checkpoints, which Flan-T5 has too.
    "t5-v1.1-small": _t5_v11(8, 512, 1024, 6),
    "t5-v1.1-base": _t5_v11(12, 768, 2048, 12),
    "t5-v1.1-large": _t5_v11(24, 1024, 2816, 16),
    "t5-v1.1-xl": _t5_v11(24, 2048, 5120, 32),
    "t5-v1.1-xxl": _t5_v11(24, 4096, 10240, 64),
}

MISTRAL: dict[str, ModelSpec] = {
    # Jiang et al. 2023, Mistral 7B, table 1. Version 0.3 has 768 more tokens, and no window.
    "mistral-7b": _decoder(32, 4096, 14336, 32, 8, 32000, 8192, rotary_base=10_000, window=4096),
    "mistral-7b-v0.3": _decoder(32, 4096, 14336, 32, 8, 32768, 8192, rotary_base=1_000_000),
    # Jiang et al. 2024, Mixtral of Experts, table 1.
    "mixtral-8x7b": _decoder(32, 4096, 14336, 32, 8, 32000, 4096, rotary_base=1_000_000, experts=8),
    "mixtral-8x22b": _decoder(56, 6144, 16384, 48, 8, 32000, 4096, rotary_base=1_000_000, experts=8),
}

MICROSOFT: dict[str, ModelSpec] = {
    # Abdin et al. 2024, Phi-4 technical report, section 3.
    "phi4": _decoder(40, 5120, 17920, 40, 10, 100352, 4096, rotary_base=250_000),
    # Abdin et al. 2024, Phi-3 technical report, section 2; windows as in the checkpoints for 4,096 tokens.
    "phi3-mini": _decoder(32, 3072, 8192, 32, 32, 32064, 4096, rotary_base=10_000, window=2047),
    "phi3-medium": _decoder(40, 5120, 17920, 40, 10, 32064, 4096, rotary_base=10_000, window=2047),
    # Javaheripi et al. 2023, Phi-2.
    "phi2": ModelSpec(
        layers=32, hidden=2560, heads=32, vocab=51200, seq=2048, position="rotary", rotary_width=32, rotary_base=10_000,
        parallel="one_norm", tied=False, output_bias=True,
    ),
}  # fmt: skip


def _olmo2(layers: int, hidden: int, ffn: int, heads: int, key_heads: int) -> ModelSpec:
    return _decoder(layers, hidden, ffn, heads, key_heads, 100352, 4096, placement="output", qk_norm="full")


def _smollm2(layers: int, hidden: int, ffn: int, heads: int, key_heads: int, base: int) -> ModelSpec:
    return _decoder(layers, hidden, ffn, heads, key_heads, 49152, 2048, rotary_base=base, tied=True)


OPEN: dict[str, ModelSpec] = {
    # OLMo team 2025, 2 OLMo 2 Furious, table 1.
    "olmo2-1b": _olmo2(16, 2048, 8192, 16, 16),
    "olmo2-7b": _olmo2(32, 4096, 11008, 32, 32),
    "olmo2-13b": _olmo2(40, 5120, 13824, 40, 40),
    "olmo2-32b": _olmo2(64, 5120, 27648, 40, 8),
    # Ben Allal et al. 2025, SmolLM2, section 4.
    "smollm2-135m": _smollm2(30, 576, 1536, 9, 3, 100_000),
    "smollm2-360m": _smollm2(32, 960, 2560, 15, 5, 100_000),
    "smollm2-1.7b": _smollm2(24, 2048, 8192, 32, 32, 130_000),
    # Black et al. 2022, GPT-NeoX-20B, table 1: rotary positions in a quarter of each head, attention and MLP in parallel.
    "gpt-neox-20b": ModelSpec(
        layers=44, hidden=6144, heads=64, vocab=50432, seq=2048, position="rotary", rotary_width=24, rotary_base=10_000,
        parallel="two_norms", tied=False,
    ),
}  # fmt: skip


def _falcon(layers: int, hidden: int, heads: int, key_heads: int, parallel: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": key_heads, "vocab": 65024, "seq": 2048, "inner": "gelu"}
        | {"position": "rotary", "rotary_base": 10_000, "parallel": parallel, "attention_bias": "none", "mlp_bias": False}
    )


def _opt(layers: int, hidden: int, heads: int) -> ModelSpec:
    """Its rows of positions begin at 2."""
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, vocab=50272, seq=2048, inner="relu", spare_positions=2)


def _bloom(layers: int, hidden: int, heads: int) -> ModelSpec:
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, vocab=250880, seq=2048, position="alibi", embedding_norm=True)


OTHERS: dict[str, ModelSpec] = {
    # Almazrouei et al. 2023, The Falcon Series, table 15. 7B has one head of keys, and one norm for attention and MLP.
    "falcon-7b": _falcon(32, 4544, 71, 1, "one_norm"),
    "falcon-40b": _falcon(60, 8192, 128, 8, "two_norms"),
    "falcon-180b": _falcon(80, 14848, 232, 8, "two_norms"),
    # Zhang et al. 2022, OPT, table 1; without 350m, whose embedding is narrower than its layers.
    "opt-125m": _opt(12, 768, 12),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "opt-175b": _opt(96, 12288, 96),
    # Scao et al. 2022, BLOOM, table 3.
    "bloom-560m": _bloom(24, 1024, 16),
    "bloom-7b": _bloom(30, 4096, 32),
    "bloom-176b": _bloom(70, 14336, 112),
}
