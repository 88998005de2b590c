"""Memory as Megatron-LM's kernels take it: what CUDA's allocator sees of Megatron Core with Transformer Engine, in closed form.

Where it differs from this engine's own tensors, and the source of each difference:

- SwiGLU is one kernel, which keeps its input alone: 2·f numbers a token, and the product, where this engine keeps the gated half
  too (megatron/core/fusions/fused_bias_swiglu.py). GELU keeps its input and its result (fused_bias_gelu.py), as does a
  squared ReLU.
- Weight gradients are added to the fp32 buffer by the product itself. Transformer Engine then returns a dummy gradient in bf16
  for every weight. There is one for each shape, and it stays (get_dummy_wgrad in transformer_engine/pytorch/module/base.py). The
  output layer makes one of its own in each backward (megatron/core/tensor_parallel/layers.py). Without this fusion
  (--no-gradient-accumulation-fusion) the largest weight gradient is there for a moment instead.
- With sequence parallelism the output layer gathers its input into a buffer that stays (get_global_memory_buffer, the same file).
- Cross entropy turns bf16 logits into fp32 and works in place. bf16 and fp32 logits are there at once in forward. Gradients of
  logits are bf16 (megatron/core/tensor_parallel/cross_entropy.py). The loss is never computed in chunks.
- cuBLAS has two workspaces of 32 MiB, PyTorch's and Transformer Engine's (get_cublas_workspace_size_bytes: of Hopper and later).
- Each rank holds a whole key head at least: with t above the number of key heads, t of them are held.
- The vocabulary is padded to a multiple of 128·t (--make-vocab-size-divisible-by).
- With dropout (--hidden-dropout, 0.1 by default) there is a mask of a byte a number: two in a layer, one behind the embedding.
  Masks of fused attention are drawn again from their seed.

As here, fused attention keeps queries, keys, values and its result; a norm keeps its input and its result; outputs of stages are
freed when they are sent (--deallocate-pipeline-outputs). Recompute: `full` keeps a layer's input and holds one layer's
activations; `layernorm` and `mlp_act` drop those results. ZeRO shards states. Of what it shards there are for a moment the
parameters of two layers and of the table (ZeRO 3), and the gradients of one layer (ZeRO 2 and 3).
The peak is that of the first or the last stage.

Symbols: s tokens of a sequence on a rank, b sequences of a microbatch, h hidden, f the MLP's width, t = tp, V vocabulary,
u = 2·s·b, the bytes of one number of every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import RECOMPUTES, Grid, Whole
from engine.optimizer import optimizer_of
from engine.papers.closed_forms import SHARED_FROM
from engine.papers.megatron_layers import (
    attention_kept,
    attention_matrices,
    beside_matrices,
    expert_layers,
    experts_kept,
    mlp_kept,
    mlp_matrices,
)
from engine.spec import BYTES_OF, ModelSpec, WorkloadSpec

Real = NDArray[np.float64]
_MIB = 2**20
_FULL = RECOMPUTES.index("full")


@dataclass(frozen=True)
class MegatronRun:
    """Settings of a run that a spec does not have."""

    dropout: bool = False  # --hidden-dropout above 0
    fused_accumulation: bool = True  # --no-gradient-accumulation-fusion turns it off
    workspaces: int = 64 * _MIB  # bytes of cuBLAS's workspaces


def megatron_stages(model: ModelSpec, workload: WorkloadSpec, grid: Grid, run: MegatronRun | None = None) -> tuple[Real, Real]:
    """Bytes at the peak of the first stage and of the last stage. (n,) each; with one stage they are equal.

    The model must be one stack of equal layers with plain self-attention, as `accounting` checks.
    """
    asked = _Asked(model, workload, grid, run or MegatronRun())
    alone = grid.pp == 1
    first, last = asked.within_layers(0, alone), asked.within_layers(grid.pp - 1, True)
    last = np.maximum(last, asked.in_the_head())
    return np.where(alone, np.maximum(first, last), first), last


def key_copies(model: ModelSpec, grid: Grid) -> Whole:
    """How many tp ranks hold the same key head, `ModelSpec.key_copies` of each layout. (n,)"""
    return np.maximum(1, grid.tp // model.key_heads)


class _Asked:
    def __init__(self, model: ModelSpec, workload: WorkloadSpec, grid: Grid, run: MegatronRun) -> None:
        self.model, self.workload, self.grid, self.run = model, workload, grid, run
        self.e = BYTES_OF[workload.precision]
        self.unit = self.e * model.seq / grid.cp * grid.microbatch_size  # u
        self.cut = np.where(grid.sequence_parallel, grid.tp, 1)  # what shards the residual stream
        self.layers = np.ceil(model.layers / grid.pp)
        self.copies = key_copies(model, grid)
        self.gated = model.parts.gated
        multiple = model.vocab_multiple or 128
        self.words = multiple * -(-model.vocab // (multiple * grid.tp))  # rows of the vocabulary on a rank
        self.logits = model.seq / grid.cp * grid.microbatch_size * self.words

    def within_layers(self, stage: Any, has_head: Any) -> Real:
        """The backward of the last layer of a stage, while all that it holds is there.

        Beside that are the gradient of the layer's output, u·h, and inside of the MLP that of its nonlinearity's input, f
        or 2·f with a gate. Sequence parallelism gathers the first, u·h more.
        """
        m, grid = self.model, self.grid
        exchanged = np.where(grid.ep > 1, 2, 1)
        rows = np.where(self.with_experts(stage) > 0, m.expert_choices * m.hidden * exchanged, 0)
        inner = np.where(self.with_experts(stage) < self.layers, (2 if self.gated else 1) * m.ffn_width / grid.tp, 0)
        inside = self.unit * (m.hidden / self.cut + np.maximum(rows, inner))
        inside = inside + np.where(grid.sequence_parallel, self.unit * m.hidden, 0)
        inside = inside + np.where(grid.recompute == _FULL, self.of_a_layer(full=False), 0)
        if not self.run.fused_accumulation:
            inside = inside + self.e * m.hidden * m.ffn_width * (2 if self.gated else 1) / grid.tp
        return self.standing(stage, has_head) + self.held(stage) + inside

    def in_the_head(self) -> Real:
        """The last stage's output layer: in forward, or at the start of its backward."""
        m, grid = self.model, self.grid
        stage = grid.pp - 1
        whole = self.unit * m.hidden
        forward = (self.e + 4) * self.logits
        table, gathered = self.e * m.hidden * self.words, np.where(grid.sequence_parallel, 2, 1)
        backward = self.e * self.logits + table + whole * gathered
        return self.standing(stage, True) + self.held(stage) + 2 * whole / self.cut + np.maximum(forward, backward)

    def standing(self, stage: Any, has_head: Any) -> Real:
        """States, dummy gradients, buffers."""
        m, grid, e = self.model, self.grid, self.e
        workload = self.workload
        sizes = {
            "parameters": e,
            "gradients": BYTES_OF[workload.gradient_precision],
            "optimizer": workload.master_bytes + optimizer_of(workload).bytes_of_a_parameter(workload),
        }
        share, of_experts = (
            sum(np.where(grid.zero >= SHARED_FROM[name], size / replicas, float(size)) for name, size in sizes.items())
            for replicas in (grid.shards, grid.shards // grid.ep)
        )
        experts = self.with_experts(stage)
        dense, has = self.layers - experts, experts > 0
        attention, mlp = attention_matrices(m, self.copies).over(grid.tp), mlp_matrices(m, m.ffn_width) / grid.tp
        shared, one = mlp_matrices(m, m.shared_ffn) / grid.tp, mlp_matrices(m, m.expert_width) / grid.tp
        of_a_layer = attention + beside_matrices(m) + mlp
        with_experts = of_a_layer - mlp + shared + m.experts * m.hidden
        routed = experts * (m.experts // grid.ep) * one
        table = m.hidden * self.words
        positions = m.hidden * m.places if m.parts.position == "learned" else 0
        output = np.where((stage == 0) & m.parts.tied, 0, table)
        outer = np.where(stage == 0, table + positions, 0) + np.where(has_head, output, 0)
        shapes = attention + np.where(dense > 0, mlp, 0) + np.where(has, one + shared, 0)
        dummies = e * shapes if self.run.fused_accumulation and workload.precision == "bf16" else 0
        gathered = np.where(grid.sequence_parallel & has_head, self.unit * m.hidden, 0)
        whole_again = np.where(grid.zero == 3, e * (2 * of_a_layer + table), 0)
        whole_again = whole_again + np.where(grid.zero >= 2, sizes["gradients"] * of_a_layer, 0)
        held = (dense * of_a_layer + experts * with_experts + outer) * share + routed * of_experts
        return held + whole_again + dummies + gathered + self.run.workspaces

    def held(self, stage: Any) -> Real:
        """Activations of the layers of all microbatches in flight on a stage."""
        grid = self.grid
        passes = np.zeros(len(grid))
        for facts, rows in grid.schedules():
            at = np.broadcast_to(stage, len(grid))[rows]
            passes[rows] = facts.in_flight(at, grid.pp[rows], grid.microbatches[rows], grid.chunks[rows])
        experts = self.with_experts(stage)
        kept = self.of_a_layer(full=True) * (self.layers - experts) + self.of_a_layer(full=True, experts=True) * experts
        kept = kept * passes / grid.chunks
        if self.run.dropout:
            masks = self.unit / self.e * self.model.hidden / self.cut
            kept = kept + np.where(np.asarray(stage) == 0, masks * passes / grid.chunks, 0)
        return kept

    def with_experts(self, stage: Any) -> Any:
        """How many layers of a stage have experts. (n,)"""
        return expert_layers(self.model, stage, self.grid.pp) if self.model.experts else np.zeros(len(self.grid))

    def of_a_layer(self, full: bool, experts: bool = False) -> Real:
        """Bytes that one layer keeps for one microbatch. `full`: where whole layers are recomputed, their input alone."""
        m, grid, u = self.model, self.grid, self.unit
        norms = np.where(grid.recomputes("layernorm"), 0, 2)
        whole = (2 + norms) * m.hidden / self.cut
        if self.run.dropout:
            whole = whole + 2 * m.hidden / self.cut / self.e
        results = {"relu": 0}.get(m.parts.inner, 1 + self.gated) + np.where(grid.recomputes("mlp_act"), 0, 1)
        attention, inner = attention_kept(m, self.copies), (experts_kept if experts else mlp_kept)(m, results)
        whole = whole + attention.whole / self.cut + inner.whole
        divided = attention.divided + inner.divided
        if self.workload.attention_of(m) == "written":
            divided = divided + np.where(grid.recomputes("core_attn"), 0, m.heads * m.seq)
        bytes_: Real = u * (whole + divided / grid.tp)
        again = grid.recomputed_share(m.layers)
        return again * u * m.hidden / self.cut + (1 - again) * bytes_ if full else bytes_
