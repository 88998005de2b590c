"""The same model unsharded, in one process, on the same seed and data: what a sharded run must equal.

It shares the layers with the sharded run, but neither its executor nor its buckets nor its collectives: a plain loop.
"""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.measure.parity import parity_row
from engine.model.chunk import TIED, TransformerChunk
from engine.parallel.comm import Comm
from engine.parallel.tensor import ShardedParameter
from engine.spec import RunSpec
from engine.text import batch, load

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01


def train_unsharded(spec: RunSpec) -> tuple[dict[str, Tensor], list[float], dict[str, ShardedParameter]]:
    """Returns the gradients of step 1 by parameter name, the loss of each step, and the parameters."""
    workload = spec.workload
    text = load(workload.text)
    now = [0]  # the step whose data `fetch` gives

    def fetch(index: int) -> tuple[Tensor, Tensor]:
        tokens, targets = batch(text, spec.model.seq, workload.microbatch_size, workload.seed, now[0], index)
        return torch.tensor(tokens), torch.tensor(targets)

    comm = Comm.alone(torch.device("cpu"))
    model = TransformerChunk(spec.model, range(spec.model.layers), True, True, fetch, comm, boundary=())
    model.draw(workload.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    microbatches = spec.layout.dp * workload.microbatches
    gradients: dict[str, Tensor] = {}
    losses = []
    for step in range(1, workload.steps + 1):
        now[0] = step
        total = 0.0
        for index in range(microbatches):
            (loss,) = model((), index)
            (loss / microbatches).backward()
            total += float(loss.detach()) / microbatches
        if step == 1:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return gradients, losses, dict(model.named_parameters())  # type: ignore[arg-type]


def compare(spec: RunSpec, store: dist.Store) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows of the parity table, from the gradients that the ranks put into `store`, and the unsharded losses."""
    gradients, losses, parameters = train_unsharded(spec)
    layout = spec.layout
    rows = []
    for name, whole in gradients.items():
        copies = [name, "tied"] if name == TIED and layout.pp > 1 else [name]
        cut = parameters[name].cut
        joined = []
        for key in copies:
            for dp in range(layout.dp):
                slices = [pickle.loads(store.get(f"gradient/{key}/{dp}/{tp}")) for tp in range(layout.tp)]
                joined += [cut.join(slices)] if cut.dim is not None else slices
        rows.append(parity_row(name, joined, whole))
    return rows, losses
