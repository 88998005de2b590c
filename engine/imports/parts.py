"""How Hugging Face's `config.json` says which parts a model has. Each class is one part: it reads the entries and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.families import ROTARY_BASE
from engine.imports.fields import Fields, unsupported
from engine.spec import ModelSpec, RequestError, sentence

Values = dict[str, Any]  # of fields of `ModelSpec`


class Part(Protocol):
    def read(self, fields: Fields, model: Values) -> Values:
        """The fields of `ModelSpec` that the entries choose. `model`: those that are known so far, the sizes among them."""

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        """The entries that choose what the model has, or something near it."""


@dataclass(frozen=True)
class Switch:
    """An entry that is true or false. `chosen`: the part that it chooses, and what true and false mean."""

    name: str
    chosen: str
    true: Any = True
    false: Any = False

    def read(self, fields: Fields, model: Values) -> Values:
        return {self.chosen: self.true if fields.flag(self.name) else self.false}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {self.name: getattr(model.parts, self.chosen) == self.true}


TIED = Switch("tie_word_embeddings", "tied")

_UNGATED = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
_UNGATED |= {"relu": "relu", "relu2": "relu2"}
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu": "geglu"}


@dataclass(frozen=True)
class Activation:
    """The nonlinearity of the MLP. `names`: the entries that may have it, the first that is there counts."""

    names: tuple[str, ...]
    gated: bool

    def read(self, fields: Fields, model: Values) -> Values:
        for name in self.names[1:]:
            fields.get(name)
        name = next((name for name in self.names if name in fields), self.names[0])
        return {"inner": fields.one_of(name, _GATED if self.gated else _UNGATED)}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        known = _GATED if self.gated else _UNGATED
        return {self.names[0]: next((name for name, inner in known.items() if inner == model.parts.inner), next(iter(known)))}


@dataclass(frozen=True)
class Rotary:
    """Rotary positions. Files of version 5 of transformers have base and share in `rope_parameters`. Base: 10,000 by default."""

    base: str = "rope_theta"
    share: str = "partial_rotary_factor"  # of a head's width that is turned
    usual_share: float = 1.0

    def read(self, fields: Fields, model: Values) -> Values:
        new = fields.get("rope_parameters") or {}
        if not isinstance(new, dict):
            raise unsupported("rope_parameters", new, ["rope_theta"])
        new = new.get("full_attention", new)  # Gemma 3 has one for each kind of layer
        inner = Fields(new if isinstance(new, dict) else {}, {})
        base = inner.number("rope_theta") if "rope_theta" in inner else fields.number(self.base) if fields.get(self.base) else 1e4
        share = self.usual_share
        if "partial_rotary_factor" in inner:
            share = inner.number("partial_rotary_factor")
        elif fields.get(self.share) is not None:
            share = fields.number(self.share)
        for name in (self.base, self.share):
            fields.get(name)
        if base != int(base):
            raise RequestError(sentence("{name}={value} must be a whole number", name=self.base, value=base))
        width = model.get("head_dim") or model["hidden"] // max(1, model["heads"])  # a model without heads is refused later
        turned = int(width * share + 1e-6)  # transformers truncates; a share of decimals may be a little too small
        return {
            "position": "rotary",
            "rotary_base": 0 if base == ROTARY_BASE else int(base),
            "rotary_width": 0 if turned == width else turned,
        }

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        share = 1.0 if model.latent else model.rotated / model.head_width
        return {self.base: float(model.angle_base)} | ({} if share == self.usual_share else {self.share: share})


@dataclass(frozen=True)
class Window:
    """Sliding windows. `switch`: an entry that must be true for them. `pattern`: every so many layers one sees all tokens."""

    switch: str = ""
    pattern: int = 0

    def read(self, fields: Fields, model: Values) -> Values:
        for name in ("layer_types", "sliding_window_pattern", "_sliding_window_pattern", "max_window_layers"):
            fields.get(name)
        width = fields.get("sliding_window")
        if width is None or (self.switch and not fields.flag(self.switch)):
            return {}
        return {"window": fields.whole("sliding_window"), "global_every": self._every(fields, model["layers"])} if width else {}

    def _every(self, fields: Fields, layers: int) -> int:
        kinds = fields.get("layer_types")
        if kinds is None:
            named = next((name for name in ("sliding_window_pattern", "_sliding_window_pattern") if name in fields), None)
            first = fields.whole("max_window_layers") if self.switch else 0
            if first:
                raise unsupported("max_window_layers", first, ["0"])
            return fields.whole(named) if named else self.pattern
        for every in range(layers + 1):
            if kinds == _kinds(layers, every):
                return every
        raise RequestError(sentence("layer_types has no regular order of layers with a window and without one"))

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        windowed: Values = {"sliding_window": model.window or None}
        if self.switch:
            windowed |= {self.switch: bool(model.window)} | ({"max_window_layers": 0} if model.window else {})
        every = model.global_every if model.window else 1
        return windowed | ({} if every == self.pattern and not self.switch else {"layer_types": _kinds(model.layers, every)})


def _kinds(layers: int, every: int) -> list[str]:
    """The kind of each layer, where every so many see all tokens; 0: none does."""
    return ["full_attention" if every and not (layer + 1) % every else "sliding_attention" for layer in range(layers)]


@dataclass(frozen=True)
class Always:
    """Parts that every model of a type has."""

    parts: Mapping[str, Any] = field(default_factory=dict)

    def read(self, fields: Fields, model: Values) -> Values:
        return dict(self.parts)

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True)
class Demanded:
    """Entries of which only one value has parts here."""

    entries: Mapping[str, Any]

    def read(self, fields: Fields, model: Values) -> Values:
        for name, wanted in self.entries.items():
            fields.demand(name, wanted)
        return {}

    def write(self, model: ModelSpec) -> Mapping[str, Any]:
        return self.entries


def stacks(encoder: int, decoder: int) -> Values:
    """The layers of a model with so many in its encoder and in its decoder. Raises `RequestError` if one has none."""
    if min(encoder, decoder) < 1:
        text = sentence(
            "{encoder} layers of the encoder and {decoder} of the decoder: each needs 1 and more",
            encoder=encoder,
            decoder=decoder,
        )
        raise RequestError(text)
    return {"layers": encoder + decoder, "decoder_layers": 0 if encoder == decoder else decoder}
