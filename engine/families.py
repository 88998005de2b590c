"""The model families, as choices of parts. Imports no torch.

A family is one row of `FAMILIES`: the norm and its place, the position embedding, the attention mask, the MLP, the objective.
A model may have other parts than its family: `ModelSpec` has a field for each that can be chosen, and the sizes. `engine.model`
builds the parts. No family has dropout: two layouts would draw different random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

FamilyName = Literal["gpt", "bert", "roberta", "transformer", "t5", "xlnet", "llama"]
Norm = Literal["layer", "rms"]
Placement = Literal["pre", "post", "both", "output"]
QKNorm = Literal["none", "head", "full"]
Parallel = Literal["none", "one_norm", "two_norms"]
Position = Literal["learned", "sinusoidal", "rotary", "relative", "buckets", "alibi", "none"]
Inner = Literal["gelu", "gelu_tanh", "relu", "relu2", "geglu", "swiglu"]
AttentionBias = Literal["all", "qkv", "none"]
Objective = Literal["causal", "masked", "seq2seq", "permuted"]
HeadKind = Literal["norm", "transform", "bare"]
Router = Literal["softmax", "sigmoid"]
Balancing = Literal["none", "loss", "bias"]
# With `position="buckets"`: of distances, and the tokens from which on all are in one bucket (Raffel et al. 2020, section 2.1).
BUCKETS, FARTHEST = 32, 128
ROTARY_BASE = 500_000  # of the angles of rotary positions, unless a model has its own (Llama team 2024, section 3.2)


@dataclass(frozen=True)
class ModelParts:
    norm: Norm = "layer"
    # Of the norms: before attention and MLP; after the residual is added; before them and on their outputs (Gemma 2, 3); only on
    # their outputs (OLMo 2).
    placement: Placement = "pre"
    # RMSNorm of queries and keys: over the width of each head, with a weight that all heads share (Qwen 3, Gemma 3); over all
    # features of the queries, and of the keys (OLMo 2).
    qk_norm: QKNorm = "none"
    # Attention and MLP both read the layer's input: through one norm (Falcon 7B, Phi-2), or one each (GPT-NeoX, Falcon 40B).
    parallel: Parallel = "none"
    position: Position = "learned"
    inner: Inner = "gelu_tanh"  # the nonlinearity between the MLP's linear layers; swiglu and geglu have a gate
    objective: Objective = "causal"  # the inputs and targets, and which tokens a token can attend to
    head: HeadKind = "norm"  # before the output matrix: a norm; linear, GELU and norm; or nothing
    tied: bool = True  # the output matrix is the token table
    output_bias: bool = False
    attention_bias: AttentionBias = "all"  # of queries, keys and values and of the output; without the output's (Qwen2)
    mlp_bias: bool = True
    scaled_scores: bool = True  # scores of attention ÷ √ of a head's width
    scaled_embedding: bool = False  # the tokens' embeddings × √H
    scaled_output: bool = False  # what the output matrix multiplies ÷ √H
    segments: bool = False  # an embedding for each half of the input
    embedding_norm: bool = False
    encoder: bool = False  # the first layers are an encoder, the others a decoder with cross-attention
    # Of a model with experts: how the router scores them, whether the weights of a token's experts add up to 1, and what keeps
    # loads alike: nothing, an auxiliary loss (Fedus et al. 2021, section 2.2), or a bias on the scores that is no part of the
    # loss (DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2).
    router: Router = "softmax"
    normalized_router: bool = True
    balancing: Balancing = "none"

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: a second inner layer, whose output is multiplied by that of the first."""
        return self.inner in ("swiglu", "geglu")

    @property
    def norms(self) -> int:
        """The norms of one block: attention, cross-attention or MLP."""
        return 2 if self.placement == "both" else 1

    @property
    def norm_vectors(self) -> int:
        """The number of vectors that a norm learns: scale and shift, or only scale."""
        return 2 if self.norm == "layer" else 1

    def layer_parameters(self, hidden: int, ffn: int, queries: int, keys: int, width: int, cross: bool) -> int:
        """The number of parameters of one layer. `queries`: heads × `width` of a head. `keys`: key heads × width, as for values.

        They are qkv with its norms, the attention's output, and the MLP's two or three matrices, with biases, and the norms.
        Cross-attention is a second attention with its own norm. Relative attention has one more matrix and two vectors.
        """
        attention = hidden * (queries + 2 * keys) + queries * hidden
        attention += {"all": queries + 2 * keys + hidden, "qkv": queries + 2 * keys, "none": 0}[self.attention_bias]
        attention += {"none": 0, "head": 2 * width, "full": queries + keys}[self.qk_norm]
        relative = hidden * queries + 2 * queries if self.position == "relative" else 0
        blocks = 2 if cross else 1
        norms = 1 if self.parallel == "one_norm" else (blocks + 1) * self.norms
        return blocks * attention + relative + self.mlp_parameters(hidden, ffn) + norms * self.norm_vectors * hidden

    def mlp_parameters(self, hidden: int, ffn: int) -> int:
        """The number of parameters of an MLP: two or three matrices, with biases."""
        matrices = 3 if self.gated else 2
        return matrices * hidden * ffn + ((matrices - 1) * ffn + hidden if self.mlp_bias else 0)

    @property
    def stacks(self) -> int:
        """Encoder and decoder, or one stack."""
        return 2 if self.encoder else 1

    def outer_parameters(self, hidden: int, vocab: int, places: int, heads: int) -> int:
        """The number of parameters outside of layers: embeddings, their norm, the head, the output matrix if it is not tied.

        `places`: rows of the table of positions, if these are learned. With a norm as its head, the encoder ends with one too.
        """
        embedding = vocab * hidden + (2 * hidden if self.segments else 0)
        embedding += {"learned": places * hidden, "buckets": self.stacks * BUCKETS * heads}.get(self.position, 0)
        norm = self.norm_vectors * hidden
        head = {"norm": self.stacks * norm, "transform": hidden * hidden + hidden + norm, "bare": 0}[self.head]
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
        attention_bias="none",
        scaled_embedding=True,
        encoder=True,
    ),
    # Raffel et al. 2020, section 2.1, and their code: a norm before each block, positions as biases of distances that all layers
    # of a stack share, no bias and no scale of scores. Version 1.1 has a GeGLU, and an output that is neither tied nor scaled.
    "t5": ModelParts(
        norm="rms",
        position="buckets",
        inner="relu",
        objective="seq2seq",
        attention_bias="none",
        mlp_bias=False,
        scaled_scores=False,
        scaled_output=True,
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
        attention_bias="none",
    ),
    # Touvron et al. 2023, section 2.2; Llama team 2024, table 3.
    "llama": ModelParts(norm="rms", position="rotary", inner="swiglu", tied=False, attention_bias="none", mlp_bias=False),
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
