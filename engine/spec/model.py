"""The model of a spec."""

from __future__ import annotations

from math import gcd
from typing import Any, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from engine.families import (
    FAMILIES,
    ROTARY_BASE,
    AttentionBias,
    Balancing,
    FamilyName,
    HeadKind,
    Inner,
    ModelParts,
    Norm,
    Parallel,
    Placement,
    Position,
    QKNorm,
    Router,
    parts_of,
    predicted,
)
from engine.spec.base import Spec
from engine.spec.errors import RequestError
from engine.spec.experts import ExpertNumbers, wrong_experts
from engine.spec.latent import LatentNumbers, wrong_latents
from engine.spec.model_numbers import wrong_layers, wrong_number
from engine.spec.numbers import divisors, either, listed, nearest, nearest_multiples
from engine.spec.sentence import sentence

_MOST_HIDDEN, _MOST_HEADS, MOST_SEQ = 65_536, 1024, 1_000_000


# The fields of `ModelSpec` that choose a part of the model.
MODEL_PARTS = (
    "norm", "placement", "qk_norm", "parallel", "position", "inner", "head", "tied", "output_bias", "attention_bias", "mlp_bias",
    "embedding_norm", "scaled_embedding", "scaled_scores", "scaled_output", "router", "normalized_router", "balancing",
)  # fmt: skip


