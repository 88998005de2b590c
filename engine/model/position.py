"""Positions of tokens: learned, sinusoidal, rotary, relative to the token that is attended to, or biases of distances.

Here is also what a token sees: those before it, or a window of them; and the keys and values that generation keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.families import BUCKETS, FARTHEST, ROTARY_BASE
from engine.objective import Feed
from engine.parallel.context import own_tokens, places_of
from engine.parallel.function import Function
from engine.parallel.tensor import ShardedParameter, ShardSpec, TensorParallel
from engine.spec import AttentionName, ModelSpec

SINUSOID_BASE = 10_000.0  # Vaswani et al. 2017, section 3.5


def own_rows(tp: TensorParallel, rows: int) -> slice:
    """The rows of the sequence that this rank holds, for a tensor with `rows` rows."""
    first = rows * tp.index if tp.shards_sequence else 0
    return slice(first, first + rows)


def own_places(tp: TensorParallel, seq: int, rows: int) -> Tensor:
    """The positions of this rank's rows, where cp cuts sequences of `seq` tokens. (rows,)"""
    comm = tp.comm
    return places_of(own_tokens(tp.context, seq, comm.mesh.cp, comm.at.cp), comm.device)[own_rows(tp, rows)]


class LearnedPosition(nn.Module):
    """A learned row for each position, replicated over tp. (B, s, H) → (B, s, H)

    A model may have more rows than it uses: the first ones of OPT belong to padding.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp, self.seq = tp, spec.seq
        self.weight = ShardedParameter.of(ShardSpec((spec.places, spec.hidden)), tp)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """`first`: position of the first row of x."""
        if self.tp.comm.mesh.cp > 1:
            return x + F.embedding(own_places(self.tp, self.seq, x.shape[1]), self.weight)
        rows = own_rows(self.tp, x.shape[1])
        return x + self.weight[first + rows.start : first + rows.stop]


def sinusoid(places: Tensor, width: int) -> Tensor:
    """sin and cos of position / 10000^(2i/width), in columns 2i and 2i + 1. (n,) → (n, width), fp32"""
    exponents = torch.arange(0, width, 2, device=places.device) / width
    angles = places[:, None] * SINUSOID_BASE**-exponents  # (n, ⌈width/2⌉)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]


class SinusoidalPosition(nn.Module):
    """The embeddings, which may be scaled by √H, plus sinusoids of their positions. (B, s, H) → (B, s, H)"""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.tp, self.seq = tp, spec.seq
        self.scale = spec.hidden**0.5 if spec.parts.scaled_embedding else 1.0

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """`first`: position of the first row of x."""
        if self.tp.comm.mesh.cp > 1:
            places = own_places(self.tp, self.seq, x.shape[1])
        else:
            rows = own_rows(self.tp, x.shape[1])
            places = torch.arange(first + rows.start, first + rows.stop, device=x.device)
        return torch.add(sinusoid(places, x.shape[2]).to(x.dtype), x, alpha=self.scale)


class _Rotate(Function):
    """Rotate each pair of numbers by its row's angle. Backward rotates back, so only the angles are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(…, S, D), (S, W/2), (S, W/2) → (…, S, D), or (…, S, A, D), (S, 1, W/2), (S, 1, W/2) → (…, S, A, D); in fp32 for any x.

    The first W of D numbers are turned.
    """
    width = 2 * cos.shape[-1]
    first, second = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), -1)


class Rotation(NamedTuple):
    """Rotary positions (Su et al. 2021): pair i of a head is rotated by position / base^(2i/W).

    W numbers of a head are turned: all, or the first ones (Black et al. 2022, GPT-NeoX, section 2.1).
    """

    cos: Tensor  # (S, W/2), fp32
    sin: Tensor

    @staticmethod
    def of(tokens: tuple[range, ...], width: int, device: torch.device, base: int = ROTARY_BASE) -> Rotation:
        """For some tokens of a sequence. `width`: W."""
        exponents = torch.arange(0, width, 2, device=device) / width
        angles = places_of(tokens, device)[:, None] * float(base) ** -exponents
        return Rotation(angles.cos(), angles.sin())

    @staticmethod
    def both(tokens: tuple[range, ...], width: int, device: torch.device, bases: tuple[int, int]) -> tuple[Rotation, Rotation]:
        """Of two bases. They are in one tensor, so that a layer of either kind keeps the same memory for backward."""
        pair = [Rotation.of(tokens, width, device, base) for base in bases]
        cos, sin = (torch.stack(several) for several in zip(*pair, strict=True))  # (2, S, W/2) each
        return Rotation(cos[0], sin[0]), Rotation(cos[1], sin[1])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, A, S, D) → (B, A, S, D), contiguous"""
        return _Rotate.apply(x, self.cos, self.sin)

    def by_row(self, x: Tensor) -> Tensor:
        """The same, with the strides of (B, S, A, D)."""
        return _Rotate.apply(x.transpose(1, 2), self.cos.unsqueeze(1), self.sin.unsqueeze(1)).transpose(1, 2)


