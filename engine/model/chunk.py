"""A contiguous run of layers, with the embedding before it or the head behind it where the run is the model's first or last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.model.layers import Layer, LayerNorm
from engine.parallel.data import Use, straight_through
from engine.parallel.tensor import Cut, ShardedParameter, TensorParallel, VocabParallelEmbedding, vocab_parallel_cross_entropy
from engine.spec import ModelSpec, Recompute

Batch = Callable[[int], tuple[Tensor, Tensor]]  # microbatch → tokens (B, S), targets (B, S)

TIED = "embedding.token.weight"


class Position(nn.Module):
    """Learned position embedding, whole on every tp rank. (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(Cut((spec.seq, spec.hidden)), tp)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        first = rows * self.tp.index if self.tp.cuts_sequence else 0
        return x + self.weight[first : first + rows]


class Embedding(nn.Module):
    """The token table, and on the first chunk the positions.

    The last chunk has a token table as well, as the output layer; both ends keep theirs equal.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, first: bool) -> None:
        super().__init__()
        self.token = VocabParallelEmbedding(spec.vocab, spec.hidden, tp)
        self.position = Position(spec, tp) if first else None

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.position is not None
        return self.position(self.token(tokens))


class Head(nn.Module):
    """The last norm; the output layer is the token table."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.norm = LayerNorm(spec.hidden, tp)


class TransformerChunk(nn.Module):
    """Layers `layers` of the model. Parameters have the names they would have in the whole model."""

    def __init__(self, spec: ModelSpec, layers: range, first: bool, last: bool, batch: Batch, tp: TensorParallel, recompute: Recompute) -> None:
        super().__init__()
        self.spec, self.first, self.last, self.batch, self.tp, self.recompute = spec, first, last, batch, tp, recompute
        self.embedding = Embedding(spec, tp, first) if first or last else None
        self.layers = nn.ModuleDict({str(i): Layer(spec, tp, selective=recompute == "selective") for i in layers})
        self.head = Head(spec, tp) if last else None
        self.through: Callable[[Sequence[Use], Tensor], Tensor] = straight_through

    def forward(self, inputs: tuple[Tensor, ...], microbatch: int) -> tuple[Tensor, ...]:
        tokens, targets = self.batch(microbatch) if self.first or self.last else (None, None)
        return (self.through(list(self._uses(targets)), tokens if self.first else inputs[0]),)

    def _uses(self, targets: Tensor | None) -> Iterator[Use]:
        """The way through the chunk, one layer after the other."""
        if self.first:
            assert self.embedding is not None and self.embedding.position is not None
            yield Use((self.embedding.token, self.embedding.position), self.embedding, lookup=True)
        for layer in self.layers.values():
            yield Use((layer,), partial(_recomputed, layer) if self.recompute == "full" else layer)
        if self.head is not None:
            assert self.embedding is not None and targets is not None
            table = (self.embedding.token,)
            # On a chunk that is first as well, the table's gradient is whole once its use as embedding has gone back.
            layers, borrowed = ((self.head,), table) if self.first else ((self.head, *table), ())
            yield Use(layers, partial(self._loss, targets), borrowed)

    def _loss(self, targets: Tensor, x: Tensor) -> Tensor:
        assert self.embedding is not None and self.head is not None
        logits = self.embedding.token.logits(self.head.norm(x), looked_up=self.first).float()  # (B, S, V/tp)
        return vocab_parallel_cross_entropy(logits, targets, self.spec.vocab, self.tp)

    def parts(self) -> list[nn.Module]:
        """What forms a bucket of its own, in the order of the forward pass. The token table is one, so that it is laid out
        alike on both ends of the pipeline."""
        embedding = [] if self.embedding is None else [self.embedding.token, self.embedding.position]
        return [part for part in (*embedding, *self.layers.values(), self.head) if part is not None]

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Set every parameter to its slice of the model that `seed` stands for."""
        for name, parameter in self.named_parameters():
            assert isinstance(parameter, ShardedParameter)
            parameter.draw(name, seed, self.tp.index, self.tp.degree)


def _recomputed(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's result; of its activations only x is kept, and the rest computed again in backward."""
    return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)


def layer_ranges(chunk_layers: tuple[int, ...]) -> list[range]:
    """(3, 3, 2) → layers 0–2, 3–5, 6–7."""
    ends = [sum(chunk_layers[: i + 1]) for i in range(len(chunk_layers))]
    return [range(end - count, end) for end, count in zip(ends, chunk_layers, strict=True)]
