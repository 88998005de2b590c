"""The parts of a spec: model, layout, workload, text generation, and fault injection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from engine.families import (
    FAMILIES,
    ROTARY_BASE,
    AttentionBias,
    FamilyName,
    HeadKind,
    Inner,
    ModelParts,
    Norm,
    Parallel,
    Placement,
    Position,
    QKNorm,
    parts_of,
    predicted,
)
from engine.spec.base import Spec
from engine.spec.errors import RequestError
from engine.spec.model_numbers import wrong_number
from engine.spec.numbers import divisors, either, evenly, listed, nearest, nearest_multiples
from engine.spec.schedules import SCHEDULE_FACTS, ScheduleFacts, ScheduleName
from engine.spec.sentence import brief, sentence
from engine.topology import AXES, AXES_AS_WRITTEN, Axis, Mesh

_MOST_HIDDEN, _MOST_HEADS, MOST_SEQ = 65_536, 1024, 1_000_000

# What backward computes again: nothing, parts of layers, or whole layers. `recomputes` reads it.
Recompute = Literal[
    "none", "core_attn", "layernorm", "mlp_act", "core_attn+layernorm", "core_attn+mlp_act", "layernorm+mlp_act",
    "core_attn+layernorm+mlp_act", "full",
]  # fmt: skip
RecomputePart = Literal["core_attn", "layernorm", "mlp_act"]
Precision = Literal["fp32", "bf16"]
AttentionName = Literal["fused", "written"]
OptimizerName = Literal["adamw", "sgd", "lion"]


def recomputes(recompute: Recompute, part: RecomputePart) -> bool:
    """Whether backward computes that part of layers again, and not whole layers."""
    return part in recompute.split("+")


# The fields of `ModelSpec` that choose a part of the model.
MODEL_PARTS = (
    "norm", "placement", "qk_norm", "parallel", "position", "inner", "head", "tied", "output_bias", "attention_bias", "mlp_bias",
    "embedding_norm", "scaled_embedding",
)  # fmt: skip


class ModelSpec(Spec):
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
    spare_positions: int = Field(
        0, ge=0, le=1024, description="rows of learned positions beyond the sequence, which no token uses"
    )
    window: int = Field(
        0, ge=0, le=MOST_SEQ, description="tokens that a token sees, the last of them itself; 0 means all before it"
    )
    global_every: int = Field(0, ge=0, le=1024, description="every so many layers, one sees all tokens; 0: all have the window")
    # None: as the family has it. The names are those of `ModelParts`.
    norm: Norm | None = Field(None, description="norm: layer (LayerNorm) or rms (RMSNorm)")
    placement: Placement | None = Field(
        None,
        description="place of the norms: pre, before a block; post, after its residual; both, before it and on its output; "
        "output, on its output only",
    )
    qk_norm: QKNorm | None = Field(
        None,
        description="norm of queries and keys: head, over the width of each head; full (RMSNorm), over all of their features",
    )
    parallel: Parallel | None = Field(
        None, description="attention and MLP both read the layer's input, through one_norm or two_norms"
    )
    position: Position | None = Field(
        None, description="positions: learned, sinusoidal, rotary, alibi (distances in attention), none"
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
        if not self.head_dim and self.hidden % self.heads:
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
        return self

    @model_validator(mode="after")
    def _layers_fit_together(self) -> Self:
        """Blocks in parallel read one input, through norms before them. Two-stream attention has no norms of its own inside."""
        parts = self.parts
        if parts.parallel != "none" and parts.placement != "pre":
            raise RequestError(
                sentence(
                    "parallel={parallel} has its norms before attention and MLP, not placement={placement}; placement=pre fits",
                    parallel=parts.parallel,
                    placement=parts.placement,
                )
            )
        if parts.parallel != "none" and parts.encoder:
            raise RequestError(
                sentence(
                    "parallel={parallel} has attention and MLP side by side, and {family} has cross-attention between them; "
                    "parallel=none fits",
                    parallel=parts.parallel,
                    family=self.family,
                )
            )
        if parts.qk_norm != "none" and parts.position == "relative":
            raise RequestError(
                sentence(
                    "qk_norm={qk_norm} is not for relative positions, whose queries have two biases; qk_norm=none fits",
                    qk_norm=parts.qk_norm,
                )
            )
        return self

    @model_validator(mode="after")
    def _numbers_are_for_its_parts(self) -> Self:
        if wrong := wrong_number(self):
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
            "rotary_width": self.rotated < self.head_width,
            "spare_positions": self.spare_positions > 0,
            "window": 0 < self.window < self.seq,
        }
        return tuple(name for name, has in having.items() if has)

    def windowed(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, has the window. Of every `global_every` layers, the last sees all tokens."""
        return "window" in self.sized_parts and not (self.global_every and (layer + 1) % self.global_every == 0)

    @property
    def rotated(self) -> int:
        """The numbers of a head that rotary positions turn."""
        return self.rotary_width or self.head_width

    @property
    def angle_base(self) -> int:
        """The base of the angles of rotary positions."""
        return self.rotary_base or ROTARY_BASE

    @property
    def places(self) -> int:
        """Rows of the table of learned positions."""
        return self.seq + self.spare_positions

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden // self.heads

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
        return (self.heads % tp == 0) & (self.ffn_width % tp == 0) & ((keys % tp == 0) | (tp % keys == 0))

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
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        crossing = self.layers - self.encoder_layers if self.parts.encoder else 0
        total = self.parts.outer_parameters(self.hidden, self.vocab, self.places)
        for count, cross in ((self.layers - crossing, False), (crossing, True)):
            total += count * self.parts.layer_parameters(self.hidden, self.ffn_width, queries, keys, self.head_width, cross)
        return total


