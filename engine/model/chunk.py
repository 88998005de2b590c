"""A chunk of the model: contiguous layers, with the embedding in the first chunk and the head in the last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.families import BUCKETS
from engine.model.ends import Embedding, Head
from engine.model.layers import Layer, buckets_of
from engine.model.norm import make_norm
from engine.model.position import AttentionInputs, KVCache, bucket_bias
from engine.objective import Feed
from engine.parallel.data import ParameterUse, Streams, run_in_order
from engine.parallel.pipeline import TensorShape
from engine.parallel.tensor import ShardedParameter, TensorParallel
from engine.parallel.vocabulary import VocabParallelEmbedding
from engine.spec import AttentionName, ModelSpec, Recompute
from engine.weights import Weights

Batch = Callable[[int], Feed]  # microbatch → its tensors
Through = Callable[[Sequence[ParameterUse], Streams], Streams]

TIED = "embedding.token.weight"


class TransformerChunk(nn.Module):
    """Layers `layers` of the model. Parameters have the names that they have in the whole model.

    From layer to layer one tensor (B, r, H) is passed; r rows, sharded over tp under sequence parallelism. With encoder and
    decoder there are two: in the encoder, its activations and the decoder's input, so that the token table is needed at the
    pipeline's two ends only; in the decoder, its activations and the encoder's output. Tables of biases that all layers share
    follow them (`engine.model.position.BucketTables`).
    """

    def __init__(
        self,
        spec: ModelSpec,
        layers: range,
        first: bool,
        last: bool,
        batch: Batch,
        tp: TensorParallel,
        recompute: Recompute = "none",
        through: Through = run_in_order,
        attention: AttentionName = "fused",
        loss_chunk: int | None = None,
        whole: Collection[int] | None = None,
    ) -> None:
        """`through` runs the uses of parameters one after the other, with their values gathered: `DataParallel.through`.

        `loss_chunk`: tokens of a chunk of the loss, fewer than a microbatch predicts. None: the loss is computed as a whole.
        `whole`: with full recompute, the numbers of the layers that are recomputed. None: all of them.
        """
        super().__init__()
        self.loss_chunk, self.attention = loss_chunk, attention
        self.through = through
        self.spec, self.first, self.last, self.batch, self.tp, self.recompute = spec, first, last, batch, tp, recompute
        self.whole = set(layers if whole is None else whole) if recompute == "full" else set[int]()
        self.kinds = spec.parts  # kept, as a spec looks them up each time
        self._positions = self.kinds.position == "relative"  # each layer's attention reads them from the microbatch
        self._shared_inputs: AttentionInputs | None = None  # of attention, if they are the same in each pass
        self.embedding = Embedding(spec, tp, first) if first or (last and spec.parts.tied) else None
        self.layers = nn.ModuleDict({str(i): Layer(spec, tp, recompute, i, attention) for i in layers})
        # With a norm before the output matrix, the encoder ends with one as well.
        ends = spec.parts.head == "norm" and spec.encoder_layers - 1 in layers
        self.encoder_norm = make_norm(spec, tp) if ends else None
        self.head = Head(spec, tp) if last else None
        self._embedded = () if self.embedding is None else _with_parameters(self.embedding.token, self.embedding.places)
        # If the chunk is first too, the gradient of the table is complete after the backward of the embedding.
        table = self._table()
        self._borrowed = _with_parameters(table) if first else ()
        self._predicting = _with_parameters(self.head, None if first else table) if last else ()

    @property
    def reads(self) -> bool:
        """Whether it asks for microbatches."""
        return self.first or self.last or self._positions

    @property
    def loss_in_backward(self) -> bool:
        """Whether `forward` ends before the head, and `loss` is called in backward."""
        return self.last and self.loss_chunk is not None

    def forward(self, inputs: tuple[Tensor, ...], microbatch: int) -> tuple[Tensor, ...]:
        needed = self.first or (self.last and not self.loss_in_backward) or self._positions
        feed = self.batch(microbatch) if needed else None
        uses = self._uses(feed)
        return self.through([*uses] if self.loss_in_backward else [*uses, *self._head_uses(feed)], inputs)

    def loss(self, outputs: tuple[Tensor, ...], microbatch: int) -> Tensor:
        """The mean loss of the microbatch, computed chunk by chunk together with its gradients. `outputs`: of `forward`."""
        return self.through(list(self._head_uses(self.batch(microbatch))), outputs)[0]

    def _uses(self, feed: Feed | None) -> Iterator[ParameterUse]:
        """The uses of parameters before the head, in order."""
        if self.first:
            yield from self._embedding_uses(feed)
        attention_inputs = self._inputs_of_attention(feed)
        for number, layer in self.layers.items():
            yield ParameterUse(buckets_of(layer), partial(self._run_layer, int(number), layer, attention_inputs))
            if (norm := self.encoder_norm) is not None and int(number) == self.spec.encoder_layers - 1:
                yield ParameterUse((norm,), partial(_after_encoder, norm))

    def _inputs_of_attention(self, feed: Feed | None) -> AttentionInputs:
        """What all layers share in a pass. It is made anew in each, as it takes memory, unless the model's attention has none."""
        if self._shared_inputs is not None:
            return self._shared_inputs
        made = AttentionInputs.of(self.spec, feed, self.tp, self.attention) if self.layers else AttentionInputs()
        if all(one is None for one in made):
            self._shared_inputs = made
        return made

    def _head_uses(self, feed: Feed | None) -> Iterator[ParameterUse]:
        if self.head is not None:
            assert feed is not None
            run = partial(self._loss, feed.targets)
            yield ParameterUse(self._predicting, run, self._borrowed, at_once=self.loss_in_backward)

    def extend(self, streams: Streams, tokens: Tensor | None, cache: KVCache) -> Streams:
        """Forward of n more tokens, whose keys and values are added to the cache.

        The first chunk takes `tokens` (B, n), the others the output of the previous chunk (B, n, H). The last chunk returns the
        logits of the last token (B, 1, V/tp).
        """
        return self.through(
            list(self._uses_with_cache(streams[0].shape[1] if tokens is None else tokens.shape[1], tokens, cache)), streams
        )

    def _uses_with_cache(self, count: int, tokens: Tensor | None, cache: KVCache) -> Iterator[ParameterUse]:
        if self.first:
            embedding = self.embedding
            assert embedding is not None and embedding.places is not None
            feed = Feed(tokens, None)
            yield ParameterUse(self._embedded, lambda _: embedding.embed(feed, cache.length), lookup=True)
        attention_inputs = AttentionInputs.decoding(self.spec, cache, count, self.tp, self.attention)
        for layer in self.layers.values():
            yield ParameterUse(buckets_of(layer), partial(_one_stream, layer, attention_inputs))
        if self.head is not None:
            head, table = self.head, self._table()
            yield ParameterUse((*self._predicting, *self._borrowed), lambda streams: (head.logits(streams[0][:, -1:], table),))

    def _table(self) -> VocabParallelEmbedding | None:
        """The token table, if it is the output matrix too."""
        embedding = self.embedding
        return embedding.token if embedding is not None and self.kinds.tied else None

    def _embedding_uses(self, feed: Feed | None) -> Iterator[ParameterUse]:
        embedding = self.embedding
        assert embedding is not None and embedding.places is not None and feed is not None
        yield ParameterUse(self._embedded, lambda _: (*embedding.embed(feed), *embedding.tables()), lookup=True)
        norm, count = embedding.norm, self.kinds.stacks
        if norm is not None:
            yield ParameterUse((norm,), lambda streams: (*(norm(x) for x in streams[:count]), *streams[count:]))

    def _run_layer(self, number: int, layer: nn.Module, attention_inputs: AttentionInputs, streams: Streams) -> Streams:
        """One layer, and the inputs of the next one.

        If there are tables of biases, they follow the activations. The first layer of a stack here computes its biases, which
        then follow the tables. The tables that go to another chunk are a copy: what was received is kept until backward.
        """
        spec = self.spec
        if self.kinds.position != "buckets":
            return self._activations(number, layer, attention_inputs, streams)
        stacks, decodes = self.kinds.stacks, number >= spec.encoder_layers > 0
        tables, bias = streams[stacks], streams[stacks + 1 :] or (bucket_bias(streams[stacks], decodes, spec.seq, decodes),)
        out = self._activations(number, layer, attention_inputs._replace(bias=bias[0]), streams[:stacks])
        if number == spec.layers - 1:
            return out
        if str(number) == [*self.layers][-1]:
            return *out, tables.clone()
        return *out, tables, *(() if number == spec.encoder_layers - 1 else bias)

    def _activations(self, number: int, layer: nn.Module, attention_inputs: AttentionInputs, streams: Streams) -> Streams:
        spec = self.spec
        if not self.kinds.encoder:
            return (self._checkpointed(number, layer, streams[0], attention_inputs),)
        if number < spec.encoder_layers:
            x, following = streams
            x = self._checkpointed(number, layer, x, attention_inputs)
            return (x, following) if number < spec.encoder_layers - 1 else (following, x)
        y, memory = streams
        y = self._checkpointed(number, layer, y, attention_inputs, memory)
        return (y, memory) if number < spec.layers - 1 else (y,)

    def _checkpointed(self, number: int, layer: nn.Module, *inputs: object) -> Tensor:
        """The layer's output. If it is recomputed whole, only its inputs are kept, and the rest is recomputed in backward."""
        if number not in self.whole:
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _loss(self, targets: Tensor, streams: Streams) -> Streams:
        assert self.head is not None
        table = self._table()
        looked_up = self.first and table is not None
        return (self.head(streams[0], table, targets, looked_up, self.loss_chunk),)

    def parts(self) -> list[nn.Module]:
        """The modules whose parameters form a bucket each, in the order of forward.

        The token table is a bucket of its own, so that it has the same layout at both ends of the pipeline.
        """
        embedding = [] if self.embedding is None else [self.embedding.token, self.embedding.places, self.embedding.norm]
        layers = [module for layer in self.layers.values() for module in buckets_of(layer)]
        return list(_with_parameters(*embedding, *layers, self.encoder_norm, self.head))

    @torch.no_grad()
    def initialize(self, seed: int, weights: Weights | None = None) -> None:
        """Set every parameter to this rank's shard of the model with those weights, or of the model of that seed."""
        at = self.tp.index, self.tp.degree, self.tp.experts
        for name, parameter in self.named_parameters():
            assert isinstance(parameter, ShardedParameter)  # a fake parameter lacks the methods
            if weights is None:
                ShardedParameter.initialize(parameter, name, seed, *at)
            else:
                ShardedParameter.assign(parameter, torch.tensor(weights[name]), *at)


