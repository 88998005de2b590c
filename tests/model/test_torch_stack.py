"""The benchmark's model on torch's stack equals the engine's, so both do the same work."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.torch_side import TorchStage
from tests.model.build import microbatch, shape, whole_model


@pytest.mark.parametrize("fused", [False, True])
def test_the_model_on_torchs_stack_equals_the_engines_in_loss_and_gradients(alone, fused):
    spec = shape("gpt")
    ours, theirs = whole_model(spec, alone), TorchStage(spec, range(spec.layers), fused)
    theirs.take_weights(spec, range(spec.layers), seed=0)
    assert sum(p.numel() for p in theirs.parameters()) == spec.parameters()
    feed = microbatch(spec)
    loss = F.cross_entropy(theirs(feed.tokens).flatten(0, 1), feed.targets.flatten())
    (expected,) = ours((), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    squares = [sum(p.grad.square().sum() for p in model.parameters()) for model in (ours, theirs)]
    torch.testing.assert_close(*squares)
    torch.testing.assert_close(theirs.token.weight.grad, ours.embedding.token.weight.grad)
