"""The rules of a model's parts, and of the numbers that only some of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.spec.sentence import Sentence, sentence

if TYPE_CHECKING:
    from engine.spec.model import ModelSpec


def wrong_layers(model: ModelSpec) -> Sentence | None:
    """Blocks in parallel read one input, through norms before them. Two-stream attention has no norms of its own inside."""
    parts = model.parts
    if parts.parallel != "none" and parts.placement != "pre":
        return sentence(
            "parallel={parallel} has its norms before attention and MLP, not placement={placement}; placement=pre fits",
            parallel=parts.parallel,
            placement=parts.placement,
        )
    if parts.parallel != "none" and parts.encoder:
        return sentence(
            "parallel={parallel} has attention and MLP side by side, and {family} has cross-attention between them; "
            "parallel=none fits",
            parallel=parts.parallel,
            family=model.family,
        )
    if parts.qk_norm != "none" and parts.position == "relative":
        return sentence(
            "qk_norm={qk_norm} is not for relative positions, whose queries have two biases; qk_norm=none fits",
            qk_norm=parts.qk_norm,
        )
    return None


def wrong_number(model: ModelSpec) -> Sentence | None:
    """What is wrong with a number of the model, with what fits. None if all fit."""
    position = model.parts.position
    for name in ("rotary_width", "rotary_base", "rotary_local_base"):
        if (number := getattr(model, name)) and position != "rotary":
            return sentence(
                "{name}={number} is for rotary positions, and this model has position={position}; 0 fits, or position=rotary",
                name=name,
                number=number,
                position=position,
            )
    if model.rotary_width > model.head_width:
        return sentence(
            "rotary_width={number} is more than a head, which is {width} wide; up to {width} fits",
            number=model.rotary_width,
            width=model.head_width,
        )
    if model.spare_positions and position != "learned":
        return sentence(
            "spare_positions={number} is for learned positions, and this model has position={position}; 0 fits, or "
            "position=learned",
            number=model.spare_positions,
            position=position,
        )
    if model.global_every and not model.window:
        return sentence(
            "global_every={number} says which layers have no window, and there is none; 0 fits, or a window",
            number=model.global_every,
        )
    if model.rotary_local_base and not model.window:
        return sentence(
            "rotary_local_base={number} is for layers with a window, and there is none; 0 fits, or a window",
            number=model.rotary_local_base,
        )
    objective = model.parts.objective
    if objective != "causal" and (model.window or position == "alibi"):
        what = "position=alibi" if position == "alibi" else f"window={model.window}"
        return sentence("{what} is for models that predict the next token, and {family} does not", what=what, family=model.family)
    if position == "alibi" and model.window:
        return sentence(
            "window={number} and position=alibi are not built together; window=0 fits, or other positions", number=model.window
        )
    return None
