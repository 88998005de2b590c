from __future__ import annotations

import numpy as np
import pytest

from engine.families import FAMILIES, predicted
from engine.objective import MASK, feed
from engine.spec import ModelSpec, RequestError
from engine.text import batch
from tests.model.build import shape

TEXT = bytes(range(256)) * 40


def make(spec: ModelSpec, size: int = 3, seed: int = 0, step: int = 1, index: int = 0):
    return feed(spec, TEXT, size, seed, step, index)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_microbatch_depends_only_on_seed_step_and_number(family):
    spec = shape(family, seq=32)
    same, again = make(spec), make(spec)
    for a, b in zip(same, again, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    for other in (make(spec, seed=1), make(spec, step=2), make(spec, index=1)):
        assert not np.array_equal(same.tokens, other.tokens)


def test_causal_tokens_are_the_unchanged_text():
    spec = shape("gpt")
    fed, (tokens, targets) = make(spec), batch(TEXT, 16, 3, 0, 1, 0)
    assert np.array_equal(fed.tokens, tokens)
    assert np.array_equal(fed.targets, targets)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_fifteen_percent_of_tokens_are_masked_and_only_they_have_targets(family):
    spec = shape(family, seq=200)
    fed, (tokens, _) = make(spec, size=50), batch(TEXT, 200, 50, 0, 1, 0)
    chosen = fed.targets >= 0
    assert (chosen.sum(1) == 30).all()
    assert np.array_equal(fed.targets[chosen], tokens[chosen])
    assert np.array_equal(fed.tokens[~chosen], tokens[~chosen])
    hidden, kept = fed.tokens[chosen] == MASK, fed.tokens[chosen] == tokens[chosen]
    assert 0.76 < hidden.mean() < 0.84
    assert 0.07 < kept.mean() < 0.13
    assert 0.07 < (~hidden & ~kept).mean() < 0.13


def test_bert_has_two_segments_and_roberta_has_one():
    assert make(shape("bert", seq=5)).segments.tolist() == [[0, 0, 0, 1, 1]] * 3
    assert make(shape("roberta")).segments is None


def test_the_target_of_seq2seq_begins_where_the_source_ends():
    fed = make(shape("transformer"))
    stretch = np.concatenate((fed.tokens, fed.targets), 1)  # TEXT counts upwards, so this must too
    assert (np.diff(stretch) % 256 == 1).all()
    assert np.array_equal(fed.following[:, 1:], fed.targets[:, :-1])
    assert np.array_equal(fed.following[:, 0], fed.tokens[:, -1])


def test_a_text_too_short_for_source_and_target_is_refused_with_the_arithmetic():
    with pytest.raises(RequestError, match="31 bytes and seq=16 needs at least 32"):
        feed(shape("transformer"), bytes(31), 1, 0, 1, 0)
    assert feed(shape("transformer"), bytes(32), 1, 0, 1, 0).targets.shape == (1, 16)


def test_permuted_targets_are_the_last_tokens_of_the_order():
    spec = shape("xlnet", seq=32)
    fed, (tokens, _) = make(spec), batch(TEXT, 32, 3, 0, 1, 0)
    assert spec.rows == 40
    assert np.array_equal(fed.tokens[:, :32], tokens)
    assert (fed.tokens[:, 32:] == MASK).all()
    asked = fed.positions[:, 32:]
    assert np.array_equal(fed.targets, np.take_along_axis(tokens, asked, 1))
    assert [len(set(row)) for row in asked] == [8] * 3
    assert np.array_equal(fed.positions[:, :32], np.tile(np.arange(32), (3, 1)))


def test_the_masks_of_two_streams_equal_an_example_by_hand():
    """Six tokens. Three are targets in the order 4, 1, 3; 0, 2 and 5 are the context."""
    spec = shape("xlnet", seq=6)
    fed = make(spec, size=1)
    first, second, third = fed.positions[0, 6:]
    context = set(range(6)) - {first, second, third}
    seen = [set(np.flatnonzero(~row)) for row in fed.hidden[0]]
    for token in context:
        assert seen[token] == context
    assert seen[first] == context | {first}
    assert seen[second] == context | {first, second}
    assert seen[third] == set(range(6))
    assert seen[6:] == [context, context | {first}, context | {first, second}]  # a query never sees its own token


@pytest.mark.parametrize("seq", [2, 3, 7, 16, 47, 48, 49, 64, 512, 1000])
def test_at_least_one_and_at_most_half_of_the_tokens_are_targets(seq):
    count = predicted("permuted", seq)
    assert 1 <= count <= seq // 2
    assert count % 8 == 0 or count == seq // 2
    assert count >= seq // 6 or count == seq // 2
    assert 1 <= predicted("masked", seq) <= seq
