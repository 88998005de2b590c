"""The model types of Hugging Face's transformers that are understood: for each its names of sizes, and how it chooses parts.

Names and usual values are those of the configuration classes of transformers 5.24 (`src/transformers/models/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.families import BUCKETS, FARTHEST, ROTARY_BASE, FamilyName
from engine.imports.fields import Fields
from engine.imports.parts import TIED, Activation, Always, Demanded, Part, Rotary, Switch, Values, Window, stacks
from engine.spec import ModelSpec, RequestError, sentence

CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # of Gemma 2, in a file that does not name them


@dataclass(frozen=True)
class ModelType:
    family: FamilyName
    sizes: Mapping[str, str]  # fields of `ModelSpec` → the names of their entries; a bar is between names for the same
    parts: tuple[Part, ...]  # read in this order
    usual: Mapping[str, Any] = field(default_factory=dict)  # of entries that files of this type may lack
    optional: tuple[str, ...] = ()  # sizes that may be missing: then they are 0, as in `ModelSpec`
    seq: int = 0  # the sequence length if the file has none

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


@dataclass(frozen=True)
class _Falcon:
    """Its key heads and its norms follow from the generation of its decoder."""

    def read(self, fields: Fields, model: Values) -> Values:
        new = fields.flag("new_decoder_architecture")
        if new:
            key_heads = fields.whole("num_kv_heads")
        else:
            fields.get("num_kv_heads")
            key_heads = 1 if fields.flag("multi_query") else model["heads"]
        parallel = "none"
        norms = fields.get("num_ln_in_parallel_attn")
        if new or fields.flag("parallel_attn"):
            parallel = "two_norms" if new and norms in (None, 2) else "one_norm"
        fields.get("parallel_attn"), fields.get("multi_query")
        bias = fields.flag("bias")
        positions = {"position": "alibi"} if fields.flag("alibi") else Rotary().read(fields, model)
        return {
            "kv_heads": key_heads, "parallel": parallel, "attention_bias": "all" if bias else "none", "mlp_bias": bias,
            **positions,
        }  # fmt: skip

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        parts = model.parts
        new = parts.parallel == "two_norms" or model.key_heads not in (1, model.heads)
        entries: dict[str, Any] = {
            "new_decoder_architecture": new,
            "multi_query": model.key_heads == 1,
            "num_kv_heads": model.key_heads,
            "parallel_attn": parts.parallel != "none",
            "bias": parts.mlp_bias,
            "alibi": parts.position == "alibi",
        }
        if new:
            entries["num_ln_in_parallel_attn"] = 2 if parts.parallel == "two_norms" else 1
        return entries | (dict(Rotary().write(model)) if parts.position == "rotary" else {})


@dataclass(frozen=True)
class _Opt:
    def read(self, fields: Fields, model: Values) -> Values:
        before = fields.flag("do_layer_norm_before")
        bare = not before or fields.flag("_remove_final_layer_norm")
        fields.get("_remove_final_layer_norm")
        width = fields.get("word_embed_proj_dim")
        if width not in (None, model["hidden"]):
            text = sentence(
                "word_embed_proj_dim={width} is not hidden_size={hidden}, and there is no projection between them here",
                width=width,
                hidden=model["hidden"],
            )
            raise RequestError(text)
        bias = fields.flag("enable_bias")
        return {
            "placement": "pre" if before else "post", "head": "bare" if bare else "norm",
            "attention_bias": "all" if bias else "none", "mlp_bias": bias,
            "spare_positions": 2,  # its rows of positions begin at 2
        }  # fmt: skip

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        before = model.parts.placement == "pre"
        return {
            "do_layer_norm_before": before,
            "_remove_final_layer_norm": before and model.parts.head == "bare",
            "word_embed_proj_dim": model.hidden,
            "enable_bias": model.parts.mlp_bias,
        }


_T5_INNER = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}  # gated-gelu is the tanh form


@dataclass(frozen=True)
class _T5:
    """It counts the layers of encoder and decoder each. An output that is tied is scaled."""

    def read(self, fields: Fields, model: Values) -> Values:
        encoder = model["layers"]
        decoder = fields.whole("num_decoder_layers") if fields.get("num_decoder_layers") is not None else encoder
        tied = fields.flag("tie_word_embeddings")
        return {
            **stacks(encoder, decoder),
            "inner": fields.one_of("feed_forward_proj", _T5_INNER), "tied": tied, "scaled_output": tied,
        }  # fmt: skip

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        inner = next((name for name, ours in _T5_INNER.items() if ours == model.parts.inner), "relu")
        layers = {"num_layers": model.encoder_layers, "num_decoder_layers": model.layers - model.encoder_layers}
        return {**layers, "feed_forward_proj": inner, "tie_word_embeddings": model.parts.tied, "is_encoder_decoder": True}


@dataclass(frozen=True)
class _Roberta:
    """Its first positions are those of padding, up to its id."""

    def read(self, fields: Fields, model: Values) -> Values:
        spare = fields.whole("pad_token_id") + 1
        return {"seq": model["seq"] - spare, "spare_positions": spare}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        spare = model.spare_positions or 2
        return {"max_position_embeddings": model.seq + spare, "pad_token_id": spare - 1}


@dataclass(frozen=True)
class _Uncapped:
    """What transformers computes in a Gemma 2 or 3 unless a file says otherwise, and is not computed here."""

    entries: tuple[str, ...] = ()  # that are null here

    def read(self, fields: Fields, model: Values) -> Values:
        return {}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"query_pre_attn_scalar": model.head_width, **dict.fromkeys(self.entries)}


@dataclass(frozen=True)
class _LocalBase:
    """The base of rotary positions in layers with a window. Files of version 5 of transformers have it beside the other."""

    def read(self, fields: Fields, model: Values) -> Values:
        new = fields.get("rope_parameters")
        inner = new.get("sliding_attention") if isinstance(new, dict) else None
        local = inner.get("rope_theta") if isinstance(inner, dict) else None
        base = Fields({"rope_theta": local}, {}).number("rope_theta") if local else fields.number("rope_local_base_freq")
        fields.get("rope_local_base_freq")
        if base != int(base):
            raise RequestError(sentence("{name}={value} must be a whole number", name="rope_local_base_freq", value=base))
        same = int(base) == (model["rotary_base"] or ROTARY_BASE)
        return {"rotary_local_base": 0 if same or not model.get("window") else int(base)}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"rope_local_base_freq": float(model.rotary_local_base or model.angle_base)}


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
    "gemma2": _gemma(2, _Uncapped(tuple(CAPS)), query_pre_attn_scalar=256),
    "gemma3_text": _gemma(
        6,
        Always({"qk_norm": "head"}),
        _LocalBase(),
        _Uncapped(),
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
        (TIED, Activation(("activation",), gated=False), _Falcon()),
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
            _Opt(),
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
        (_GELU, _MASKED, _Roberta(), Demanded({"type_vocab_size": 1})),
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
        (_T5(), Demanded({"relative_attention_num_buckets": BUCKETS, "relative_attention_max_distance": FARTHEST})),
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
