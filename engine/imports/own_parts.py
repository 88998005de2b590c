"""Parts that only one model type of Hugging Face's transformers has: see `engine.imports.parts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.families import ROTARY_BASE
from engine.imports.fields import Fields
from engine.imports.parts import Rotary, Values, stacks
from engine.spec import ModelSpec, RequestError, sentence


@dataclass(frozen=True)
class Falcon:
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
class Opt:
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
class T5:
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
class Roberta:
    """Its first positions are those of padding, up to its id."""

    def read(self, fields: Fields, model: Values) -> Values:
        spare = fields.whole("pad_token_id") + 1
        return {"seq": model["seq"] - spare, "spare_positions": spare}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        spare = model.spare_positions or 2
        return {"max_position_embeddings": model.seq + spare, "pad_token_id": spare - 1}


@dataclass(frozen=True)
class Uncapped:
    """What transformers computes in a Gemma 2 or 3 unless a file says otherwise, and is not computed here."""

    entries: tuple[str, ...] = ()  # that are null here

    def read(self, fields: Fields, model: Values) -> Values:
        return {}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"query_pre_attn_scalar": model.head_width, **dict.fromkeys(self.entries)}


@dataclass(frozen=True)
class LocalBase:
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
