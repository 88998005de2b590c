"""The model types of Hugging Face's transformers that are understood: for each its names of sizes, and how it chooses parts.

Names and usual values are those of the configuration classes of transformers 5.24 (`src/transformers/models/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.families import BUCKETS, FARTHEST, FamilyName
from engine.imports.expert_parts import Balanced, Deepseek, Experts, Interleaved
from engine.imports.fields import Fields
from engine.imports.own_parts import T5, Falcon, LocalBase, Opt, Roberta, Uncapped
from engine.imports.parts import TIED, Activation, Always, Demanded, Part, Rotary, Switch, Values, Window
from engine.spec import ModelSpec, Sentence, sentence

CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # of Gemma 2, in a file that does not name them


@dataclass(frozen=True)
class ModelType:
    family: FamilyName
    sizes: Mapping[str, str]  # fields of `ModelSpec` → the names of their entries; a bar is between names for the same
    parts: tuple[Part, ...]  # read in this order
    usual: Mapping[str, Any] = field(default_factory=dict)  # of entries that files of this type may lack
    optional: tuple[str, ...] = ()  # sizes that may be missing: then they are 0, as in `ModelSpec`
    seq: int = 0  # the sequence length if the file has none
    # What models of this type have and models here have not. Reading a file says so, and a file that is written has it.
    besides: tuple[Sentence, ...] = ()
    experts: bool = False  # its entries of experts and latents are understood

    def read(self, fields: Fields) -> Values:
        """Raises `RequestError`."""
        model: Values = {"family": self.family}
        for ours, theirs in self.sizes.items():
            named = [name for name in theirs.split("|") if fields.get(name) is not None]
            if named or (ours not in self.optional and not (ours == "seq" and self.seq)):
                model[ours] = fields.whole(named[0] if named else theirs.split("|")[0])
        model.setdefault("seq", self.seq)
        for part in self.parts:
            model |= part.read(fields, model)
        return model

    def write(self, model: ModelSpec) -> dict[str, Any]:
        given = {"head_dim": model.head_width, "kv_heads": model.key_heads, "ffn": model.ffn_width}
        entries = {theirs.split("|")[0]: given.get(ours, getattr(model, ours)) for ours, theirs in self.sizes.items()}
        for part in self.parts:
            entries |= part.write(model)
        return entries


def _sizes(**others: str) -> dict[str, str]:
    usual = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "vocab": "vocab_size"}
    return usual | {"seq": "max_position_embeddings", "ffn": "intermediate_size"} | others


_GROUPED = _sizes(kv_heads="num_key_value_heads", head_dim="head_dim")
_NO_SHAPE = ("kv_heads", "head_dim")
_SILU = Activation(("hidden_act",), gated=True)
_GELU = Activation(("hidden_act",), gated=False)
_GEMMA_GELU = Activation(("hidden_activation", "hidden_act"), gated=True)
_BIASED = Switch("attention_bias", "attention_bias", "all", "none")
_QWEN = {"use_sliding_window": False, "max_window_layers": 28}
_LLAMA = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
_GEMMA = {"tie_word_embeddings": True, "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"}
_NORMALIZED = Switch("norm_topk_prob", "normalized_router")
_DEEPSEEK = {"moe_layer_freq": 1, "first_k_dense_replace": 0, "n_shared_experts": 0, "routed_scaling_factor": 1.0}
_MASKED = Demanded({"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"})


def _gemma(every: int, *parts: Part, **usual: Any) -> ModelType:
    """Gemma 2 or 3, of which every so many layers see all tokens."""
    both: tuple[Part, ...] = (TIED, _GEMMA_GELU, Rotary(), _BIASED, Always({"scaled_embedding": True, "placement": "both"}))
    return ModelType("llama", _GROUPED, (*both, Window(pattern=every), *parts), _GEMMA | {"head_dim": 256} | usual, _NO_SHAPE)


MODEL_TYPES: dict[str, ModelType] = {
    "llama": ModelType("llama", _GROUPED, (TIED, _SILU, Rotary(), _BIASED, Switch("mlp_bias", "mlp_bias")), _LLAMA, _NO_SHAPE),
    "mistral": ModelType("llama", _GROUPED, (TIED, _SILU, Rotary(), Window()), _LLAMA, _NO_SHAPE),
    "qwen2": ModelType(
        "llama",
        _GROUPED,
        (TIED, _SILU, Rotary(), Always({"attention_bias": "qkv"}), Window("use_sliding_window")),
        _LLAMA | _QWEN,
        _NO_SHAPE,
    ),
    "qwen3": ModelType(
        "llama",
        _GROUPED,
        (TIED, _SILU, Rotary(), _BIASED, Always({"qk_norm": "head"}), Window("use_sliding_window")),
        _LLAMA | _QWEN | {"head_dim": 128},
        _NO_SHAPE,
    ),
    "gemma": ModelType(
        "llama",
        _GROUPED,
        (TIED, _GEMMA_GELU, Rotary(), _BIASED, Always({"scaled_embedding": True})),
        _GEMMA | {"head_dim": 256},
        _NO_SHAPE,
    ),
    "gemma2": _gemma(2, Uncapped(tuple(CAPS)), query_pre_attn_scalar=256),
    "gemma3_text": _gemma(
        6,
        Always({"qk_norm": "head"}),
        LocalBase(),
        Uncapped(),
        # Files of models that see images too leave out what is usual.
        num_attention_heads=8,
        num_key_value_heads=4,
        num_hidden_layers=26,
        vocab_size=262208,
        max_position_embeddings=131072,
        rope_theta=1e6,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        rope_local_base_freq=10_000,
    ),
    "mixtral": ModelType(
        "llama",
        _GROUPED,
        (TIED, _SILU, Rotary(), Window(), Experts("num_local_experts"), Balanced()),
        _LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
        _NO_SHAPE,
        experts=True,
    ),
    "qwen3_moe": ModelType(
        "llama",
        _GROUPED,
        (
            TIED,
            _SILU,
            Rotary(),
            _BIASED,
            Always({"qk_norm": "head"}),
            Window("use_sliding_window"),
            Experts("num_experts", "moe_intermediate_size"),
            _NORMALIZED,
            Balanced(),
            Demanded({"decoder_sparse_step": 1, "mlp_only_layers": []}),
        ),
        _LLAMA | _QWEN | {"norm_topk_prob": False, "num_experts_per_tok": 8},
        _NO_SHAPE,
        experts=True,
    ),
    "deepseek_v2": ModelType(
        "llama",
        _sizes(),
        (TIED, _SILU, Deepseek("softmax"), Rotary(), _NORMALIZED),
        _LLAMA
        | _DEEPSEEK
        | {"norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "greedy", "aux_loss_alpha": 0.001},
        experts=True,
    ),
    "deepseek_v3": ModelType(
        "llama",
        _sizes(),
        (TIED, _SILU, Deepseek("sigmoid"), Rotary(), _NORMALIZED),
        _LLAMA | _DEEPSEEK | {"norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        experts=True,
    ),
    "gpt_oss": ModelType(
        "llama",
        _GROUPED,
        (TIED, _SILU, Rotary(), _BIASED, Window(pattern=2), Experts("num_local_experts"), Balanced()),
        _LLAMA | {"attention_bias": True, "head_dim": 64, "sliding_window": 128, "num_experts_per_tok": 4},
        ("kv_heads", "head_dim"),
        besides=(sentence("sinks of attention, biases of the router and of experts, and the bounds of their gate"),),
        experts=True,
    ),
    "llama4_text": ModelType(
        "llama",
        _GROUPED | {"ffn": "intermediate_size_mlp"},
        (TIED, _SILU, Rotary(), _BIASED, Interleaved(), Experts("num_local_experts", "intermediate_size"), Balanced()),
        _LLAMA | {"num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        _NO_SHAPE,
        besides=(sentence("layers without positions, attention in chunks, and norms of queries and keys, which learn nothing"),),
        experts=True,
    ),
    "phi": ModelType(
        "gpt",
        _GROUPED,
        (
            TIED,
            _GELU,
            Rotary(usual_share=0.5),
            Always({"parallel": "one_norm", "output_bias": True}),
            Demanded({"qk_layernorm": False}),
        ),
        {"tie_word_embeddings": False, "hidden_act": "gelu_new"},
        _NO_SHAPE,
    ),
    "phi3": ModelType("llama", _GROUPED, (TIED, _SILU, Rotary(), Window()), _LLAMA, _NO_SHAPE),
    "olmo2": ModelType(
        "llama",
        _GROUPED,
        (TIED, _SILU, Rotary(), _BIASED, Always({"placement": "output", "qk_norm": "full"})),
        _LLAMA,
        _NO_SHAPE,
    ),
    "gpt2": ModelType(
        "gpt",
        {
            "layers": "n_layer",
            "hidden": "n_embd",
            "heads": "n_head",
            "vocab": "vocab_size",
            "seq": "n_positions",
            "ffn": "n_inner",
        },
        (TIED, Activation(("activation_function",), gated=False), Demanded({"add_cross_attention": False})),
        {"tie_word_embeddings": True, "activation_function": "gelu_new"},
        ("ffn",),
    ),
    "gpt_neox": ModelType(
        "gpt",
        _sizes(),
        (
            TIED,
            _GELU,
            Rotary("rotary_emb_base", "rotary_pct", 0.25),
            _BIASED,
            Switch("use_parallel_residual", "parallel", "two_norms", "none"),
        ),
        {"tie_word_embeddings": False, "attention_bias": True, "use_parallel_residual": True, "hidden_act": "gelu"},
    ),
    "falcon": ModelType(
        "gpt",
        _sizes(ffn="ffn_hidden_size"),
        (TIED, Activation(("activation",), gated=False), Falcon()),
        {"tie_word_embeddings": True, "activation": "gelu", "max_position_embeddings": 2048, "new_decoder_architecture": False}
        | {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
        ("ffn",),
    ),
    "opt": ModelType(
        "gpt",
        _sizes(ffn="ffn_dim"),
        (
            TIED,
            Activation(("activation_function",), gated=False),
            Opt(),
            Demanded({"layer_norm_elementwise_affine": True}),
        ),
        {"tie_word_embeddings": True, "activation_function": "relu", "do_layer_norm_before": True}
        | {"_remove_final_layer_norm": False, "enable_bias": True},
    ),
    "bloom": ModelType(
        "gpt",
        {"layers": "n_layer|num_hidden_layers", "hidden": "hidden_size|n_embed", "heads": "n_head|num_attention_heads"}
        | {"vocab": "vocab_size", "seq": "seq_length"},
        (
            TIED,
            Always({"position": "alibi", "embedding_norm": True}),
            Demanded({"apply_residual_connection_post_layernorm": False}),
        ),
        {"tie_word_embeddings": True},
        seq=2048,  # Scao et al. 2022, table 3
    ),
    "bert": ModelType("bert", _sizes(), (_GELU, _MASKED, Demanded({"type_vocab_size": 2})), {"hidden_act": "gelu"}),
    "roberta": ModelType(
        "roberta",
        _sizes(),
        (_GELU, _MASKED, Roberta(), Demanded({"type_vocab_size": 1})),
        {"hidden_act": "gelu", "pad_token_id": 1},
    ),
    "t5": ModelType(
        "t5",
        {
            "layers": "num_layers",
            "hidden": "d_model",
            "heads": "num_heads",
            "vocab": "vocab_size",
            "seq": "n_positions",
            "ffn": "d_ff",
            "head_dim": "d_kv",
        },
        (T5(), Demanded({"relative_attention_num_buckets": BUCKETS, "relative_attention_max_distance": FARTHEST})),
        {"tie_word_embeddings": True, "feed_forward_proj": "relu"},
        seq=512,  # Raffel et al. 2020, section 3.1.2
    ),
    "xlnet": ModelType(
        "xlnet",
        {
            "layers": "n_layer",
            "hidden": "d_model",
            "heads": "n_head",
            "vocab": "vocab_size",
            "ffn": "d_inner",
            "head_dim": "d_head",
        },
        (Activation(("ff_activation",), gated=False), Demanded({"untie_r": True, "attn_type": "bi"})),
        {"ff_activation": "gelu"},
        ("head_dim",),
        seq=512,  # Yang et al. 2019, appendix A.4
    ),
}
