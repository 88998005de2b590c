"""The embedding before the first layer and the head after the last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.families import predicted
from engine.model.norm import make_norm
from engine.model.position import BucketTables, LearnedPosition, SinusoidalPosition, own_rows
from engine.objective import Feed
from engine.parallel.tensor import (
    ShardedParameter,
    ShardSpec,
    TensorParallel,
)
from engine.parallel.vocabulary import VocabParallelEmbedding, vocab_parallel_cross_entropy
from engine.spec import ModelSpec


class SegmentEmbedding(nn.Module):
    """The embedding of the two segments of the input, replicated over tp. (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((2, spec.hidden)), tp)

    def forward(self, x: Tensor, segments: Tensor) -> Tensor:
        return x + F.embedding(segments[:, own_rows(self.tp, x.shape[1])], self.weight)


class PositionEmbedding(nn.Module):
    """Scales the tokens' embeddings by √H and adds positions and segments, as the model has them. Each may be absent."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        kind = spec.parts.position
        self.scale = spec.hidden**0.5 if spec.parts.scaled_embedding and kind != "sinusoidal" else None  # which scales by itself
        self.position = {"learned": LearnedPosition, "sinusoidal": SinusoidalPosition}.get(kind, _no_position)(spec, tp)
        self.segment = SegmentEmbedding(spec, tp) if spec.parts.segments else None
        self.buckets = BucketTables(spec, tp) if kind == "buckets" else None

    def forward(self, x: Tensor, segments: Tensor | None, first: int = 0) -> Tensor:
        if self.scale is not None:
            x = x * self.scale
        if self.position is not None:
            x = self.position(x, first)
        return x if self.segment is None or segments is None else self.segment(x, segments)


def _no_position(spec: ModelSpec, tp: TensorParallel) -> None:
    return None


class Embedding(nn.Module):
    """The token table, and on the first chunk positions and norm.

    If it is tied, the last chunk has a copy of the token table as output layer. The copies are kept equal.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, first: bool) -> None:
        super().__init__()
        std = spec.hidden**-0.5 if spec.parts.scaled_embedding else 0.02  # which √H makes 1, as large as sinusoids
        std = 1.0 if spec.parts.scaled_output and spec.parts.tied else std  # which ÷ √H makes logits of about 1
        self.token = VocabParallelEmbedding(spec.vocab, spec.hidden, tp, std, spec.vocab_multiple or 1)
        self.places = PositionEmbedding(spec, tp) if first else None
        self.norm = make_norm(spec, tp) if first and spec.parts.embedding_norm else None

    def embed(self, feed: Feed, first: int = 0) -> tuple[Tensor, ...]:
        """The first layer's input (B, r, H); two with encoder and decoder. `first`: position of the first token."""
        assert self.places is not None
        if feed.following is None:
            return (self.places(self.token(feed.tokens), feed.segments, first),)
        both = self.places(self.token(torch.cat((feed.tokens, feed.following))), None)  # (2B, s, H)
        return both.chunk(2)

    def tables(self) -> tuple[Tensor, ...]:
        """The tables of biases that go through the layers with their input, if the model has any."""
        assert self.places is not None
        return () if self.places.buckets is None else (self.places.buckets(),)


class Head(nn.Module):
    """From the last layer's output to the loss: a norm or a transform, as the family has it, then the output matrix."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp, self.vocab = tp, spec.vocab
        # With context parallelism, as if each rank predicted as many. So the mean over ranks is that of the whole sequence.
        whole, cp = predicted(spec.parts.objective, spec.seq), tp.comm.mesh.cp
        self.predicted = whole if cp == 1 else whole / cp
        self.first = spec.rows - spec.seq and spec.seq  # with two streams only the query rows predict
        self.scale = spec.hidden**-0.5 if spec.parts.scaled_output else None
        kind = spec.parts.head
        self.transform = Transform(spec, tp) if kind == "transform" else None
        self.norm = None if kind == "bare" else make_norm(spec, tp)
        multiple = spec.vocab_multiple or 1
        self.output = None if spec.parts.tied else VocabParallelEmbedding(spec.vocab, spec.hidden, tp, multiple=multiple)
        bias = ShardSpec((spec.vocab,), 0, init="zeros", multiple=multiple)
        self.bias = ShardedParameter.of(bias, tp) if spec.parts.output_bias else None

    def forward(
        self, x: Tensor, table: VocabParallelEmbedding | None, targets: Tensor, looked_up: bool, chunk: int | None = None
    ) -> Tensor:
        """(B, r, H) → the mean loss. `table`: the tied token table; `looked_up`: see `VocabParallelEmbedding`.

        `chunk`: tokens whose logits exist at once. None: those of all tokens do.
        """
        counted = targets.shape[0] * self.predicted
        if chunk is not None:
            return self._output(table).chunked_loss(self._last_hidden(x), self.bias, self.first, targets, counted, chunk)
        logits = self.logits(x, table, looked_up).float()  # (B, T, V/tp)
        return vocab_parallel_cross_entropy(logits, targets, self.vocab, self.tp, counted)

    def logits(self, x: Tensor, table: VocabParallelEmbedding | None, looked_up: bool = False) -> Tensor:
        """(B, r, H) → (B, T, V/tp)"""
        return self._output(table).logits(self._last_hidden(x), self.bias, self.first, looked_up)

    def _last_hidden(self, x: Tensor) -> Tensor:
        """The input of the output matrix. (B, r, H) → (B, r, H)"""
        if self.transform is not None:
            x = self.transform(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.scale is None else x * self.scale

    def _output(self, table: VocabParallelEmbedding | None) -> VocabParallelEmbedding:
        output = self.output or table
        assert output is not None
        return output


class Transform(nn.Module):
    """Linear and GELU before the output matrix (code of Devlin et al. 2019), replicated over tp. (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = ShardedParameter.of(ShardSpec((spec.hidden, spec.hidden)), tp)
        self.bias = ShardedParameter.of(ShardSpec((spec.hidden,), init="zeros"), tp)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.linear(x, self.weight, self.bias))
