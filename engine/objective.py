"""The inputs and targets of each objective: the tensors of one microbatch. Imports no torch.

    causal    a piece of text; each token is predicted from those before it
    masked    a piece of text with 15% of its tokens masked, which are predicted from all others (Devlin et al. 2019)
    seq2seq   a piece of text as the source, and the next piece as the target, which is predicted token by token
    permuted  a piece of text in a random order; its last tokens in this order are predicted, each from those before it in the
    order
              (Yang et al. 2019). Each of them has a query row, which does not contain the token itself

All depends only on the seed, the step and the microbatch's number. So every rank can make the tensors that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.families import predicted
from engine.spec import BYTE_VOCABULARY, ModelSpec, RequestError, sentence
from engine.text import batch

MASK = BYTE_VOCABULARY  # the token that hides another: the first that is not a byte


class Feed(NamedTuple):
    """One microbatch: NumPy arrays, or tensors in the model. B sequences of S tokens, with R rows in the layers."""

    tokens: Any  # (B, R) inputs of the embedding
    targets: Any  # (B, T) tokens to predict; −1: none
    following: Any = None  # (B, S) seq2seq: inputs of the decoder
    segments: Any = None  # (B, S) 0 in the first half, 1 in the second
    positions: Any = None  # (B, R) permuted: the position of each row in the sequence
    hidden: Any = None  # (B, R, S) permuted: the attention mask; True where a row cannot attend to a token

    def part(self, tokens: Sequence[range]) -> Feed:
        """That of a rank which has only some tokens of each sequence."""
        places = np.concatenate([np.arange(some.start, some.stop) for some in tokens])
        return Feed(*(None if array is None else array[:, places] for array in self))


def feed(model: ModelSpec, text: bytes, size: int, seed: int, step: int, index: int) -> Feed:
    """Microbatch `index` of `step`, of `size` sequences. Raises `RequestError` if the text is too short."""
    objective = model.parts.objective
    if objective == "causal":
        return Feed(*batch(text, model.seq, size, seed, step, index))
    if objective == "seq2seq":
        return _seq2seq(model, text, size, seed, step, index)
    tokens, _ = batch(text, model.seq, size, seed, step, index)
    # Another generator than that of `batch`, so that the pieces of text do not depend on the objective.
    random = np.random.default_rng([seed, step, index, 1])
    return _masked(model, tokens, random) if objective == "masked" else _permuted(model, tokens, random)


def _seq2seq(model: ModelSpec, text: bytes, size: int, seed: int, step: int, index: int) -> Feed:
    """The decoder's first input is the source's last token, so no start token is needed."""
    if len(text) < 2 * model.seq:
        raise RequestError(
            sentence(
                "the text has {size:,} bytes and seq={seq} needs at least {needed:,}: a source and as long a target",
                size=len(text),
                seq=model.seq,
                needed=2 * model.seq,
            )
        )
    tokens, targets = batch(text, 2 * model.seq - 1, size, seed, step, index)
    last = model.seq - 1
    return Feed(tokens[:, : model.seq], targets[:, last:], following=tokens[:, last:])


def _masked(model: ModelSpec, tokens: NDArray[np.int64], random: np.random.Generator) -> Feed:
    """Of the chosen tokens, 80% are masked, 10% replaced by another, and 10% unchanged (Devlin et al. 2019, section 3.1)."""
    size, seq = tokens.shape
    count = predicted("masked", seq)
    chosen = random.random((size, seq)).argsort(1)[:, :count]
    rows = np.arange(size)[:, None]
    targets = np.full((size, seq), -1)
    targets[rows, chosen] = tokens[rows, chosen]
    kind = random.random((size, count))
    other = random.integers(BYTE_VOCABULARY, size=(size, count))
    shown = tokens.copy()
    shown[rows, chosen] = np.where(kind < 0.8, MASK, np.where(kind < 0.9, other, tokens[rows, chosen]))
    segments = (np.arange(seq) >= (seq + 1) // 2).astype(np.int64)
    return Feed(shown, targets, segments=np.tile(segments, (size, 1)) if model.parts.segments else None)


def _permuted(model: ModelSpec, tokens: NDArray[np.int64], random: np.random.Generator) -> Feed:
    """The content rows come first, then a query row for each predicted token.

    A query row starts with the mask token's embedding, which is the learned vector w of Yang et al. 2019, section 2.3. All tokens
    that are not predicted attend to each other, whatever their order.
    """
    size, seq = tokens.shape
    count = predicted("permuted", seq)
    order = random.random((size, seq)).argsort(1)
    positions = order[:, seq - count :]  # (B, T) positions of the predicted tokens, in the permuted order
    rank = np.full((size, seq), -1)
    np.put_along_axis(rank, positions, np.tile(np.arange(count), (size, 1)), 1)
    content = rank[:, :, None] < rank[:, None, :]  # a token attends to itself
    query = np.arange(count)[None, :, None] <= rank[:, None, :]  # a query row does not attend to its own token
    return Feed(
        np.concatenate((tokens, np.full((size, count), MASK)), 1),
        np.take_along_axis(tokens, positions, 1),
        positions=np.concatenate((np.tile(np.arange(seq), (size, 1)), positions), 1),
        hidden=np.concatenate((content, query), 1),
    )