class ModelSpec(LatentNumbers, ExpertNumbers, Spec):
    """The shape of a Transformer: its sizes, its family, and the parts that differ from the family's (`engine.families`)."""

    family: FamilyName = Field("gpt", description="model family")
    layers: int = Field(4, ge=1, le=1024, description="Transformer layers; of encoder and decoder together, where there are both")
    hidden: int = Field(64, ge=1, le=_MOST_HIDDEN, description="width of the residual stream")
    heads: int = Field(4, ge=1, le=_MOST_HEADS, description="attention heads")
    vocab: int = Field(256, ge=1, le=1_000_000, description="vocabulary size")
    seq: int = Field(64, ge=1, le=MOST_SEQ, description="sequence length in tokens; of source and target each")
    ffn: int = Field(0, ge=0, le=1_000_000, description="inner width of the MLP; 0 means 4 × hidden")
    kv_heads: int = Field(0, ge=0, le=1024, description="heads of keys and values, which groups of heads share; 0 means heads")
    head_dim: int = Field(0, ge=0, le=65536, description="width of one head; 0 means hidden ÷ heads")
    decoder_layers: int = Field(0, ge=0, le=1024, description="number of decoder layers among the layers; 0 means half")
    rotary_width: int = Field(0, ge=0, le=65536, description="numbers of a head that rotary positions turn; 0 means all")
    rotary_base: int = Field(0, ge=0, le=10**9, description="base of the angles of rotary positions; 0 means 500,000")
    rotary_local_base: int = Field(
        0, ge=0, le=10**9, description="base of the angles in layers with a window; 0 means that of the other layers"
    )
    spare_positions: int = Field(
        0, ge=0, le=1024, description="rows of learned positions beyond the sequence, which no token uses"
    )
    window: int = Field(
        0, ge=0, le=MOST_SEQ, description="tokens that a token sees, the last of them itself; 0 means all before it"
    )
    vocab_multiple: int = Field(
        0, ge=0, le=65_536, description="rows of the vocabulary on each tp rank are padded to a multiple of this; 0 means 1"
    )
    global_every: int = Field(0, ge=0, le=1024, description="every so many layers, one sees all tokens; 0: all have the window")
    experts: int = Field(0, ge=0, le=4096, description="experts of a layer, of which each token goes to some; 0: an MLP instead")
    experts_per_token: int = Field(0, ge=0, le=64, description="experts that a token goes to; 0 means 2")
    expert_ffn: int = Field(0, ge=0, le=1_000_000, description="inner width of an expert; 0 means that of the MLP")
    shared_ffn: int = Field(
        0, ge=0, le=1_000_000, description="inner width of the experts that every token goes to, together; 0: there are none"
    )
    dense_layers: int = Field(0, ge=0, le=1024, description="first layers that have an MLP and no experts")
    expert_every: int = Field(0, ge=0, le=1024, description="every so many layers, one has experts; 0: all have experts")
    expert_groups: int = Field(0, ge=0, le=1024, description="groups of experts, of which a token chooses some first; 0: none")
    chosen_groups: int = Field(0, ge=0, le=1024, description="groups of experts that a token chooses; 0 means 1")
    router_scale: float = Field(
        1.0, gt=0, le=1000, allow_inf_nan=False, description="what the weights of a token's experts are multiplied by"
    )
    balancing_rate: float = Field(
        0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="weight of the loss, or step of the bias, that keeps loads alike; 0 means 0.001",
    )
    capacity_factor: float = Field(
        0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="an expert takes at most so many times the mean number of tokens from a microbatch and drops the last ones; "
        "0: none is dropped",
    )
    kv_lora_rank: int = Field(
        0, ge=0, le=65536, description="width of the latent that keys and values are made of (MLA); 0: they have a projection"
    )
    q_lora_rank: int = Field(0, ge=0, le=65536, description="width of the latent that queries are made of; 0: there is none")
    qk_nope_head_dim: int = Field(
        0, ge=0, le=65536, description="with latents: numbers of a head without positions; 0 means hidden ÷ heads"
    )
    qk_rope_head_dim: int = Field(
        0,
        ge=0,
        le=65536,
        description="with latents: numbers of a head that rotary positions turn, beside those; 0 means half as many",
    )
    v_head_dim: int = Field(0, ge=0, le=65536, description="with latents: width of a head's values; 0 means qk_nope_head_dim")
    # None: as the family has it. The names are those of `ModelParts`.
    norm: Norm | None = Field(None, description="norm: layer (LayerNorm) or rms (RMSNorm)")
    placement: Placement | None = Field(
        None,
        description="place of the norms: pre, before a block; post, after its residual; both, before it and on its output; "
        "output, on its output only",
    )
    qk_norm: QKNorm | None = Field(
        None,
        description="RMSNorm of queries and keys: head, over the width of each head; full, over all of their features",
    )
    parallel: Parallel | None = Field(
        None, description="attention and MLP both read the layer's input, through one_norm or two_norms"
    )
    position: Position | None = Field(
        None,
        description="positions: learned, sinusoidal, rotary, buckets (T5's: biases of distances that layers share), alibi "
        "(distances in attention), none",
    )
    inner: Inner | None = Field(
        None, description="nonlinearity of the MLP; swiglu and geglu (tanh) have a gate, relu2 is squared ReLU"
    )
    head: HeadKind | None = Field(
        None, description="before the output matrix: a norm, a transform (linear layer, GELU, norm), or nothing (bare)"
    )
    tied: bool | None = Field(None, description="the output matrix is the token table")
    output_bias: bool | None = Field(None, description="bias of the output matrix")
    attention_bias: AttentionBias | None = Field(
        None, description="biases of attention's linear layers: all, qkv (without the output layer's) or none"
    )
    mlp_bias: bool | None = Field(None, description="biases of the MLP's linear layers")
    embedding_norm: bool | None = Field(None, description="norm after the embedding")
    scaled_embedding: bool | None = Field(None, description="the tokens' embeddings are multiplied by √hidden")
    scaled_scores: bool | None = Field(None, description="scores of attention are divided by the root of a head's width")
    scaled_output: bool | None = Field(None, description="what the output matrix multiplies is divided by √hidden")
    router: Router | None = Field(None, description="how the router scores experts: softmax over all, or sigmoid of each")
    normalized_router: bool | None = Field(None, description="the weights of a token's experts are divided by their sum")
    balancing: Balancing | None = Field(
        None, description="what keeps the loads of experts alike: none, an auxiliary loss, or a bias on the router's scores"
    )

    @field_validator("attention_bias", mode="before")
    @classmethod
    def _named_biases(cls, value: Any) -> Any:
        """Older runs have true and false."""
        return ("all" if value else "none") if isinstance(value, bool) else value

    @field_validator(*MODEL_PARTS)
    @classmethod
    def _as_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        """A part that equals the family's is None, so that equal models have equal specs."""
        family = info.data.get("family")
        return None if family is None or value == getattr(FAMILIES[family], str(info.field_name)) else value

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if not (self.head_dim or self.qk_nope_head_dim) and self.hidden % self.heads:
            widths = nearest_multiples(self.hidden, self.heads, _MOST_HIDDEN)
            heads = nearest((d for d in divisors(self.hidden) if d <= _MOST_HEADS), self.heads)
            raise RequestError(
                sentence(
                    "heads={heads} does not divide hidden={hidden}: each head would be {width:.4g} wide; "
                    "hidden={widths} fits, or heads={fits}",
                    heads=self.heads,
                    hidden=self.hidden,
                    width=self.hidden / self.heads,
                    widths=either(widths),
                    fits=either(sorted(heads)),
                )
            )
        return self

    @model_validator(mode="after")
    def _has_positions_of_its_own(self) -> Self:
        """Two-stream attention needs relative positions, and nothing else has them."""
        relative = FAMILIES[self.family].position == "relative"
        if self.position is not None and (relative or self.position == "relative"):
            fits = sorted({*get_args(Position)} - {"relative"})
            text = (
                sentence("{family} has relative positions and no others; position left out fits", family=self.family)
                if relative
                else sentence("position=relative is for xlnet; {fits} fit", fits=listed(fits))
            )
            raise RequestError(text)
        if self.position == "buckets" and (objective := self.parts.objective) not in ("masked", "seq2seq"):
            encoders = [name for name, parts in FAMILIES.items() if parts.objective in ("masked", "seq2seq")]
            raise RequestError(
                sentence(
                    "position=buckets is for models that are not {objective}; other positions fit, or {families}",
                    objective=objective,
                    families=listed(encoders),
                )
            )
        return self

    @model_validator(mode="after")
    def _numbers_are_for_its_parts(self) -> Self:
        if wrong := wrong_layers(self) or wrong_latents(self) or wrong_number(self) or wrong_experts(self):
            raise RequestError(wrong)
        return self

    @model_validator(mode="after")
    def _family_has_what_it_needs(self) -> Self:
        if self.heads % self.key_heads:
            raise RequestError(
                sentence(
                    "kv_heads={kv_heads} does not divide heads={heads}, so groups would differ in size; {fits} would",
                    kv_heads=self.kv_heads,
                    heads=self.heads,
                    fits=listed(divisors(self.heads)),
                )
            )
        if self.parts.position == "relative" and self.key_heads != self.heads:
            raise RequestError(
                sentence(
                    "{family} has a key for every head; kv_heads=0 fits, not {kv_heads}",
                    family=self.family,
                    kv_heads=self.kv_heads,
                )
            )
        if self.parts.position == "rotary" and self.rotated % 2:
            what = sentence("a head is {width} wide", width=self.head_width)
            if self.rotary_width:
                what = sentence("rotary_width is {width}", width=self.rotary_width)
            raise RequestError(sentence("rotary positions turn pairs of numbers, and {what}; an even width fits", what=what))
        if self.decoder_layers and not self.parts.encoder:
            raise RequestError(
                sentence(
                    "decoder_layers={decoder_layers} is for encoder and decoder, and {family} has one stack; 0 fits",
                    decoder_layers=self.decoder_layers,
                    family=self.family,
                )
            )
        if self.parts.encoder and not 0 < self.encoder_layers < self.layers:
            raise RequestError(
                sentence(
                    "layers={layers} are encoder and decoder together, and with decoder_layers={decoder_layers} one has none; "
                    "layers of 2 and more fit, decoder_layers below that",
                    layers=self.layers,
                    decoder_layers=self.decoder_layers,
                )
            )
        if self.parts.objective == "permuted" and self.seq < 2:
            raise RequestError(
                sentence(
                    "{family} predicts some tokens from the others, and seq={seq} leaves none; 2 and more fit",
                    family=self.family,
                    seq=self.seq,
                )
            )
        return self

    @property
    def chosen_parts(self) -> tuple[tuple[str, Any], ...]:
        """The parts that differ from the family's, as pairs of a name in `MODEL_PARTS` and a value."""
        return tuple((name, value) for name in MODEL_PARTS if (value := getattr(self, name)) is not None)

    @property
    def parts(self) -> ModelParts:
        return parts_of(self.family, dict(self.chosen_parts)) if self.chosen_parts else FAMILIES[self.family]

    @property
    def sized_parts(self) -> tuple[str, ...]:
        """The fields of numbers that change what a layer or an embedding does, and not only its sizes."""
        having = {
            "rotary_width": self.rotated < self.head_width and not self.latent,
            "spare_positions": self.spare_positions > 0,
            "window": 0 < self.window < self.seq,
            "rotary_local_base": self.window > 0 and self.rotary_local_base not in (0, self.angle_base),
            "experts": self.experts > 0,
            "shared_ffn": self.shared_ffn > 0,
            "router_scale": self.router_scale != 1,
            "capacity_factor": self.capacity_factor > 0,
            "kv_lora_rank": self.latent,
            "q_lora_rank": self.q_lora_rank > 0,
            "v_head_dim": self.value_width < self.head_width,
        }
        return tuple(name for name, has in having.items() if has)

    def local(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, has the window, and the base of angles that is for such layers.

        Of every `global_every` layers, the last sees all tokens. A window as long as the sequence hides nothing.
        """
        return self.window > 0 and not (self.global_every and (layer + 1) % self.global_every == 0)

    def windowed(self, layer: int) -> bool:
        """Whether the window hides tokens from layer `layer`."""
        return self.window < self.seq and self.local(layer)

    @property
    def angle_base(self) -> int:
        """The base of the angles of rotary positions."""
        return self.rotary_base or ROTARY_BASE

    def vocab_rows(self, tp: Any) -> Any:
        """Rows of the vocabulary on each of `tp` ranks, with padding. `tp`: a number, or (n,)."""
        if self.vocab_multiple < 2:
            return -(-self.vocab // tp)
        return -(-self.vocab // (tp * self.vocab_multiple)) * self.vocab_multiple

    def padded_vocab(self, tp: Any) -> Any:
        """Rows of the vocabulary on all of `tp` ranks.

        Without `vocab_multiple` it is the vocabulary; rounding up to a multiple of tp is not counted.
        """
        return self.vocab if self.vocab_multiple < 2 else self.vocab_rows(tp) * tp

    @property
    def places(self) -> int:
        """Rows of the table of learned positions."""
        return self.seq + self.spare_positions

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    def keys_on_rank(self, tp: int) -> int:
        """Key heads of one of `tp` ranks. Of fewer heads than ranks, each has a copy of one."""
        return max(1, self.key_heads // tp)

    def key_copies(self, tp: int) -> int:
        """How many of `tp` ranks hold the same key heads."""
        return max(1, tp // self.key_heads)

    def fits_tp(self, tp: Any) -> Any:
        """Whether tp cuts the heads and the MLP evenly, and ranks and key heads divide each other. `tp`: a number, or (n,)."""
        keys = self.key_heads
        return (self.heads % tp == 0) & (self.cut_width % tp == 0) & ((keys % tp == 0) | (tp % keys == 0))

    @property
    def cut_width(self) -> int:
        """What tp must divide so that it cuts every inner width of an MLP or an expert."""
        return gcd(self.ffn_width, self.expert_width, self.shared_ffn) if self.experts else self.ffn_width

    @property
    def ffn_width(self) -> int:
        return self.ffn or 4 * self.hidden

    @property
    def encoder_layers(self) -> int:
        """Layers of the encoder, which come before the decoder's; 0 if there is no encoder."""
        return self.layers - (self.decoder_layers or self.layers // 2) if self.parts.encoder else 0

    @property
    def rows(self) -> int:
        """Rows of one sequence that go through a layer: `seq`; with two-stream attention also one for each predicted token."""
        return self.seq + (predicted("permuted", self.seq) if self.parts.objective == "permuted" else 0)

    @property
    def output_rows(self) -> int:
        """Rows of one sequence that have logits: `seq`; with two-stream attention only the query rows."""
        return self.rows - self.seq or self.seq

    def parameters(self) -> int:
        """The number of parameters of the whole model, without padding. Tied weights count once."""
        crossing = self.layers - self.encoder_layers if self.parts.encoder else 0
        total = self.parts.outer_parameters(self.hidden, self.vocab, self.places, self.heads)
        for count, cross in ((self.layers - crossing, False), (crossing, True)):
            total += count * self.layer_parameters(cross)
        return total + self.expert_layers * self._more_with_experts()

    def layer_parameters(self, cross: bool) -> int:
        """Of a layer with an MLP. `cross`: it has cross-attention."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        found = self.parts.layer_parameters(self.hidden, self.ffn_width, queries, keys, self.head_width, cross)
        return found + self.more_with_latents
