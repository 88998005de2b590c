"""A Transformer layer, built from the model's parts. Shapes: B batch, s (S, or S/tp if sharded), H hidden."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from engine.model.attention import CrossAttention, RelativeAttention, SelfAttention
from engine.model.experts import ExpertLayer
from engine.model.latent import LatentAttention
from engine.model.mlp import MLP
from engine.model.norm import make_norm
from engine.model.position import AttentionInputs
from engine.parallel.tensor import Again, RowInput, TensorParallel
from engine.spec import AttentionName, ModelSpec, Recompute, recomputes

Block = Callable[[Tensor, Again | None], Tensor]


class Layer(nn.Module):
    """Attention, cross-attention (in a decoder with an encoder) and MLP, each with its norms and a residual connection.

    Attention and MLP may be in parallel: both read the layer's input, and one residual connection adds both.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, recompute: Recompute, number: int, attention: AttentionName) -> None:
        """`number`: its index in the model. `recompute`: its parts that backward computes again."""
        super().__init__()
        selective, self.recomputes_norms = recomputes(recompute, "core_attn"), recomputes(recompute, "layernorm")
        parts = spec.parts
        self.placement, self.parallel = parts.placement, parts.parallel != "none"
        decodes = parts.encoder and number >= spec.encoder_layers
        self.attention_norm = make_norm(spec, tp)
        self.attention_output_norm = make_norm(spec, tp) if parts.placement == "both" else None
        self.attention: nn.Module
        if parts.position == "relative":
            self.attention = RelativeAttention(spec, tp, selective)
        else:
            causal, window = decodes or parts.objective == "causal", spec.window if spec.local(number) else 0
            kind = LatentAttention if spec.latent else SelfAttention
            self.attention = kind(spec, tp, selective, causal, attention, window)
        self.cross_norm = make_norm(spec, tp) if decodes else None
        self.cross = CrossAttention(spec, tp, selective, attention) if decodes else None
        self.cross_output_norm = make_norm(spec, tp) if decodes and parts.placement == "both" else None
        self.mlp_norm = None if parts.parallel == "one_norm" else make_norm(spec, tp)
        self.mlp_output_norm = make_norm(spec, tp) if parts.placement == "both" else None
        again = recomputes(recompute, "mlp_act")
        self.mlp = ExpertLayer(spec, tp, number, again) if spec.has_experts(number) else MLP(spec, tp, again)

    def forward(self, x: Tensor, inputs: AttentionInputs, memory: Tensor | None = None) -> Tensor:
        """(B, s, H) → (B, s, H). `memory` is the encoder's output (B, s, H), for cross-attention."""

        def attend(y: Tensor, again: Again | None) -> Any:
            return self.attention(y, inputs, again)

        if self.parallel:
            return self._in_parallel(x, attend)
        x = self._residual(x, attend, self.attention_norm, self.attention_output_norm)
        if self.cross is not None:
            cross = self.cross
            x = self._residual(x, lambda y, again: cross(y, memory, again), self.cross_norm, self.cross_output_norm)
        return self._residual(x, self.mlp, self.mlp_norm, self.mlp_output_norm)

    def _residual(self, x: Tensor, block: Block, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        assert norm is not None
        if self.placement == "post":
            return norm(x + block(x, None))
        if self.placement == "output":
            return x + norm(block(x, None))
        y = block(norm(x), self._again(norm, x))
        return x + (y if output_norm is None else output_norm(y))

    def _in_parallel(self, x: Tensor, attend: Callable[[Tensor, Again | None], RowInput]) -> Tensor:
        """The output layers of attention and MLP have one reduction over tp."""
        assert isinstance(self.mlp, MLP), "experts are not in parallel to attention"
        norm = self.mlp_norm or self.attention_norm
        y = self.attention_norm(x)
        return x + self.mlp.out.sum_of(
            (
                attend(y, self._again(self.attention_norm, x)),
                self.mlp(y if self.mlp_norm is None else norm(x), self._again(norm, x)),
            )
        )

    def _again(self, norm: nn.Module, x: Tensor) -> Again | None:
        """How backward computes the input of a block again, if its norm is recomputed."""
        return partial(norm, x) if self.recomputes_norms else None


def buckets_of(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a layer whose parameters form a bucket each: the layer without its experts, and these."""
    assert isinstance(layer, Layer)
    return (layer, layer.mlp.experts) if isinstance(layer.mlp, ExpertLayer) else (layer,)