class KVCache:
    """Keys and values of the tokens so far, of every self-attention on this rank. Latent attention keeps its latent instead."""

    def __init__(
        self, attentions: Sequence[nn.Module], shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        """`shapes`: of both tensors of one attention for the whole sequence, (B, n, S, D) each: see `ModelSpec.cached`."""
        self.length = 0
        self.kept = {a: tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes) for a in attentions}

    def extend(self, attention: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, G, n, D) of n more tokens. Returns those of all tokens so far."""
        end = self.length + k.shape[2]
        keys, values = self.kept[attention]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


def unseen(rows: int, seq: int, window: int, device: torch.device) -> Tensor:
    """True where a row does not see a token: later ones and, if there is a window, those before it. (rows, seq)

    The rows are the last of `seq` tokens. `window`: how many a token sees; 0: all before it.
    """
    if not window:
        return torch.ones(rows, seq, dtype=torch.bool, device=device).triu_(1 + seq - rows)
    seen = torch.ones(rows, seq, dtype=torch.bool, device=device).tril_(seq - rows).triu_(1 + seq - rows - window)
    return seen.logical_not_()


class Distances(NamedTuple):
    """Linear biases (Press et al. 2022, section 3): the score of a token that is n tokens ago is lower by slope × n."""

    ahead: Tensor  # (R, S) by how much each token is ahead of a row: 0 or less, but for those that are not seen
    slopes: Tensor  # (A/tp, 1, 1) of the heads on this rank

    @staticmethod
    def of(spec: ModelSpec, tp: TensorParallel, rows: int, seq: int) -> Distances:
        """The rows are the last of `seq` tokens."""
        device, on_rank = tp.comm.device, spec.heads // tp.degree
        places = torch.arange(seq, device=device)
        ahead = (places - places[seq - rows :, None]).to(tp.dtype)
        own = torch.arange(tp.index * on_rank, (tp.index + 1) * on_rank, device=device)
        return Distances(ahead, slopes(own, spec.heads).to(tp.dtype).view(-1, 1, 1))


def slopes(heads: Tensor, count: int) -> Tensor:
    """The slopes of some of `count` heads, by their numbers. (n,) → (n,), fp32

    Of n heads they are 2^(−8/n), 2^(−16/n), … if n is a power of two. Otherwise those of the power below n, and then those of the
    power above that lie between (code of Press et al. 2022).
    """
    below = 2 ** (count.bit_length() - 1)
    exponents = torch.where(heads < below, -8 / below * (heads + 1), -4 / below * (2 * (heads - below) + 1))
    return exponents.exp2()


class BucketTables(nn.Module):
    """A learned bias for each bucket of distances and each head, of each stack (Raffel et al. 2020, section 2.1).

    All layers of a stack share one table. The first chunk has both tables and passes them on with its activations, so that a
    pipeline's stages have no copies whose gradients would have to be summed: each table's gradient comes back as the activations'
    do. tp cuts the heads.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = ShardedParameter.of(ShardSpec((spec.parts.stacks * BUCKETS, spec.heads), 1), tp)

    def forward(self) -> Tensor:
        """(stacks · 32, A/tp), apart from the parameter, whose values ZeRO 3 releases."""
        return self.weight.clone()


def bucket_bias(tables: Tensor, stack: int, seq: int, causal: bool) -> Tensor:
    """What attention adds to the scores of a row for each token. (stacks · 32, A/tp) → (1, A/tp, S, S)

    `stack`: which table. `causal`: it has buckets of earlier tokens only; otherwise half of them are of later tokens.
    """
    places = torch.arange(seq, device=tables.device)
    ahead = places - places[:, None]  # (S, S)
    count = BUCKETS if causal else BUCKETS // 2
    buckets = distance_buckets(places, count)[ahead.abs()]
    if not causal:
        buckets += count * (ahead > 0)
    return F.embedding(buckets, tables.narrow(0, stack * BUCKETS, BUCKETS)).permute(2, 0, 1).contiguous().unsqueeze(0)


