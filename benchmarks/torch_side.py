"""The engine's gpt family on torch's own stack, for `benchmarks.torch_stack`: one rank of a run, as a user would write it.

    tp   `parallelize_module` over DTensor; the loss by `loss_parallel`, on logits sharded along the vocabulary
    pp   `torch.distributed.pipelining`: `PipelineStage`s and `ScheduleGPipe`, `Schedule1F1B` or `ScheduleInterleaved1F1B`
    dp   `DistributedDataParallel`, with `ZeroRedundancyOptimizer` for ZeRO 1; `fully_shard` for ZeRO 2 and 3

It starts from the engine's weights and reads the engine's batches, so its losses must equal the engine's.

In torch 2.13, dp, tp, pp and ZeRO can be combined on gloo. Three things needed care. The gradient of an embedding whose table is
sharded over tp is whole on every tp rank with DTensor, so it is sharded before the two copies' gradients are summed.
`get_total_norm` does not accept DTensors of two meshes, so the norm is computed from local parts. DDP with `device_mesh` treats
DTensors as plain tensors; `replicate` of FSDP2 does not, and takes a fifth more CPU time.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from engine.model.chunk import TransformerChunk
from engine.objective import feed
from engine.optimizer import BETAS, WEIGHT_DECAY
from engine.parallel.comm import Comm
from engine.parallel.tensor import TensorParallel
from engine.spec import ModelSpec, RunSpec
from engine.text import load

TABLE = "token.weight"
SCHEDULES: dict[str, Any] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe, "interleaved": ScheduleInterleaved1F1B}


# -------------------------------------------------------------------------------------------------------------- the model


class TorchAttention(nn.Module):
    """Causal attention. (B, S, H) → (B, S, H). The rows of qkv are ordered by head, so that a tp slice has whole heads."""

    def __init__(self, spec: ModelSpec, fused: bool) -> None:
        """`fused`: use torch's attention kernel; otherwise attention is computed step by step."""
        super().__init__()
        self.width, self.fused = spec.head_width, fused
        self.qkv = nn.Linear(spec.hidden, 3 * spec.heads * spec.head_width)
        self.out = nn.Linear(spec.heads * spec.head_width, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = self.qkv(x).view(batch, seq, -1, 3, self.width).permute(3, 0, 2, 1, 4)  # (B, A/tp, S, D) each
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-1, -2)).mul_(self.width**-0.5)  # (B, A/tp, S, S)
            future = torch.ones(seq, seq, dtype=torch.bool).triu_(1)
            mixed = scores.masked_fill_(future, float("-inf")).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class TorchMLP(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.inner = nn.Linear(spec.hidden, spec.ffn_width)
        self.out = nn.Linear(spec.ffn_width, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(x), approximate="tanh"))


