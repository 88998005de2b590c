from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine.model.attention import CrossAttention, RelativeAttention, SelfAttention, fused_attention, written_attention
from engine.model.mlp import MLP
from engine.model.position import AttentionInputs, Rotation, sinusoid
from tests.model.build import CPU, fill, microbatch, shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_torchs(causal, groups):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(written_attention(q, k, v, causal), expected)
    torch.testing.assert_close(fused_attention(q, k, v, causal), expected)


def test_there_can_be_fewer_queries_than_keys():
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(written_attention(q, k, v, causal=False), expected)
    torch.testing.assert_close(fused_attention(q, k, v, causal=False), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("causal", "rows"), [(True, 6), (True, 1), (False, 6), (False, 3)])
@pytest.mark.parametrize(("groups", "width"), [(4, 8), (2, 7), (1, 1)])
def test_fused_attention_keeps_q_k_v_its_output_and_a_number_a_row(dtype, causal, rows, groups, width):
    """No scores, no copies for the heads that share keys; and joining the heads copies nothing."""
    joined = [torch.randn(2, n, h * width, dtype=dtype) for n, h in ((rows, 4), (6, groups), (6, groups))]
    q, k, v = (x.unflatten(-1, (-1, width)).transpose(1, 2).requires_grad_() for x in joined)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixed = fused_attention(q, k, v, causal)
    assert sorted(t.numel() for t in kept) == sorted([q.numel(), k.numel(), v.numel(), mixed.numel(), 2 * 4 * rows])
    assert mixed.transpose(1, 2).flatten(2).data_ptr() == mixed.data_ptr()
    mixed.sum().backward()
    assert [t.grad.shape for t in (q, k, v)] == [t.shape for t in (q, k, v)]


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_fused_and_written_attention_have_the_same_gradients(alone, family):
    results = []
    for name in ("fused", "written"):
        attention = SelfAttention(shape(family), alone, False, True, name)
        fill(attention)
        inputs = AttentionInputs.of(shape(family), None, alone)
        x = torch.linspace(-1, 1, 2 * 16 * 32).view(2, 16, 32).requires_grad_()
        y = attention(x, inputs)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in attention.parameters())])
    for fused, written in zip(*results, strict=True):
        assert (fused - written).abs().max() <= 1e-5 * written.abs().max()


def test_rotary_queries_keep_the_strides_of_rows():
    x, rotation = torch.randn(2, 5, 3, 8).transpose(1, 2), Rotation.of((range(5),), 8, CPU)
    assert torch.equal(rotation.by_row(x), rotation(x))
    assert rotation.by_row(x).transpose(1, 2).is_contiguous()


def test_grouped_self_attention_with_rotation(alone):
    spec = shape("llama")
    attention = SelfAttention(spec, alone, selective=False, causal=True, attention="fused")
    fill(attention)
    assert attention.qkv.weight.shape == (32 + 16 + 16, 32)
    assert attention.qkv.bias is None
    assert attention.out.bias is None
    x, rotation = torch.randn(2, 16, 32), Rotation.of((range(16),), 8, CPU)
    q, k, v = (x @ w.T for w in attention.qkv.weight.split((32, 16, 16)))
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(rotation(q), rotation(k), v, is_causal=True, enable_gqa=True)
    expected = mixed.transpose(1, 2).flatten(2) @ attention.out.weight.T
    torch.testing.assert_close(attention(x, AttentionInputs(rotation)), expected)


def test_self_attention_of_an_encoder_equals_torchs_layer(alone):
    attention: Any = SelfAttention(shape("bert"), alone, False, causal=False, attention="fused")
    fill(attention)
    torchs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    torchs.in_proj_weight.data, torchs.in_proj_bias.data = attention.qkv.weight.data, attention.qkv.bias.data
    torchs.out_proj.weight.data, torchs.out_proj.bias.data = attention.out.weight.data, attention.out.bias.data
    x = torch.randn(2, 16, 32)
    torch.testing.assert_close(attention(x, AttentionInputs()), torchs(x, x, x, need_weights=False)[0])


def test_cross_attention_reads_the_encoders_output(alone):
    attention = CrossAttention(shape("transformer"), alone, selective=False, attention="fused")
    fill(attention)
    torchs = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    torchs.in_proj_weight.data = torch.cat((attention.query.weight.data, attention.key_value.weight.data))
    torchs.out_proj.weight.data = attention.out.weight.data
    x, memory = torch.randn(2, 16, 32), torch.randn(2, 16, 32)
    torch.testing.assert_close(attention(x, memory), torchs(x, memory, memory, need_weights=False)[0])


def test_selective_recompute_changes_nothing(alone):
    spec = shape("xlnet")
    inputs = AttentionInputs.of(spec, microbatch(spec), alone)
    results = []
    for selective in (False, True):
        attention = RelativeAttention(spec, alone, selective)
        fill(attention)
        x = torch.linspace(-1, 1, 2 * spec.rows * 32).view(2, spec.rows, 32).requires_grad_()
        y = attention(x, inputs)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in attention.parameters())])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def test_relative_attention_is_the_sum_of_its_four_terms(alone):
    """Dai et al. 2019, section 3.3: content, position, and the two biases, each computed by loops."""
    spec = shape("xlnet", seq=6, hidden=8, heads=2, ffn=8)
    attention = RelativeAttention(spec, alone, selective=False)
    fill(attention)
    feed = microbatch(spec, size=1)
    x = torch.randn(1, spec.rows, 8)
    q, k, v = ((x[0] @ w.T).unflatten(-1, (2, 4)) for w in attention.qkv.weight.split(8))
    mixed = torch.zeros(spec.rows, 2, 4)
    for head in range(2):
        for row in range(spec.rows):
            scores = torch.full((6,), float("-inf"))
            for token in range(6):
                if feed.hidden[0, row, token]:
                    continue
                wave = sinusoid((feed.positions[0, row] - token)[None], 8)[0]
                r = (attention.distance @ wave).unflatten(0, (2, 4))[head]
                terms = (
                    q[row, head] @ k[token, head],
                    q[row, head] @ r,
                    attention.content_bias[head] @ k[token, head],
                    attention.position_bias[head] @ r,
                )
                scores[token] = sum(terms) / 4**0.5
            mixed[row, head] = scores.softmax(0) @ v[:6, head]
    expected = mixed.flatten(1) @ attention.out.weight.T
    torch.testing.assert_close(attention(x, AttentionInputs.of(spec, feed, alone))[0], expected)


def test_swiglu_is_a_gated_product(alone):
    mlp = MLP(shape("llama"), alone)
    fill(mlp)
    assert mlp.inner.weight.shape == (96, 32)
    x = torch.randn(2, 5, 32)
    gate, up = mlp.inner.weight.split(48)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ mlp.out.weight.T
    torch.testing.assert_close(mlp(x), expected)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize(("family", "between"), [("bert", F.gelu), ("transformer", F.relu), ("gpt", gelu_tanh)])
def test_mlp_of_two_layers(alone, family, between):
    mlp = MLP(shape(family), alone)
    fill(mlp)
    x = torch.randn(2, 5, 32)
    inner = between(F.linear(x, mlp.inner.weight, mlp.inner.bias))
    torch.testing.assert_close(mlp(x), F.linear(inner, mlp.out.weight, mlp.out.bias))
