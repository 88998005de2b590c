"""The same model unsharded, in one process, with the same seed and data. A sharded run must give the same gradients and losses.

It uses the same layers as the sharded run, but not its executor, buckets or collectives. It is a plain training loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.measure.parity import parity_row
from engine.model.chunk import TIED, TransformerChunk, to_tensors
from engine.model.experts import biased, expert_layers
from engine.objective import Feed, feed
from engine.optim import make_optimizer
from engine.parallel.comm import Comm
from engine.parallel.routing import Routing
from engine.parallel.tensor import ShardedParameter, TensorParallel
from engine.parallel.update import update_biases
from engine.spec import RunSpec
from engine.text import load
from engine.weights import initial
from engine.wire import WireError, pack, unpack


def train_unsharded(spec: RunSpec) -> tuple[dict[str, Tensor], list[float], dict[str, ShardedParameter]]:
    """Returns the gradients of step 1 by parameter name, the loss of each step, and the parameters."""
    workload = spec.workload
    text = load(workload.text)
    now = [0]  # the step whose data `fetch` gives

    def fetch(index: int) -> Feed:
        arrays = feed(spec.model, text, workload.microbatch_size, workload.seed, now[0], index)
        return to_tensors(arrays, torch.device("cpu"))

    low = workload.precision == "bf16"
    microbatches = spec.layout.dp * workload.microbatches
    routing = Routing(workload.balanced_router, microbatches)
    alone = Comm.alone(torch.device("cpu"))
    tp = TensorParallel(alone, dtype=torch.bfloat16 if low else torch.float32, routing=routing)
    model = TransformerChunk(spec.model, range(spec.model.layers), True, True, fetch, tp, attention=spec.attention)
    model.initialize(workload.seed, initial(workload))
    masters = {name: p.detach().float().clone() if low else p for name, p in model.named_parameters()}
    updated: dict[str, Tensor] = dict(model.named_parameters()) if workload.update_precision == "bf16" else masters
    optimizer = make_optimizer(workload, updated.values())
    routers = biased(expert_layers([model]))
    gradients: dict[str, Tensor] = {}
    losses = []
    for step in range(1, workload.steps + 1):
        now[0] = step
        total = 0.0
        for index in range(microbatches):
            (loss,) = model((), index)
            (loss / microbatches).backward()
            if low:  # accumulate in fp32, so that the reference has smaller rounding errors than the sharded run
                for name, p in model.named_parameters():
                    so_far, more = masters[name].grad, gradient_of(p).float()
                    masters[name].grad = more if so_far is None else so_far + more
                    p.grad = None
            total += float(loss.detach()) / microbatches
        if step == 1:
            gradients = {name: gradient_of(p).clone() for name, p in masters.items()}
        if updated is not masters:
            for name, value in updated.items():
                value.grad, masters[name].grad = gradient_of(masters[name]).to(value.dtype), None
        optimizer.step()
        optimizer.zero_grad()
        update_biases(routers, spec.model.rate_of_balancing, alone)
        for layer in routers:
            layer.empty()
        if low and updated is masters:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(masters[name])
        losses.append(total)
    return gradients, losses, dict(model.named_parameters())  # type: ignore[arg-type]


def gradient_of(p: Tensor) -> Tensor:
    assert p.grad is not None, "every parameter has a part in the loss"
    return p.grad


def publish(store: dist.Store, key: str, replica: int, tp: int, gradient: Tensor) -> None:
    """Put a rank's gradient of the parameter `key` into `store`, in fp32, for `compare`."""
    # A copy: NumPy would take ownership of the gradients' storage, and memory tracing finds them by their address.
    whole = gradient.to("cpu", torch.float32, copy=True).contiguous()
    message = pack({"dtype": "float32", "shape": list(whole.shape)}, {"bytes": whole.numpy().tobytes()})
    store.set(_store_key(key, replica, tp), message)  # type: ignore[arg-type]  # its stub forgets bytes


def _published(store: dist.Store, key: str, replica: int, tp: int, shape: Sequence[int]) -> Tensor:
    """The gradient that `publish` put there, which must have that shape. Raises `WireError`."""
    head, parts = unpack(store.get(_store_key(key, replica, tp)), finite=True)
    raw = parts.get("bytes", memoryview(b""))
    if head != {"dtype": "float32", "shape": list(shape)} or len(raw) != 4 * math.prod(shape):
        raise WireError(f"the gradient of {key} from replica {replica}, tp {tp} is not float32 of {tuple(shape)}")
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).view(*shape)


def _store_key(key: str, replica: int, tp: int) -> str:
    return f"gradient/{key}/{replica}/{tp}"


def compare(spec: RunSpec, store: dist.Store) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows of the parity table, from the gradients that the ranks put into `store`, and the unsharded losses."""
    gradients, losses, parameters = train_unsharded(spec)
    layout = spec.layout
    rows = []
    for name, gradient in gradients.items():
        copies = [name, "tied"] if name == TIED and spec.model.parts.tied and len(layout.placement) > 1 else [name]
        sharding = parameters[name].shard_spec
        ep = layout.ep if sharding.experts else 1
        whole = sharding.unshard([gradient])  # without padding
        shape = sharding.shard(sharding.of_rank(whole, 0, ep), 0, layout.tp).shape
        joined: list[Tensor] = []
        for key in copies:
            for first in range(0, layout.mesh.replicas, ep):
                by_expert = [[_published(store, key, first + index, tp, shape) for tp in range(layout.tp)] for index in range(ep)]
                if sharding.dim is None:
                    joined += by_expert[0]
                else:
                    joined += [
                        torch.cat([sharding.unshard(slices, copy) for slices in by_expert])
                        if ep > 1
                        else sharding.unshard(by_expert[0], copy)
                        for copy in range(sharding.copies(layout.tp))
                    ]
        rows.append(parity_row(name, joined, whole))
    return rows, losses
