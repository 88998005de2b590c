"""A whole model with values in one process, as the unsharded reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.families import FamilyName
from engine.model.chunk import TransformerChunk, to_tensors
from engine.objective import Feed, feed
from engine.parallel.tensor import ShardedParameter, TensorParallel
from engine.spec import ModelSpec, Recompute
from engine.text import load

CPU = torch.device("cpu")


def shape(family: FamilyName, **changes: Any) -> ModelSpec:
    """A small model of the family, grouped key heads where it has them."""
    small = {"layers": 4, "hidden": 32, "heads": 4, "vocab": 261, "seq": 16, "ffn": 48}
    grouped = {"kv_heads": 2} if family == "llama" else {}
    return ModelSpec(**{"family": family} | small | grouped | changes)


def microbatch(spec: ModelSpec, size: int = 2, index: int = 0) -> Feed:
    return to_tensors(feed(spec, load(None), size, seed=0, step=1, index=index), CPU)


def whole_model(spec: ModelSpec, tp: TensorParallel) -> Any:
    return chunk(spec, tp, last=True, recompute="none", fed=lambda index: microbatch(spec, index=index))


def chunk(spec: ModelSpec, tp: TensorParallel, *, last: bool, recompute: Recompute, fed: Callable[[int], Feed]) -> Any:
    """All layers, with or without the head."""
    model = TransformerChunk(spec, range(spec.layers), True, last, fed, tp, recompute)
    model.initialize(seed=0)
    return model


def fill(module: nn.Module, std: float = 0.2) -> None:
    """Fill with values that make every parameter matter: none is 0 or 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        assert isinstance(parameter, ShardedParameter)
        nn.init.normal_(parameter, mean=0.1, std=std)
