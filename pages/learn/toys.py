"""Small numpy models for lessons: attention, data parallelism, tensor parallelism.

They are small enough to check by hand. The engine's layers compute the same on larger tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


_SCALE = 0.7  # of queries and keys, so that the softmax of a row has several large entries


def sinusoids(places: int, width: int) -> Array:
    """PE(pos, 2i) = sin(pos ÷ 10000^(2i/d)), PE(pos, 2i+1) the cosine (Vaswani et al. 2017, section 3.5). (places, width)"""
    angles = np.arange(places)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    out = np.empty((places, width))
    out[:, 0::2], out[:, 1::2] = np.sin(angles), np.cos(angles)
    return out


def learned(places: int, width: int) -> Array:
    """A table of learned positions before training: a random row for each position. (places, width)"""
    return np.random.default_rng(5).normal(0, 0.5, size=(places, width))


def rotated(x: Array, places: Array) -> Array:
    """Rotary embedding (Su et al. 2021): numbers 2i and 2i+1 of x are turned by the angle pos ÷ 10000^(2i/d). (len(places), d)"""
    angles = places[:, None] / 10000 ** (np.arange(0, len(x), 2) / len(x))
    sines, cosines, out = np.sin(angles), np.cos(angles), np.empty((len(places), len(x)))
    out[:, 0::2] = x[0::2] * cosines - x[1::2] * sines
    out[:, 1::2] = x[0::2] * sines + x[1::2] * cosines
    return out


def placed(encoding: str, x: Array, places: Array) -> Array:
    """The vector x of a word at each of `places`, with its position. (len(places), d)"""
    if encoding == "rotary":
        return rotated(x, places)
    table = sinusoids if encoding == "sinusoidal" else learned
    return x + table(int(places.max()) + 1, len(x))[places.astype(int)]


def scores_by_distance(encoding: str, first: int, most: int, width: int) -> Array:
    """q · k of a word at `first` and the same word 0 … `most` tokens later, relative to distance 0. (most + 1,)"""
    x = placed(encoding, _word("the", width), np.arange(first, first + most + 1.0))
    found: Array = x @ x[0] / (x[0] @ x[0])
    return found


def attention(tokens: list[str], width: int, causal: bool, places: bool) -> Array:
    """softmax(q·kᵀ ÷ √d) of one head that was not trained: q and k are the token's vector, with or without its position's. (S, S)

    A word's vector is drawn from a seed made of the word, so the same word always has the same vector.
    """
    x = np.stack([_word(token, width) for token in tokens])
    if places:
        x = x + sinusoids(len(tokens), width)
    x = _SCALE * x
    scores = x @ x.T / np.sqrt(width)
    if causal:
        scores[np.triu_indices(len(tokens), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _word(word: str, width: int) -> Array:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
    return np.random.default_rng(seed).normal(size=width)


# --------------------------------------------------------------------------------------------------------- data parallelism


@dataclass(frozen=True)
class Regression:
    """A linear model y = x·w of three weights, trained by least squares. Its gradient is one line."""

    x: Array  # (samples, 3)
    y: Array  # (samples,)

    @classmethod
    def drawn(cls, samples: int, seed: int = 3) -> Regression:
        draw = np.random.default_rng(seed)
        x = draw.integers(-3, 4, (samples, 3)).astype(float)
        return cls(x, x @ np.array([1.0, -2.0, 3.0]) + draw.normal(0, 0.5, samples).round(1))

    def part(self, index: int, of: int) -> Regression:
        """The samples of one replica: a contiguous part of equal size."""
        each = len(self.y) // of
        return Regression(self.x[index * each : (index + 1) * each], self.y[index * each : (index + 1) * each])

    def gradient(self, w: Array) -> Array:
        """The gradient of the mean of (x·w − y)² ÷ 2 over the samples. (3,)"""
        return self.x.T @ (self.x @ w - self.y) / len(self.y)


def replicas(data: Regression, dp: int, steps: int, average: bool, rate: float = 0.05) -> Array:
    """The weights of each replica at the start and after each step, with or without averaged gradients. (steps + 1, dp, 3)"""
    parts = [data.part(index, dp) for index in range(dp)]
    w = np.zeros((dp, 3))
    out = [w]
    for _ in range(steps):
        gradients = np.stack([part.gradient(own) for part, own in zip(parts, w, strict=True)])
        if average:
            gradients = np.broadcast_to(gradients.mean(axis=0), gradients.shape)
        w = w - rate * gradients
        out.append(w)
    return np.stack(out)


# ------------------------------------------------------------------------------------------------------- tensor parallelism


@dataclass(frozen=True)
class Slice:
    """The tensors of one rank for z = relu(x·A)·B. Shapes are for r = 4 ÷ tp columns of A and rows of B."""

    a: Array  # (4, r) its columns of A
    b: Array  # (r, 4) its rows of B
    inner: Array  # (2, r) relu(x·a): complete values of some columns
    partial: Array  # (2, 4) inner·b: partial sums of all columns
    inner_gradient: Array  # (2, r)
    a_gradient: Array  # (4, r)
    b_gradient: Array  # (r, 4)
    input_partial: Array  # (2, 4) its part of the gradient of x


@dataclass(frozen=True)
class TwoLayers:
    """z = relu(x·A)·B with integer entries. x (2, 4), A (4, 4), B (4, 4)"""

    x: Array
    a: Array
    b: Array
    gradient: Array  # of the loss with respect to z (2, 4)

    @classmethod
    def drawn(cls, seed: int) -> TwoLayers:
        draw = np.random.default_rng(seed)
        x, a, b, gradient = (draw.integers(-2, 4, shape).astype(float) for shape in ((2, 4), (4, 4), (4, 4), (2, 4)))
        return cls(x, a, b, gradient)

    def slices(self, tp: int) -> list[Slice]:
        """The tensors of each of `tp` ranks: A is sharded by columns, B by rows. tp divides 4."""
        each = self.a.shape[1] // tp
        return [self._slice(slice(rank * each, (rank + 1) * each)) for rank in range(tp)]

    def _slice(self, own: slice) -> Slice:
        a, b = self.a[:, own], self.b[own]
        inner = np.maximum(self.x @ a, 0)
        inner_gradient = (self.gradient @ b.T) * (inner > 0)
        return Slice(
            a=a,
            b=b,
            inner=inner,
            partial=inner @ b,
            inner_gradient=inner_gradient,
            a_gradient=self.x.T @ inner_gradient,
            b_gradient=inner.T @ self.gradient,
            input_partial=inner_gradient @ a.T,
        )
