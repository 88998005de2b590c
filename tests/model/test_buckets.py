"""T5's positions: a learned bias for each bucket of distances, which all layers of a stack share."""

from __future__ import annotations

import math

import pytest
import torch

from engine.model.position import bucket_bias, distance_buckets
from engine.spec import RequestError
from tests.model.build import fill, shape, whole_model


def bucket(distance: int, count: int) -> int:
    """In plain arithmetic (Raffel et al. 2020, section 2.1): half of the buckets have one distance each, up to 128 tokens."""
    exact = count // 2
    if distance < exact:
        return distance
    return min(count - 1, exact + int(math.log(distance / exact) / math.log(128 / exact) * (count - exact)))


@pytest.mark.parametrize("count", [16, 32])
def test_buckets_grow_with_the_distance(count):
    found = distance_buckets(torch.arange(300), count).tolist()
    assert found == [bucket(distance, count) for distance in range(300)]
    assert found[128:] == [count - 1] * 172


def test_an_encoder_tells_later_tokens_from_earlier_ones(alone):
    """The tables have the numbers of their rows, so that a bias is the number of its bucket."""
    tables = torch.arange(64.0).view(64, 1).expand(64, 2)
    of_encoder, of_decoder = (bucket_bias(tables, decodes, 12, decodes)[0, 0] for decodes in (False, True))
    for row in range(12):
        for token in range(12):
            distance = abs(token - row)
            assert of_encoder[row, token] == bucket(distance, 16) + 16 * (token > row)
            if token <= row:
                assert of_decoder[row, token] == 32 + bucket(distance, 32)


def test_each_stack_has_its_table(alone):
    """A change of the decoder's table leaves the encoder's output as it is; both change the loss."""
    model = whole_model(shape("t5"), alone)
    table = model.embedding.places.buckets.weight
    fill(model)
    model((), 0)[0].backward()
    assert table.shape == (64, 4)
    assert table.grad[:32].abs().max() > 0
    assert table.grad[32:].abs().max() > 0


def test_scores_have_no_scale(alone):
    """With √D times the queries, a model whose scores are scaled gives what one without a scale gives."""
    losses = []
    for scaled in (False, True):
        model = whole_model(shape("t5", scaled_scores=scaled), alone)
        fill(model)
        with torch.no_grad():
            for layer in model.layers.values():
                for weight in (layer.attention.qkv.weight[:32], *([] if layer.cross is None else [layer.cross.query.weight])):
                    weight.mul_(8**0.5 if scaled else 1.0)
        losses.append(float(model((), 0)[0].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_decoders_alone_have_no_buckets(family):
    with pytest.raises(RequestError, match="position=buckets is for models that are not causal; other positions fit, or bert"):
        shape(family, position="buckets")