class TorchLayer(nn.Module):
    def __init__(self, spec: ModelSpec, fused: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(spec.hidden), TorchAttention(spec, fused)
        self.mlp_norm, self.mlp = nn.LayerNorm(spec.hidden), TorchMLP(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TorchStage(nn.Module):
    """A stage's layers. Tokens (B, S) on the first stage, else (B, S, H) → logits (B, S, V) on the last, else (B, S, H).

    The output matrix is the token table. torch's pipelining cannot tie weights across stages, so the first and the last stage
    have a copy each.
    """

    def __init__(self, spec: ModelSpec, layers: range, fused: bool) -> None:
        super().__init__()
        self.first, self.last = layers.start == 0, layers.stop == spec.layers
        self.token = nn.Embedding(spec.vocab, spec.hidden) if self.first or self.last else None
        self.position = nn.Parameter(torch.empty(spec.seq, spec.hidden)) if self.first else None
        self.layers = nn.ModuleDict({str(i): TorchLayer(spec, fused) for i in layers})
        self.norm = nn.LayerNorm(spec.hidden) if self.last else None

    def forward(self, x: Tensor) -> Tensor:
        if self.token is not None and self.position is not None:
            x = self.token(x) + self.position
        for layer in self.layers.values():
            x = layer(x)
        if self.norm is None or self.token is None:
            return x
        x, table = self.norm(x), self.token.weight
        if isinstance(table, DTensor):
            x = DTensor.from_local(x, table.device_mesh, [Replicate()], run_check=False)
        return F.linear(x, table)

    @property
    def copies(self) -> bool:
        """Whether this stage's token table is the second copy."""
        return self.last and not self.first

    @torch.no_grad()
    def take_weights(self, spec: ModelSpec, layers: range, seed: int) -> None:
        """Load the weights of the engine's model of this seed."""
        tp = TensorParallel(Comm.alone(torch.device("cpu")))
        model = TransformerChunk(spec, layers, self.first, self.last, lambda _: None, tp)  # type: ignore[arg-type, return-value]
        model.initialize(seed)
        renamed = {"embedding.token.": "token.", "embedding.places.position.weight": "position", "head.norm.": "norm."}
        weights = {}
        for name, value in model.state_dict().items():
            # from q, k, v of all heads to q, k, v of each head
            by_head = value.unflatten(0, (3, spec.heads, -1)).transpose(0, 1).flatten(0, 2) if ".qkv." in name else value
            weights[next((name.replace(old, new) for old, new in renamed.items() if name.startswith(old)), name)] = by_head
        self.load_state_dict(weights)


# --------------------------------------------------------------------------------------------------------------- one rank


_OVER_TP = {
    "token": RowwiseParallel(input_layouts=Replicate()),
    "layers.*.attention.qkv": ColwiseParallel(),
    "layers.*.attention.out": RowwiseParallel(),
    "layers.*.mlp.inner": ColwiseParallel(),
    "layers.*.mlp.out": RowwiseParallel(),
}


class TorchRank:
    """One rank of a run of `spec`: the counterpart of `engine.worker.Trainer`. The process group must be there."""

    @classmethod
    def connected(cls, rank: int, store: dist.Store, spec: RunSpec) -> TorchRank:
        """A rank, in a process without a process group."""
        dist.init_process_group("gloo", store=store, rank=rank, world_size=spec.layout.ranks)
        return cls(spec)

    def __init__(self, spec: RunSpec) -> None:
        layout, workload = spec.layout, spec.workload
        self.spec, self.text, self.microbatches = spec, load(workload.text), workload.microbatches
        self.mesh = init_device_mesh("cpu", (layout.pp, layout.dp, layout.tp), mesh_dim_names=("pp", "dp", "tp"))
        # Once, not in each step: to ask a mesh takes time.
        self.groups = {axis: self.mesh.get_group(axis) for axis in ("pp", "dp", "tp")}
        self.replica, stage = (self.mesh.get_local_rank(axis) for axis in ("dp", "pp"))
        ranges = layout.layer_ranges(spec.model.layers)
        own = [chunk for chunk, holder in enumerate(layout.placement) if holder == stage]
        self.parts = [TorchStage(spec.model, ranges[chunk], workload.attention == "fused") for chunk in own]
        self._count(spec.model)
        self.modules = []
        self.parameters: dict[str, nn.Parameter] = {}
        self.sharded: dict[str, bool] = {}
        self.copied: set[str] = set()
        for chunk, part in zip(own, self.parts, strict=True):
            part.take_weights(spec.model, ranges[chunk], workload.seed)
            if layout.tp > 1:
                parallelize_module(part, self.mesh["tp"], _OVER_TP)
            sharded_over_tp = {name for name, p in part.named_parameters() if _sharded_over(p, "tp")}
            self.modules.append(_over_dp(part, self.mesh["dp"], layout.zero))
            # Stored here, because DDP treats DTensors as plain tensors, and its module loses them in its first forward.
            for name, p in part.named_parameters():
                self.parameters[name], self.sharded[name] = p, name in sharded_over_tp
            self.copied |= {TABLE} if part.copies else set()
        self.first, self.last = self.parts[0].first, self.parts[-1].last
        self.optimizer = self._optimizer()
        self.ends: dist.ProcessGroup | None = None
        self.schedule: Any = None
        if layout.pp > 1:
            self.ends = self._group_of_the_ends()
            group, device = self.groups["pp"], torch.device("cpu")
            stages = [
                PipelineStage(module, chunk, len(ranges), device, group=group)
                for chunk, module in zip(own, self.modules, strict=True)
            ]
            held = stages if layout.chunks > 1 else stages[0]
            self.schedule = SCHEDULES[layout.schedule](held, self.microbatches, loss_fn=self._loss, scale_grads=False)
        self.loss = self.grad_norm = torch.zeros(())

    def run_step(self, step: int) -> int:
        """Forward and backward of all microbatches, reduction, loss and gradient norm, and the optimizer's step.

        Returns the instant at which all ranks began.
        """
        began = _common_instant()
        self.optimizer.zero_grad()
        layout = self.spec.layout
        with loss_parallel() if layout.tp > 1 else nullcontext():
            losses = self._with_pipeline(step) if self.schedule else self._without_pipeline(step)
        self._sum_tied_gradients()
        self.grad_norm = self._norm()
        if self.last:
            self.loss = torch.stack([_local(loss.detach()) for loss in losses]).sum() / layout.dp
            if layout.dp > 1:
                dist.all_reduce(self.loss, group=self.groups["dp"])
        self.optimizer.step()
        return began

    def seen(self) -> tuple[float, float]:
        """The loss and the norm of all gradients of the last step."""
        return float(self.loss), float(self.grad_norm)

    def _without_pipeline(self, step: int) -> list[Tensor]:
        losses = []
        for i in range(self.microbatches):
            tokens, targets = self._batch(step, i)
            with self._synchronized(i == self.microbatches - 1):
                loss = self._loss(self.modules[0](tokens), targets)
                loss.backward()
            losses.append(loss)
        return losses

    def _synchronized(self, last: bool) -> AbstractContextManager[None]:
        """Reduce gradients after the last microbatch. ZeRO 2 and 3 reduce after each, because gradients are sharded."""
        (module,) = self.modules
        if isinstance(module, DistributedDataParallel):
            return nullcontext() if last else module.no_sync()
        if isinstance(module, FSDPModule):
            module.set_is_last_backward(last)
            module.set_requires_gradient_sync(last or self.spec.layout.zero >= 2)
        return nullcontext()

    def _with_pipeline(self, step: int) -> list[Tensor]:
        losses: list[Tensor] = []
        if self.first or self.last:
            batches = [self._batch(step, i) for i in range(self.microbatches)]
            tokens, targets = (torch.cat(of_all) for of_all in zip(*batches, strict=True))
            arguments = (tokens,) if self.first else ()
            target = targets if self.last else None
            self.schedule.step(*arguments, target=target, losses=losses, return_outputs=False)
        else:
            self.schedule.step(return_outputs=False)
        return losses

    def _batch(self, step: int, microbatch: int) -> tuple[Tensor, Tensor]:
        workload = self.spec.workload
        index = self.replica * workload.microbatches + microbatch
        arrays = feed(self.spec.model, self.text, workload.microbatch_size, workload.seed, step, index)
        return torch.tensor(arrays.tokens), torch.tensor(arrays.targets)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / self.microbatches

    def _sum_tied_gradients(self) -> None:
        """Sum the gradients of the two copies of the token table."""
        if self.ends is not None and TABLE in self.parameters:
            dist.all_reduce(self._gradient(TABLE), group=self.ends)

    def _gradient(self, name: str) -> Tensor:
        """This rank's part of the parameter's gradient."""
        p = self.parameters[name]
        gradient = p.grad
        assert gradient is not None
        if isinstance(p, DTensor) and isinstance(gradient, DTensor):
            if gradient.placements != p.placements:  # an embedding's gradient is whole on every rank
                p.grad = gradient = gradient.redistribute(placements=p.placements)
            return gradient.to_local()
        return gradient

    def _norm(self) -> Tensor:
        """The norm of all gradients. Each element counts once."""
        own = [name for name in self.parameters if name not in self.copied]
        squares = []
        for sharded in (False, True):
            gradients = [self._gradient(name) for name in own if self.sharded[name] == sharded]
            squares.append(torch.nn.utils.get_total_norm(gradients).square() if gradients else torch.zeros(()))
        whole, parts = squares
        layout = self.spec.layout
        if layout.tp > 1:
            dist.all_reduce(parts, group=self.groups["tp"])
        squared = whole + parts
        if layout.pp > 1:
            dist.all_reduce(squared, group=self.groups["pp"])
        if layout.zero >= 2:
            dist.all_reduce(squared, group=self.groups["dp"])
        return squared.sqrt()

    def _optimizer(self) -> torch.optim.Optimizer:
        workload, parameters = self.spec.workload, list(self.parameters.values())
        options: dict[str, Any] = {
            "lr": workload.learning_rate, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "fused": True,
        }  # fmt: skip
        if self.spec.layout.zero == 1:
            group = self.groups["dp"]
            return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, process_group=group, **options)
        return torch.optim.AdamW([{"params": of_mesh} for of_mesh in _by_mesh(parameters)], **options)

    def _count(self, spec: ModelSpec) -> None:
        """Check that the whole model has as many parameters as the engine's."""
        total = torch.tensor(
            sum(p.numel() for part in self.parts for name, p in part.named_parameters() if not (part.copies and name == TABLE))
        )
        dist.all_reduce(total, group=self.mesh.get_group("pp"))
        assert int(total) == spec.parameters(), f"{int(total)} parameters, and the engine's model has {spec.parameters()}"

    def _group_of_the_ends(self) -> dist.ProcessGroup | None:
        """The group of the first and the last stage of this pipeline. Every rank must take part in creating every group."""
        pipelines = self.mesh.mesh.flatten(1).T.tolist()  # the ranks of each, by stage
        groups = {ranks[0]: dist.new_group([ranks[0], ranks[-1]]) for ranks in pipelines}
        own = next(ranks for ranks in pipelines if dist.get_rank() in ranks)
        return groups[own[0]] if dist.get_rank() in (own[0], own[-1]) else None


def _over_dp(part: TorchStage, dp: DeviceMesh, zero: int) -> nn.Module:
    """The module whose gradients are averaged over dp."""
    if dp.size() == 1:
        return part
    if zero < 2:
        return DistributedDataParallel(part, device_mesh=dp, gradient_as_bucket_view=True)
    for module in (*part.layers.values(), part):
        fully_shard(module, mesh=dp, reshard_after_forward=zero == 3)
    return part


def _sharded_over(p: nn.Parameter, axis: str) -> bool:
    """Whether the parameter is sharded along `axis`."""
    if not isinstance(p, DTensor):
        return False
    names = p.device_mesh.mesh_dim_names or ()
    return any(name == axis and placement.is_shard() for name, placement in zip(names, p.placements, strict=True))


def _by_mesh(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters grouped into plain tensors and DTensors of each mesh. torch accepts only one group in one call."""
    found: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for p in parameters:
        found.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
    return list(found.values())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _common_instant() -> int:
    """The clock's reading at which the last rank arrives, as in the engine."""
    clock = torch.tensor([time.perf_counter_ns()])
    dist.all_reduce(clock, dist.ReduceOp.MAX)
    return int(clock)
