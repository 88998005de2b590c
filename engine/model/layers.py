"""A Transformer layer, built from the parts that its family names. Shapes: B batch, s (S, or S/tp if sharded), H hidden."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from engine.model.attention import CrossAttention, RelativeAttention, SelfAttention
from engine.model.mlp import MLP
from engine.model.norm import make_norm
from engine.model.position import AttentionInputs
from engine.parallel.tensor import Again, TensorParallel
from engine.spec import AttentionName, ModelSpec, Recompute, recomputes


class Layer(nn.Module):
    """Attention, cross-attention (in a decoder with an encoder) and MLP, each with a norm and a residual connection."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel, recompute: Recompute, number: int, attention: AttentionName) -> None:
        """`number`: its index in the model. `recompute`: its parts that backward computes again."""
        super().__init__()
        selective, self.recomputes_norms = recomputes(recompute, "core_attn"), recomputes(recompute, "layernorm")
        family = spec.parts
        self.pre = family.placement == "pre"
        decodes = family.encoder and number >= spec.encoder_layers
        self.attention_norm = make_norm(spec, tp)
        self.attention: nn.Module
        if family.position == "relative":
            self.attention = RelativeAttention(spec, tp, selective)
        else:
            causal, window = decodes or family.objective == "causal", spec.window if spec.windowed(number) else 0
            self.attention = SelfAttention(spec, tp, selective, causal, attention, window)
        self.cross_norm = make_norm(spec, tp) if decodes else None
        self.cross = CrossAttention(spec, tp, selective, attention) if decodes else None
        self.mlp_norm = make_norm(spec, tp)
        self.mlp = MLP(spec, tp, recomputes(recompute, "mlp_act"))

    def forward(self, x: Tensor, inputs: AttentionInputs, memory: Tensor | None = None) -> Tensor:
        """(B, s, H) → (B, s, H). `memory` is the encoder's output (B, s, H), for cross-attention."""
        x = self._residual(x, self.attention_norm, lambda y, again: self.attention(y, inputs, again))
        if self.cross is not None and self.cross_norm is not None:
            cross = self.cross
            x = self._residual(x, self.cross_norm, lambda y, again: cross(y, memory, again))
        return self._residual(x, self.mlp_norm, self.mlp)

    def _residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor, Again | None], Tensor]) -> Tensor:
        if not self.pre:
            return norm(x + block(x, None))
        return x + block(norm(x), partial(norm, x) if self.recomputes_norms else None)
