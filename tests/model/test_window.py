"""Which tokens a token sees, and how far away they are: a sliding window, and linear biases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.model.attention import SelfAttention
from engine.model.position import AttentionInputs, Rotation, slopes
from engine.spec import AttentionName, ModelSpec, RequestError
from tests.model.build import CPU, fill, shape, whole_model


def by_hand(q: Tensor, k: Tensor, v: Tensor, window: int, slope: list[float]) -> Tensor:
    """Token by token. (B, A, S, D) each → (B, A, S, D)"""
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        for row in range(q.shape[2]):
            first = max(0, row + 1 - window) if window else 0
            ago = torch.tensor([float(row - token) for token in range(first, row + 1)])
            scores = k[:, head, first : row + 1] @ q[:, head, row, :, None] / math.sqrt(q.shape[3])
            weights = (scores.squeeze(-1) - slope[head] * ago).softmax(-1)
            out[:, head, row] = (weights[:, :, None] * v[:, head, first : row + 1]).sum(1)
    return out


@pytest.mark.parametrize("attention", ["fused", "written"])
@pytest.mark.parametrize("changes", [{"window": 5}, {"position": "alibi"}, {"window": 5, "global_every": 1}])
def test_attention_sees_what_the_formula_says(alone: Any, attention: AttentionName, changes: dict[str, Any]) -> None:
    spec = shape("gpt", **changes)
    window = spec.window if spec.windowed(0) else 0
    layer: Any = SelfAttention(spec, alone, False, True, attention, window)
    inputs = AttentionInputs.of(spec, None, alone, attention)
    q, k, v = torch.randn(3, 2, 4, 16, 8)
    slope = [0.25, 0.0625, 0.015625, 0.00390625] if spec.parts.position == "alibi" else [0.0] * 4
    torch.testing.assert_close(layer.core_attention(inputs, q, k, v), by_hand(q, k, v, window, slope))


def test_every_layer_keeps_the_mask_whether_it_has_the_window_or_not(alone: Any) -> None:
    """So that one recorded layer stands for all."""
    spec = shape("gpt", window=5, global_every=2)
    inputs = AttentionInputs.of(spec, None, alone)
    kept = []
    for number in (0, 1):
        layer: Any = SelfAttention(spec, alone, False, True, "fused", spec.window if spec.windowed(number) else 0)
        fill(layer)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):
            layer(torch.randn(2, 16, 32, requires_grad=True), inputs)
        kept.append(sorted(sizes))
    assert kept[0] == kept[1]
    assert 16 * 16 in kept[0]


def test_of_every_so_many_layers_the_last_sees_all_tokens() -> None:
    """As in Gemma 3 (every sixth) and Gemma 2 (every second)."""
    assert [shape("llama", window=8, global_every=3, layers=6).windowed(n) for n in range(6)] == [True, True, False] * 2
    assert all(shape("llama", window=8).windowed(n) for n in range(4))
    assert not any(shape("llama", window=16).windowed(n) for n in range(4)), "as long as the sequence"


def test_the_slopes_are_those_of_the_paper() -> None:
    assert slopes(torch.arange(8), 8).tolist() == [2.0**-n for n in range(1, 9)]
    twelve = slopes(torch.arange(12), 12)
    assert twelve[:8].tolist() == [2.0**-n for n in range(1, 9)]
    torch.testing.assert_close(twelve[8:], torch.tensor([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]))


def test_a_part_of_a_head_is_rotated_with_the_base_of_the_model(alone: Any) -> None:
    spec = shape("llama", rotary_width=4, rotary_base=10_000)
    rotation = AttentionInputs.of(spec, None, alone).rotation
    assert rotation is not None
    x = torch.randn(2, 4, 16, 8)
    out = rotation(x)
    assert torch.equal(out[..., 4:], x[..., 4:])
    torch.testing.assert_close(out[..., :4], Rotation.of((range(16),), 4, CPU, base=10_000)(x[..., :4]))
    assert rotation.cos[3, 1] == pytest.approx(math.cos(3 / 100))


@pytest.mark.parametrize("window", [5, 16, 99])
@pytest.mark.parametrize("attention", ["fused", "written"])
def test_layers_with_a_window_have_their_own_base(alone: Any, attention: AttentionName, window: int) -> None:
    """Each layer gives what it gives in a model where all layers have its base. Also where the window hides nothing."""
    spec = shape("llama", window=window, global_every=2, rotary_base=1000, rotary_local_base=10)
    for number, base in ((0, 10), (1, 1000)):
        one = shape("llama", window=window, global_every=2, rotary_base=base)
        found = []
        for model in (spec, one):
            layer: Any = SelfAttention(model, alone, False, True, attention, model.window if model.local(number) else 0)
            fill(layer)
            torch.manual_seed(1)
            found.append(layer(torch.randn(2, 16, 32), AttentionInputs.of(model, None, alone, attention)))
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rotary_width": 4}, "rotary_width=4 is for rotary positions, and this model has position=learned; 0 fits"),
        ({"position": "rotary", "rotary_width": 10}, "rotary_width=10 is more than a head, which is 8 wide; up to 8 fits"),
        ({"position": "rotary", "rotary_width": 3}, "rotary_width is 3; an even width fits"),
        ({"position": "none", "spare_positions": 2}, "spare_positions=2 is for learned positions"),
        ({"position": "rotary", "rotary_local_base": 9}, "rotary_local_base=9 is for layers with a window, and there is none"),
        ({"rotary_local_base": 9}, "rotary_local_base=9 is for rotary positions"),
        ({"global_every": 2}, "global_every=2 says which layers have no window, and there is none"),
        ({"family": "bert", "window": 4}, "window=4 is for models that predict the next token, and bert does not"),
        ({"position": "alibi", "window": 4}, "window=4 and position=alibi are not built together"),
    ],
)
def test_numbers_of_parts_that_a_model_has_not_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as error:
        shape(**{"family": "gpt"} | changes)
    assert told in str(error.value)


_LLAMA = {"family": "llama", "kv_heads": 8}
PUBLISHED = {
    # facebook/opt-125m: two rows of positions more than tokens
    125_239_296: {"layers": 12, "hidden": 768, "heads": 12, "vocab": 50272, "seq": 2048, "inner": "relu", "spare_positions": 2},
    # EleutherAI/gpt-neox-20b
    20_554_567_680: {
        "layers": 44, "hidden": 6144, "heads": 64, "vocab": 50432, "seq": 2048, "position": "rotary", "rotary_width": 24,
        "rotary_base": 10_000, "tied": False, "parallel": "two_norms",
    },
    # bigscience/bloom
    176_247_271_424: {
        "layers": 70, "hidden": 14336, "heads": 112, "vocab": 250_880, "seq": 2048, "position": "alibi", "embedding_norm": True,
    },
    # mistralai/Mistral-7B-v0.1
    7_241_732_096: _LLAMA | {
        "layers": 32, "hidden": 4096, "heads": 32, "ffn": 14336, "vocab": 32000, "seq": 32768, "window": 4096,
        "rotary_base": 10_000,
    },
}  # fmt: skip


@pytest.mark.parametrize("count", PUBLISHED)
def test_models_with_these_parts_have_as_many_parameters_as_published(count: int) -> None:
    assert ModelSpec(**PUBLISHED[count]).parameters() == count


@pytest.mark.parametrize("changes", [{"spare_positions": 2}, {"position": "none"}, {"position": "alibi"}, {"window": 4}])
def test_the_count_of_parameters_is_that_of_the_model(alone: Any, changes: dict[str, Any]) -> None:
    spec = shape("gpt", **changes)
    assert spec.parameters() == sum(p.numel() for p in whole_model(spec, alone).parameters())
