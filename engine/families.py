"""The model families, as choices of parts. Imports no torch.

A family is one row of `FAMILIES`: the norm and its place, the position embedding, the attention mask, the MLP, the objective.
A model may have other parts than its family: `ModelSpec` has a field for each that can be chosen, and the sizes. `engine.model`
builds the parts. No family has dropout: two layouts would draw different random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

FamilyName = Literal["gpt", "bert", "roberta", "transformer", "xlnet", "llama"]
Norm = Literal["layer", "rms"]
Placement = Literal["pre", "post"]
Position = Literal["learned", "sinusoidal", "rotary", "relative", "alibi", "none"]
Inner = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
Objective = Literal["causal", "masked", "seq2seq", "permuted"]
HeadKind = Literal["norm", "transform", "bare"]
ROTARY_BASE = 500_000  # of the angles of rotary positions, unless a model has its own (Llama team 2024, section 3.2)


@dataclass(frozen=True)
class ModelParts:
    norm: Norm = "layer"
    placement: Placement = "pre"  # of the norm: before attention and MLP, or after the residual is added
    position: Position = "learned"
    inner: Inner = "gelu_tanh"  # the nonlinearity between the MLP's linear layers
    objective: Objective = "causal"  # the inputs and targets, and which tokens a token can attend to
    head: HeadKind = "norm"  # before the output matrix: a norm; linear, GELU and norm; or nothing
    tied: bool = True  # the output matrix is the token table
    output_bias: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    segments: bool = False  # an embedding for each half of the input
    embedding_norm: bool = False
    encoder: bool = False  # the first layers are an encoder, the others a decoder with cross-attention

    @property
    def norm_vectors(self) -> int:
        """The number of vectors that a norm learns: scale and shift, or only scale."""
        return 2 if self.norm == "layer" else 1

    def layer_parameters(self, hidden: int, ffn: int, queries: int, keys: int, cross: bool) -> int:
        """The number of parameters of one layer. `queries`: heads × width of a head. `keys`: key heads × width of a head, as for
        values.

        They are qkv, the attention's output, and the MLP's two or three matrices, with their biases, and the norms.
        Cross-attention is a second attention with its own norm. Relative attention has one more matrix and two vectors.
        """
        attention = hidden * (queries + 2 * keys) + queries * hidden
        if self.attention_bias:
            attention += queries + 2 * keys + hidden
        relative = hidden * queries + 2 * queries if self.position == "relative" else 0
        matrices = 3 if self.inner == "swiglu" else 2
        mlp = matrices * hidden * ffn + ((matrices - 1) * ffn + hidden if self.mlp_bias else 0)
        blocks = 2 if cross else 1
        return blocks * attention + relative + mlp + (blocks + 1) * self.norm_vectors * hidden

    def outer_parameters(self, hidden: int, vocab: int, places: int) -> int:
        """The number of parameters outside of layers: embeddings, their norm, the head, the output matrix if it is not tied.

        `places`: rows of the table of positions, if these are learned.
        """
        embedding = vocab * hidden + (places * hidden if self.position == "learned" else 0) + (2 * hidden if self.segments else 0)
        norm = self.norm_vectors * hidden
        head = {"norm": norm, "transform": hidden * hidden + hidden + norm, "bare": 0}[self.head]
        output = (0 if self.tied else vocab * hidden) + (vocab if self.output_bias else 0)
        return embedding + (norm if self.embedding_norm else 0) + head + output


# Devlin et al. 2019 (bert) and Liu et al. 2019 (roberta). The next-sentence task and its pooler are left out: RoBERTa
# showed that they do not help. RoBERTa's two spare position rows, an artefact of its padding id, are left out as well.
_BERT = ModelParts(
    placement="post", inner="gelu", objective="masked", head="transform", output_bias=True, segments=True, embedding_norm=True
)

FAMILIES: dict[FamilyName, ModelParts] = {
    # Radford et al. 2019, section 2.3; Brown et al. 2020, without its alternating sparse layers.
    "gpt": ModelParts(),
    "bert": _BERT,
    "roberta": replace(_BERT, segments=False),
    # Vaswani et al. 2017, section 3: embeddings × √H, one table for source, target and output; projections without bias.
    "transformer": ModelParts(
        placement="post",
        position="sinusoidal",
        inner="relu",
        objective="seq2seq",
        head="bare",
        attention_bias=False,
        encoder=True,
    ),
    # Yang et al. 2019, sections 2.2 to 2.4, without segments and without memory of the text before.
    "xlnet": ModelParts(
        placement="post",
        position="relative",
        inner="gelu",
        objective="permuted",
        head="bare",
        output_bias=True,
        attention_bias=False,
    ),
    # Touvron et al. 2023, section 2.2; Llama team 2024, table 3.
    "llama": ModelParts(norm="rms", position="rotary", inner="swiglu", tied=False, attention_bias=False, mlp_bias=False),
}

assert set(FAMILIES) == set(get_args(FamilyName))


def parts_of(family: FamilyName, chosen: Mapping[str, Any]) -> ModelParts:
    """The parts of a model: those of its family, except for the chosen ones. `chosen`: field of `ModelParts` → value."""
    return replace(FAMILIES[family], **chosen)


def predicted(objective: Objective, seq: int) -> int:
    """The number of tokens in a sequence of `seq` that have a loss.

    masked: 15%, at least one. permuted: the last sixth of the permuted order, rounded up to a multiple of 8 so that sequence
    parallelism can shard the rows, and at most half of the sequence. Otherwise all tokens.
    """
    if objective == "masked":
        return max(1, round(0.15 * seq))
    if objective == "permuted":
        return min(seq // 2, 8 * -(-seq // 48))
    return seq
