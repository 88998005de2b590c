"""What each objective feeds a model: the tensors of one microbatch. Imports no torch.

    causal    a stretch of text; each token is predicted from those before it
    masked    a stretch of text with 15% of its tokens hidden, which are predicted from all others (Devlin et al. 2019)
    seq2seq   a stretch as source, and the stretch that follows it as target, predicted token by token
    permuted  a stretch of which the last tokens of a random order are predicted, each from those before it in that order
              (Yang et al. 2019); it has a row of its own for each, so that it can be asked for without being seen

Everything depends on the seed, the step and the microbatch's number alone, so every rank can make what it needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.families import FAMILIES, predicted
from engine.spec import BYTE_VOCABULARY, ModelSpec, RequestError, sentence
from engine.text import batch

MASK = BYTE_VOCABULARY  # the token that hides another: the first that is not a byte


class Feed(NamedTuple):
    """One microbatch: arrays here, tensors in the model. B sequences of S tokens; R rows go through the layers."""

    tokens: Any  # (B, R) what the first layer reads
    targets: Any  # (B, T) what is to be predicted; −1 where nothing is
    following: Any = None  # (B, S) seq2seq: what the decoder reads
    segments: Any = None  # (B, S) 0 in the first half, 1 in the second
    positions: Any = None  # (B, R) permuted: where in the sequence each row stands
    hidden: Any = None  # (B, R, S) permuted: True where a row must not see a token


def feed(model: ModelSpec, text: bytes, size: int, seed: int, step: int, index: int) -> Feed:
    """Microbatch `index` of `step`, of `size` sequences. Raises `RequestError` if the text is too short."""
    objective = FAMILIES[model.family].objective
    if objective == "causal":
        return Feed(*batch(text, model.seq, size, seed, step, index))
    if objective == "seq2seq":
        return _seq2seq(model, text, size, seed, step, index)
    tokens, _ = batch(text, model.seq, size, seed, step, index)
    # Apart from the stretches', so that they do not depend on the objective.
    random = np.random.default_rng([seed, step, index, 1])
    return _masked(model, tokens, random) if objective == "masked" else _permuted(model, tokens, random)


def _seq2seq(model: ModelSpec, text: bytes, size: int, seed: int, step: int, index: int) -> Feed:
    """The decoder reads from the source's last token on, so no token is needed to start with."""
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
    """Of the tokens chosen 80% are hidden, 10% replaced by another and 10% left as they are (Devlin et al. 2019, 3.1)."""
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
    return Feed(shown, targets, segments=np.tile(segments, (size, 1)) if FAMILIES[model.family].segments else None)


def _permuted(model: ModelSpec, tokens: NDArray[np.int64], random: np.random.Generator) -> Feed:
    """The content rows come first, then a query row for each token that is predicted.

    A query starts as the mask token's embedding, which is the learned vector w of Yang et al. 2019, section 2.3. The tokens
    that are not predicted all see one another, whatever their order.
    """
    size, seq = tokens.shape
    asked = predicted("permuted", seq)
    order = random.random((size, seq)).argsort(1)
    positions = order[:, seq - asked :]  # (B, asked): where the predicted tokens stand, in the permuted order
    rank = np.full((size, seq), -1)
    np.put_along_axis(rank, positions, np.tile(np.arange(asked), (size, 1)), 1)
    content = rank[:, :, None] < rank[:, None, :]  # a token sees itself
    query = np.arange(asked)[None, :, None] <= rank[:, None, :]  # a query does not see the token it asks for
    return Feed(
        np.concatenate((tokens, np.full((size, asked), MASK)), 1),
        np.take_along_axis(tokens, positions, 1),
        positions=np.concatenate((np.tile(np.arange(seq), (size, 1)), positions), 1),
        hidden=np.concatenate((content, query), 1),
    )