def distance_buckets(distances: Tensor, count: int) -> Tensor:
    """The bucket of each distance ≥ 0: half of them have one distance each, the others grow by a factor. (n,) → (n,)"""
    exact = count // 2
    wide = (distances.clamp(min=1).float() / exact).log() / math.log(FARTHEST / exact) * (count - exact)
    return torch.where(distances < exact, distances, (exact + wide.long()).clamp_(max=count - 1))


def score_mask(spec: ModelSpec, tp: TensorParallel, rows: int, seq: int) -> Tensor | None:
    """What fused attention adds to scores where it must know more than that later tokens are hidden. The rows are the last ones.

    (1, A/tp, R, S) with linear biases, (R, S) with a window, None without both. torch's operation takes either as numbers.
    """
    if spec.parts.position == "alibi":
        ahead, slope = Distances.of(spec, tp, rows, seq)
        mask = (slope * ahead).unsqueeze(0)
    elif "window" in spec.sized_parts:
        mask = torch.zeros(rows, seq, dtype=tp.dtype, device=tp.comm.device)
    else:
        return None
    return mask.masked_fill_(unseen(rows, seq, spec.window, tp.comm.device), float("-inf"))


class AttentionInputs(NamedTuple):
    """Inputs of attention that all layers of a chunk share in one forward pass."""

    rotation: Rotation | None = None
    local_rotation: Rotation | None = None  # of layers with a window, if it is another
    hidden: Tensor | None = None  # (B, 1, R, S) True where a row must not see a token
    waves: Tensor | None = None  # (2S − 1, H) sinusoids of the distances from 1 − S to S − 1
    distance: Tensor | None = None  # (B, 1, R, S) each row's distance to each token, as a row of `waves`
    cache: KVCache | None = None  # of the tokens before these, when generating
    mask: Tensor | None = None  # see `score_mask`, for fused attention
    distances: Distances | None = None  # for written attention with linear biases
    bias: Tensor | None = None  # (1, A/tp, S, S) of distances, see `bucket_bias`

    @staticmethod
    def of(spec: ModelSpec, feed: Feed | None, tp: TensorParallel, attention: AttentionName = "fused") -> AttentionInputs:
        """`feed` is needed for relative positions only."""
        if spec.parts.position != "relative":
            tokens = own_tokens(tp.context, spec.seq, tp.comm.mesh.cp, tp.comm.at.cp)
            return AttentionInputs._of_rows(spec, tp, spec.seq, spec.seq, attention, tokens)
        assert feed is not None
        device = tp.comm.device
        places = torch.arange(spec.seq, device=device)
        waves = sinusoid(torch.arange(1 - spec.seq, spec.seq, device=device), spec.hidden).to(tp.dtype)
        distance = feed.positions[:, :, None] - places + (spec.seq - 1)
        return AttentionInputs(hidden=feed.hidden.unsqueeze(1), waves=waves, distance=distance.unsqueeze(1))

    @staticmethod
    def decoding(spec: ModelSpec, cache: KVCache, count: int, tp: TensorParallel, attention: AttentionName) -> AttentionInputs:
        """For `count` tokens after those in the cache."""
        tokens = (range(cache.length, cache.length + count),)
        return AttentionInputs._of_rows(spec, tp, count, tokens[0].stop, attention, tokens)._replace(cache=cache)

    @staticmethod
    def _of_rows(
        spec: ModelSpec, tp: TensorParallel, rows: int, seq: int, attention: AttentionName, tokens: tuple[range, ...]
    ) -> AttentionInputs:
        """For the last `rows` of `seq` tokens. `tokens`: those of them that this rank has."""
        rotation = local = None
        if "rotary_local_base" in spec.sized_parts:
            bases = spec.angle_base, spec.rotary_local_base
            rotation, local = Rotation.both(tokens, spec.rotated, tp.comm.device, bases)
        elif spec.parts.position == "rotary":
            rotation = Rotation.of(tokens, spec.rotated, tp.comm.device, spec.angle_base)
        if attention == "fused":
            return AttentionInputs(rotation, local, mask=score_mask(spec, tp, rows, seq))
        distances = Distances.of(spec, tp, rows, seq) if spec.parts.position == "alibi" else None
        return AttentionInputs(rotation, local, distances=distances)