class LayoutSpec(Spec):
    """How the work is distributed over ranks. There is one rank for each coordinate of the mesh."""

    dp: int = Field(1, ge=1, le=65536, description="data-parallel replicas")
    tp: int = Field(1, ge=1, le=1024, description="tensor-parallel ranks: each layer's weights are cut into that many slices")
    pp: int = Field(1, ge=1, le=1024, description="pipeline stages: each has consecutive layers")
    schedule: ScheduleName = Field("1f1b", description="order of forward and backward passes in the pipeline")
    chunks: int = Field(
        1,
        ge=1,
        le=1024,
        description="chunks per stage (virtual stages): 2 for a V-shaped schedule, 2 or more for an interleaved one, else 1",
    )
    split: tuple[int, ...] = Field((), description="layers of each chunk, such as 3,3,2; empty means as even as possible")

    zero: int = Field(0, ge=0, le=3, description="ZeRO stage: what dp shards; 1 optimizer, 2 gradients too, 3 parameters too")
    sequence_parallel: bool = Field(False, description="cut norms and residual stream along the sequence over tp")
    recompute: Recompute = Field(
        "none",
        description="what backward computes again: nothing, whole layers (full), or parts of them: attention between its "
        "linear layers (core_attn), norms (layernorm), the MLP's activation (mlp_act)",
    )

    @field_validator("recompute", mode="before")
    @classmethod
    def _in_one_order(cls, given: Any) -> Any:
        """Parts may come in any order. Older runs and links have selective, which is core_attn."""
        if not isinstance(given, str):
            return given
        return "+".join(sorted({"core_attn" if part == "selective" else part for part in given.split("+")}))

    @property
    def mesh(self) -> Mesh:
        return Mesh({axis: getattr(self, axis) for axis in AXES})

    @property
    def ranks(self) -> int:
        return self.mesh.size

    @property
    def code(self) -> str:
        """The short form, such as dp2.tp2.pp2."""
        return self.mesh.code

    @classmethod
    def degrees(cls, code: str) -> dict[Axis, int]:
        """Read a short form: "dp2.tp2.pp2" → {"dp": 2, "tp": 2, "pp": 2}. A missing axis is 1. Raises `RequestError`."""
        found: dict[str, int] = {}
        for part in code.split("."):
            match = re.fullmatch(rf"({'|'.join(AXES)})(\d{{1,6}})", part)
            if not match or match[1] in found:
                raise RequestError(sentence("layout {code!r} is not of the form dp2.tp2.pp2", code=brief(code)))
            found[match[1]] = int(match[2])
        return {axis: found.get(axis, 1) for axis in AXES_AS_WRITTEN}

    @property
    def facts(self) -> ScheduleFacts:
        """The record of its schedule."""
        return SCHEDULE_FACTS[self.schedule]

    @property
    def placement(self) -> tuple[int, ...]:
        """The stage that holds each chunk: 0 to pp − 1 again and again; under a V-shaped schedule 0 to pp − 1 and back to 0."""
        down = tuple(range(self.pp))
        up = down[::-1] if self.facts.v_shaped else down
        return (down + up) * (self.chunks // 2) + down * (self.chunks % 2)

    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each chunk. Without a split, as even as possible; the first chunks have one more."""
        return self.split or evenly(layers, self.pp * self.chunks)

    def layer_ranges(self, layers: int) -> tuple[range, ...]:
        """The layer numbers of each chunk. For chunks of 3, 3 and 2 layers they are 0–2, 3–5 and 6–7."""
        ends = [*accumulate(self.chunk_layers(layers))]
        return tuple(range(start, end) for start, end in pairwise([0, *ends]))

    def stage_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each stage, over all of its chunks. The layout must fit, see `misfits`."""
        counts = [0] * self.pp
        for stage, count in zip(self.placement, self.chunk_layers(layers), strict=True):
            counts[stage] += count
        return tuple(counts)


BYTES_OF: Mapping[Precision, int] = {"fp32": 4, "bf16": 2}  # of one number


WHOLE_LOSS = -1  # of `WorkloadSpec.loss_chunk`
LOSS_BUFFER = 256 << 20  # bytes of the fp32 logits of a chunk, at most, unless a number of tokens is given
_LOSS_CHUNKS = {"auto": 0, "whole": WHOLE_LOSS}


class WorkloadSpec(Spec):
    """The training of the model: data, steps, optimizer, precision."""

    steps: int = Field(20, ge=1, le=10_000, description="training steps")
    microbatches: int = Field(4, ge=1, le=65_536, description="microbatches of one replica in a step")
    microbatch_size: int = Field(2, ge=1, le=4096, description="sequences in a microbatch")
    learning_rate: float = Field(3e-3, gt=0, le=10, allow_inf_nan=False, description="the optimizer's learning rate")
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw keeps two numbers a parameter, lion one (it moves by the sign of an average of gradients), sgd one "
        "with momentum, else none",
    )
    momentum: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, description="momentum of sgd")
    precision: Precision = Field(
        "fp32", description="precision of parameters and activations; bf16 keeps an fp32 copy for the optimizer"
    )
    accumulate: Precision = Field("fp32", description="precision in which gradients are accumulated under bf16")
    bf16_optimizer: bool = Field(False, description="under bf16, no fp32 copy for the optimizer, and its states in bf16 too")
    attention: AttentionName = Field(
        "fused",
        description="fused never keeps the scores, written keeps them for backward; two-stream attention (xlnet) is always "
        "written, because torch has no fused operation with relative positions",
    )
    loss_chunk: int = Field(
        0,
        ge=WHOLE_LOSS,
        le=10**9,
        description="tokens per chunk of the loss, whose logits exist at the same time; 0 or auto: as many as fit 256 MiB; -1 or "
        "whole: all",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the weights and of the order of the data")
    text: str | None = Field(
        None, min_length=1, description="a UTF-8 text file to train on, at most 1 MB; otherwise the built-in text"
    )
    time_limit: float = Field(300.0, gt=0, le=86_400, allow_inf_nan=False, description="seconds after which the run is stopped")

    @field_validator("loss_chunk", mode="before")
    @classmethod
    def _named_loss_chunk(cls, value: Any) -> Any:
        return _LOSS_CHUNKS.get(value, value) if isinstance(value, str) else value

    def attention_of(self, model: ModelSpec) -> AttentionName:
        """The attention that a model really has: two-stream attention is always written."""
        return "written" if model.parts.position == "relative" else self.attention

    @property
    def gradient_precision(self) -> Precision:
        """The precision in which gradients are accumulated."""
        return self.accumulate if self.precision == "bf16" else "fp32"

    @property
    def update_precision(self) -> Precision:
        """The precision of the values that the optimizer updates, and of its states."""
        return "bf16" if self.precision == "bf16" and self.bf16_optimizer else "fp32"

    @property
    def master_bytes(self) -> int:
        """Bytes of a parameter's copy for the optimizer; 0 if the optimizer updates the parameter itself."""
        return 0 if self.update_precision == self.precision else BYTES_OF[self.update_precision]

    def most_loss_tokens(self, vocab: int, tp: Any) -> Any:
        """Tokens of a chunk of the loss, if a microbatch has more. Unlimited if it is whole. `tp` may be an array or a symbol."""
        if self.loss_chunk == WHOLE_LOSS:
            return 1 << 62
        return self.loss_chunk or LOSS_BUFFER // (4 * -(-vocab // tp))

    def loss_tokens(self, model: ModelSpec, tp: int) -> int | None:
        """Tokens of a chunk of the loss. None: the loss of a microbatch is computed as a whole."""
        most: int = self.most_loss_tokens(model.vocab, tp)
        return most if most < self.microbatch_size * model.output_rows else None


class GenerateSpec(Spec):
    """Text generation: continuing a prompt, after training or without training."""

    prompt: str = Field("", max_length=100_000, description="text to continue, after training; empty means no text is generated")
    new_tokens: int = Field(32, ge=1, le=100_000, description="tokens to generate")
    temperature: float = Field(
        0.0, ge=0, le=100, allow_inf_nan=False, description="0 always takes the most likely token; above 0, tokens are sampled"
    )
    skip_training: bool = Field(False, description="generate without training, with random initial weights, and measure that")


class FaultSpec(Spec):
    """Fault injection: make one rank fail, to see how the run reports it."""

    kind: Literal["raise", "exit", "kill", "hang"]
    rank: int = Field(ge=0)
    step: int = Field(ge=1, description="the step, counted from 1, at whose start it happens")

    @classmethod
    def read(cls, text: str) -> FaultSpec:
        """Read "raise:3@2": rank 3 raises in step 2."""
        match = re.fullmatch(r"(\w+):(\d{1,9})@(\d{1,9})", text)
        if not match:
            raise RequestError(sentence("fault {text!r} is not of the form raise:3@2, which is kind:rank@step", text=brief(text)))
        return cls.model_validate({"kind": match[1], "rank": int(match[2]), "step": int(match[3])})
