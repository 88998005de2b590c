"""A contiguous run of layers, with the embedding before it or the head behind it where the run is the model's first or last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.model.layers import Layer, LayerNorm
from engine.parallel.comm import Comm
from engine.parallel.tensor import Cut, ShardedParameter, VocabParallelEmbedding, vocab_parallel_cross_entropy
from engine.spec import ModelSpec

Batch = Callable[[int], tuple[Tensor, Tensor]]  # microbatch → tokens (B, S), targets (B, S)

TIED = "embedding.token.weight"


class Embedding(nn.Module):
    """Token embedding, plus the learned position embedding on the first chunk. tokens (B, S) → (B, S, H)

    The last chunk has the token table as well, as the output layer; both ends keep it equal.
    """

    def __init__(self, spec: ModelSpec, comm: Comm, first: bool) -> None:
        super().__init__()
        self.token = VocabParallelEmbedding(spec.vocab, spec.hidden, comm)
        self.position = ShardedParameter.of(Cut((spec.seq, spec.hidden)), comm) if first else None

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.position is not None
        return self.token(tokens) + self.position


class Head(nn.Module):
    """The last norm, and the token table as output layer."""

    def __init__(self, spec: ModelSpec, comm: Comm) -> None:
        super().__init__()
        self.norm = LayerNorm(spec.hidden, comm)


class TransformerChunk(nn.Module):
    """Layers `layers` of the model. Parameters have the names they would have in the whole model."""

    def __init__(self, spec: ModelSpec, layers: range, first: bool, last: bool, batch: Batch, comm: Comm, boundary: tuple[int, ...]) -> None:
        """`boundary` is the shape (B, S, H) of what passes between chunks."""
        super().__init__()
        self.spec, self.first, self.last, self.batch, self.comm, self.boundary = spec, first, last, batch, comm, boundary
        self.embedding = Embedding(spec, comm, first) if first or last else None
        self.layers = nn.ModuleDict({str(i): Layer(spec, comm) for i in layers})
        self.head = Head(spec, comm) if last else None

    def forward(self, inputs: tuple[Tensor, ...], microbatch: int) -> tuple[Tensor, ...]:
        tokens, targets = self.batch(microbatch) if self.first or self.last else (None, None)
        if self.first:
            assert self.embedding is not None and tokens is not None
            x = self.embedding(tokens)
        else:
            (x,) = inputs
        for layer in self.layers.values():
            x = layer(x)
        if self.head is not None:
            assert self.embedding is not None and targets is not None
            logits = self.embedding.token.logits(self.head.norm(x))
            return (vocab_parallel_cross_entropy(logits, targets, self.spec.vocab, self.comm),)
        return (x,)

    def boundary_shapes(self) -> list[tuple[int, ...]]:
        return [self.boundary]

    def parts(self) -> list[nn.Module]:
        """What forms a bucket of its own: the embedding, each layer, the head."""
        return [part for part in (self.embedding, *self.layers.values(), self.head) if part is not None]

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Set every parameter to its slice of the model that `seed` stands for."""
        for name, parameter in self.named_parameters():
            assert isinstance(parameter, ShardedParameter)
            parameter.draw(name, seed, self.comm.at.tp, self.comm.mesh.tp)


def layer_ranges(stage_layers: tuple[int, ...]) -> list[range]:
    """(3, 3, 2) → layers 0–2, 3–5, 6–7."""
    ends = [sum(stage_layers[: i + 1]) for i in range(len(stage_layers))]
    return [range(end - count, end) for end, count in zip(ends, stage_layers, strict=True)]