def _one_stream(layer: nn.Module, attention_inputs: AttentionInputs, streams: Streams) -> Streams:
    return (layer(streams[0], attention_inputs),)


def _after_encoder(norm: nn.Module, streams: Streams) -> Streams:
    """The decoder's input, and the encoder's output after its norm."""
    following, memory, *tables = streams
    return following, norm(memory), *tables


def _with_parameters(*modules: nn.Module | None) -> tuple[nn.Module, ...]:
    """The modules that have parameters: a family may have no head of its own, or positions that are not learned."""
    return tuple(module for module in modules if module is not None and next(module.parameters(), None) is not None)


def streams_before(spec: ModelSpec, layer: int, size: int, tp: TensorParallel) -> list[TensorShape]:
    """Shape and type of each input of layer `layer`, or of the head after the last layer. `size`: sequences of a microbatch."""
    rows = spec.rows // tp.comm.mesh.cp // (tp.degree if tp.shards_sequence else 1)
    if layer == spec.layers:
        return [TensorShape((size, rows, spec.hidden), tp.dtype)]
    stacks = spec.parts.stacks
    tables = [TensorShape((stacks * BUCKETS, spec.heads // tp.degree), tp.dtype)] if spec.parts.position == "buckets" else []
    return [TensorShape((size, rows, spec.hidden), tp.dtype)] * stacks + tables


def to_tensors(feed: Feed, device: torch.device) -> Feed:
    """The microbatch as tensors on a device."""
    return Feed(*(None if array is None else torch.tensor(array, device=device) for array in feed))
