"""What layers of Megatron Core hold in memory, of each kind: with an MLP or with experts, with plain or with latent attention.

In numbers of a token that backward needs, and in parameters; `engine.papers.megatron` makes bytes of them. What it says of norms,
matrix products and fused attention holds here too. Of the rest, with the source:

- Latent attention keeps the input and the result of both norms of latents, the turned part of keys as it was projected, queries
  and keys of full width, values and attention's output of their own (megatron/core/transformer/multi_latent_attention.py, which
  makes them contiguous). Its projection down is whole on each tp rank.
- Experts keep the rows that they get, k for each token, as input of their first product; that product; and its activation,
  times the router's weight (megatron/core/transformer/moe/experts.py). Rows before and after the exchange are not kept. Of the
  router only logits are left, which are not counted.
- In backward of experts there are rows of gradients before and after their exchange (token_dispatcher.py).
- Grouped products have a dummy gradient for each shape of an expert, not for each expert.

Loads are equal: with --moe-expert-capacity-factor 1 and padding they are so for each expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.spec import ModelSpec


class Split(NamedTuple):
    """`whole`: on every tp rank. `divided`: over tp. Numbers of a token, or parameters of a layer."""

    whole: Any
    divided: Any

    def over(self, tp: Any) -> Any:
        return self.whole + self.divided / tp


def attention_kept(model: ModelSpec, copies: Any) -> Split:
    """Queries, keys, values and the output. `copies`: how many tp ranks hold the same key head."""
    if model.latent:
        latents = 2 * (model.q_lora_rank + model.kv_lora_rank) + model.rotated
        return Split(latents, 2 * model.heads * (model.head_width + model.value_width))
    return Split(0, 2 * model.heads * model.head_width + 2 * model.key_heads * model.head_width * copies)


def mlp_kept(model: ModelSpec, results: Any) -> Split:
    """Of an MLP. `results`: tensors as wide as it that the nonlinearity keeps."""
    return Split(0, results * model.ffn_width)


def experts_kept(model: ModelSpec, results: Any) -> Split:
    """Of experts, and of those that all tokens go to."""
    rows = model.expert_choices
    return Split(rows * model.hidden, results * (rows * model.expert_width + model.shared_ffn))


def attention_matrices(model: ModelSpec, copies: Any) -> Split:
    """Parameters, with those that ranks have copies of."""
    queries, keys = model.heads * model.head_width, model.key_heads * model.head_width
    if not model.latent:
        return Split(0, model.hidden * (2 * queries + 2 * keys * copies))
    up = (model.q_lora_rank or model.hidden) * queries + model.kv_lora_rank * model.heads * (model.unturned + model.value_width)
    return Split(model.down_parameters, up + model.heads * model.value_width * model.hidden)


def beside_matrices(model: ModelSpec) -> int:
    """Parameters of norms and biases of a layer with an MLP: they are small, and counted as whole on each rank."""
    matrices = sum(attention_matrices(model, 1)) + mlp_matrices(model, model.ffn_width)
    return model.layer_parameters(False) - int(matrices)


def mlp_matrices(model: ModelSpec, width: int) -> int:
    return (3 if model.parts.gated else 2) * model.hidden * width


def expert_layers(model: ModelSpec, stage: Any, pp: Any) -> Any:
    """How many layers of a stage have experts, where stages are as even as possible and the first ones longer. (n,)"""
    before = np.cumsum([0, *(model.has_experts(layer) for layer in range(model.layers))])
    each = np.ceil(model.layers / pp).astype(np.int64)
    first = np.minimum(stage * each, model.layers)
    return before[np.minimum(first + each, model.layers)] - before[first]
