"""Multi-head latent attention (MLA): what a model with latents has beside its fields, and the rules of these fields.

Keys and values of all heads are made of one latent a token, and queries may be made of another (DeepSeek-AI 2024, DeepSeek-V2,
section 2.1). Positions turn a part of each head that is apart; of the keys all heads share that part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.spec.sentence import Sentence, sentence

if TYPE_CHECKING:
    from engine.spec.model import ModelSpec

# The fields that only a model with latents has.
_OF_LATENTS = ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class LatentNumbers:
    """Properties of a `ModelSpec` that are about the width of its heads, which latents change."""

    @property
    def latent(self: Any) -> bool:
        """Whether keys and values are made of a latent."""
        return self.kv_lora_rank > 0

    @property
    def unturned(self: Any) -> int:
        """Of a model with latents: the numbers of a head of queries or keys without positions."""
        return self.qk_nope_head_dim or self.hidden // self.heads

    @property
    def rotated(self: Any) -> int:
        """The numbers of a head that rotary positions turn."""
        if self.latent:
            return self.qk_rope_head_dim or self.unturned // 2
        return self.rotary_width or self.head_width

    @property
    def head_width(self: Any) -> int:
        """Of queries and keys."""
        if self.latent:
            return self.unturned + self.rotated
        return self.head_dim or self.hidden // self.heads

    @property
    def value_width(self: Any) -> int:
        """The width of a head of values."""
        return self.v_head_dim or self.unturned if self.latent else self.head_width

    def cached(self: Any, tp: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and width of both tensors that a layer on one of `tp` ranks keeps of a token when it generates.

        Keys and values; or the latent and the turned part of the keys, which every tp rank has.
        """
        if self.latent:
            return (1, self.kv_lora_rank), (1, self.rotated)
        return ((self.keys_on_rank(tp), self.head_width),) * 2

    @property
    def down_parameters(self: Any) -> int:
        """Of a layer with latents, the projection down to them and to the turned part of the keys: every tp rank has it whole."""
        return self.hidden * (self.q_lora_rank + self.kv_lora_rank + self.rotated) if self.latent else 0

    @property
    def more_with_latents(self: Any) -> int:
        """The parameters that a layer with latents has more than one without: both projections down, their norms, and up."""
        if not self.latent:
            return 0
        hidden, heads, width, values = self.hidden, self.heads, self.head_width, self.value_width
        queries = self.q_lora_rank * (hidden + 1 + heads * width) if self.q_lora_rank else hidden * heads * width
        latent = self.kv_lora_rank
        keys = hidden * (latent + self.rotated) + latent + latent * heads * (self.unturned + values)
        return queries + keys + heads * values * hidden - 4 * hidden * heads * width


def wrong_latents(model: ModelSpec) -> Sentence | None:
    """What is wrong with the fields of latent attention, with what fits. None if all fit."""
    if not model.latent:
        named = next((name for name in _OF_LATENTS if getattr(model, name)), None)
        if named is None:
            return None
        value = getattr(model, named)
        return sentence("{name}={value} is for models with latents, and kv_lora_rank=0", name=named, value=value)
    parts = model.parts
    is_so = {
        "position": (parts.position, "rotary"), "head_dim": (model.head_dim, 0), "kv_heads": (model.kv_heads, 0),
        "rotary_width": (model.rotary_width, 0), "qk_norm": (parts.qk_norm, "none"),
        "attention_bias": (parts.attention_bias, "none"), "parallel": (parts.parallel, "none"),
    }  # fmt: skip
    for name, (value, fits) in is_so.items():
        if value != fits:
            return sentence("latent attention is not built with {name}={value}; {fits} fits", name=name, value=value, fits=fits)
    if parts.encoder:
        return sentence("latent attention is for models with one stack of layers, and {family} has two", family=model.family)
    widths = {
        "kv_lora_rank": model.kv_lora_rank, "q_lora_rank": model.q_lora_rank or 2, "qk_nope_head_dim": model.unturned,
        "qk_rope_head_dim": model.rotated, "v_head_dim": model.value_width,
    }  # fmt: skip
    for name, width in widths.items():
        least = 4 if name == "qk_rope_head_dim" else 2
        if width < least:
            return sentence("{name} is {width}, and latent attention needs {least} and more", name=name, width=width, least=least)
    if model.value_width > model.head_width:
        return sentence(
            "v_head_dim={values} is more than the {width} numbers of a key; up to {width} fits",
            values=model.value_width,
            width=model.head_width,
        )
    return None
