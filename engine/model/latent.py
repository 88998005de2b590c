"""Multi-head latent attention (MLA; DeepSeek-AI 2024, DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1).

One projection makes the latents of a token, and the part of the keys that positions turn, which all heads share. tp does not cut
it: under sequence parallelism a rank has the latents of its own tokens. Norms follow, and projections up to heads, which tp cuts.
So what tp gathers and sums is as wide as the latents, not as the residual stream (Megatron-LM core, multi_latent_attention.py).

Shapes: B batch, s (S, or S/tp if sharded), H hidden, A heads; Lq and Lkv the latents of queries, and of keys and values; D width
of a query or key, of which D′ are turned and Dn are not; Dv width of a value.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.attention import SelfAttention
from engine.model.norm import RMSNorm
from engine.model.position import AttentionInputs
from engine.parallel.expert import to_tensor_parallel
from engine.parallel.replicated import ReplicatedLinear
from engine.parallel.tensor import Again, ColumnParallelLinear, RowInput, TensorParallel
from engine.spec import ModelSpec


class LatentAttention(SelfAttention):
    """(B, s, H) → (B, s, H)

    Of a head the turned numbers come first. Generating keeps the latent and the turned part of the keys, and makes the keys and
    values of all tokens so far again for each token.
    """

    def _project(self, spec: ModelSpec, tp: TensorParallel) -> None:
        self.tp = tp
        self.turned, self.unturned, self.values = spec.rotated, spec.unturned, spec.value_width
        self.latents = [width for width in (spec.q_lora_rank, spec.kv_lora_rank) if width]
        self.down = ReplicatedLinear(spec.hidden, sum(self.latents) + self.turned, tp)
        self.query_norm = RMSNorm(spec.q_lora_rank, tp) if spec.q_lora_rank else None
        self.query = ColumnParallelLinear(spec.q_lora_rank or spec.hidden, (self.queries,), tp, bias=False)
        self.latent_norm = RMSNorm(spec.kv_lora_rank, tp)
        self.key_value = ColumnParallelLinear(spec.kv_lora_rank, (spec.heads * (self.unturned + self.values),), tp, bias=False)

    def forward(self, x: Tensor, inputs: AttentionInputs, again: Again | None = None) -> Tensor | RowInput:
        """`again`: see `ColumnParallelLinear.forward`."""
        assert inputs.rotation is not None
        rotation = inputs.local_rotation if self.local and inputs.local_rotation is not None else inputs.rotation
        rotate = rotation.by_row if self.fused else rotation
        *of_query, latent, turned = self.down(x, again).split_with_sizes([*self.latents, self.turned], -1)
        q = self.query(x, again) if self.query_norm is None else self.query(self.query_norm(*of_query))
        (q,) = self.split(q, self.heads)
        q = rotate(q)
        latent = self.latent_norm(latent)
        key = rotate(to_tensor_parallel(turned, self.tp).unsqueeze(1))  # (B, 1, S, D′)
        if inputs.cache is not None:
            latents, key = inputs.cache.extend(self, latent.unsqueeze(1), key)
            latent = latents.squeeze(1)
        k, v = self._keys_and_values(latent, key)
        return self.output(partial(self.core_attention, inputs), q, k, v)

    def _keys_and_values(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(B, s, Lkv), (B, 1, S, D′) → (B, A/tp, S, D), (B, A/tp, S, Dv); as wide as keys for fused attention

        torch's fused operation on a CPU takes values as wide as keys only, so zeros are added to them.
        """
        both = self.key_value(latent)
        unturned, v = both.view(*both.shape[:2], self.heads, -1).split_with_sizes((self.unturned, self.values), -1)
        if not self.fused:
            return torch.cat((key.expand(-1, self.heads, -1, -1), unturned.transpose(1, 2)), -1), v.transpose(1, 2)
        k = torch.cat((key.transpose(1, 2).expand(-1, -1, self.heads, -1), unturned), -1)  # (B, S, A/tp, D)
        missing = self.width - self.values
        v = F.pad(v, (0, missing)) if missing else v.clone()
        return k.transpose(1, 2), v.transpose(1, 2)

    def core_attention(self, inputs: AttentionInputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = super().core_attention(inputs, q, k, v)
        return mixed[..., : self.values] if self.fused else mixed
