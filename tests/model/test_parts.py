"""Parts that a model may have apart from its family, against plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine.model.attention import SelfAttention
from engine.model.mlp import MLP
from engine.model.position import AttentionInputs
from tests.model.build import chunk, fill, microbatch, shape, whole_model

PARTS: dict[str, dict[str, Any]] = {
    "gemma": {"placement": "both", "qk_norm": "head", "inner": "geglu", "scaled_embedding": True, "tied": True},
    "olmo": {"placement": "output", "qk_norm": "full"},
    "qwen": {"attention_bias": "qkv"},
    "falcon": {"parallel": "one_norm", "norm": "layer"},
    "neox": {"parallel": "two_norms", "norm": "layer", "inner": "relu2", "attention_bias": "all", "mlp_bias": True},
}


def norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("family", ["llama", "gpt", "transformer"])
def test_the_number_of_parameters_is_that_of_the_model(alone, family, parts):
    if family == "transformer" and "parallel" in parts:
        parts = {**parts, "parallel": "none"}
    spec = shape(family, **parts)
    assert sum(p.numel() for p in whole_model(spec, alone).parameters()) == spec.parameters()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"placement": "both"}, lambda x, a, m: (y := x + norm(a(norm(x)))) + norm(m(norm(y)))),
        ({"placement": "output"}, lambda x, a, m: (y := x + norm(a(x))) + norm(m(y))),
        ({"parallel": "one_norm"}, lambda x, a, m: x + a(norm(x)) + m(norm(x))),
        ({"parallel": "two_norms"}, lambda x, a, m: x + a(norm(x)) + m(2 * norm(x))),
    ],
)
def test_where_the_norms_are(alone, parts, expected):
    """A layer with the weights of another one, whose blocks are called one by one. `norm` has a weight of 1."""
    spec = shape("llama", layers=1, **parts)
    layer = whole_model(spec, alone).layers["0"]
    attention, mlp = SelfAttention(shape("llama"), alone, False, True, "fused"), MLP(shape("llama"), alone)
    for one, other in ((layer.attention, attention), (layer.mlp, mlp)):
        fill(one)
        other.load_state_dict(one.state_dict())
    if parts.get("parallel") == "two_norms":
        layer.mlp_norm.weight.data.fill_(2.0)
    x, inputs = torch.randn(2, 16, 32), AttentionInputs()
    found = expected(x, lambda y: attention(y, inputs), mlp)
    torch.testing.assert_close(layer(x, inputs), found)


@pytest.mark.parametrize("kind", ["head", "full"])
def test_queries_and_keys_are_normalized(alone, kind):
    """Over the width of a head, or over all heads together; scaled by the weight of a head, or of every feature."""
    attention = SelfAttention(shape("llama", qk_norm=kind), alone, False, True, "fused")
    fill(attention)
    x = torch.randn(2, 16, 32)
    q, k, v = (x @ attention.qkv.weight.T).split((32, 16, 16), -1)
    weights = attention.query_norm.weight, attention.key_norm.weight
    if kind == "full":
        q, k = norm(q) * weights[0], norm(k) * weights[1]
    q, k, v = (t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in (q, k, v))
    if kind == "head":
        assert weights[0].shape == (8,)
        q, k = norm(q) * weights[0], norm(k) * weights[1]
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, AttentionInputs()), mixed @ attention.out.weight.T)


def test_geglu_has_the_tanh_form_of_gelu(alone):
    mlp = MLP(shape("llama", inner="geglu"), alone)
    fill(mlp)
    x = torch.randn(2, 5, 32)
    gate, up = (x @ mlp.inner.weight.T).chunk(2, -1)
    torch.testing.assert_close(mlp(x), (F.gelu(gate, approximate="tanh") * up) @ mlp.out.weight.T)


def test_relu_is_squared(alone):
    mlp = MLP(shape("llama", inner="relu2"), alone)
    fill(mlp)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(mlp(x), (x @ mlp.inner.weight.T).clamp(min=0) ** 2 @ mlp.out.weight.T)


def test_biases_of_queries_keys_and_values_alone(alone):
    attention = SelfAttention(shape("llama", attention_bias="qkv"), alone, False, True, "fused")
    assert attention.qkv.bias.shape == (64,)
    assert attention.out.bias is None


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_scaled_embeddings_are_larger_by_the_root_of_the_width(alone, position):
    scaled, plain = (whole_model(shape("gpt", position=position, scaled_embedding=one), alone).embedding for one in (True, False))
    plain.load_state_dict(scaled.state_dict())
    feed = microbatch(shape("gpt"))
    more = scaled.embed(feed)[0] - plain.embed(feed)[0]
    torch.testing.assert_close(more, (32**0.5 - 1) * scaled.token(feed.tokens))


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_a_token_alone_has_its_position_too(alone, position):
    """As when text is generated, one token after the other."""
    embedding = whole_model(shape("gpt", position=position), alone).embedding
    feed = microbatch(shape("gpt"))
    alone_at_5 = embedding.embed(feed._replace(tokens=feed.tokens[:, 5:6]), 5)[0]
    torch.testing.assert_close(alone_at_5, embedding.embed(feed)[0][:, 5:6])


@pytest.mark.parametrize("recompute", ["core_attn", "mlp_act", "layernorm+mlp_act", "full"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_recompute_changes_no_gradient(alone, parts, recompute):
    if parts.get("placement") == "output":
        recompute = recompute.replace("layernorm+", "")
    spec = shape("llama", **parts)
    results = []
    for way in ("none", recompute):
        model = chunk(spec, alone, last=True, recompute=way, fed=lambda index: microbatch(spec, index=index))
        model((), 0)[0].backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
