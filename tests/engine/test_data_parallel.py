"""Data parallelism: buckets, and when their reductions start. Parity tests check the sums."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from engine.measure.recorder import Recorder
from engine.parallel.comm import ZERO_SHARDS, Comm
from engine.parallel.data import Bucket, DataParallel
from engine.parallel.tensor import ShardedParameter, ShardSpec, TensorParallel
from engine.parallel.transport import NoPeers
from engine.topology import Mesh

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = TensorParallel(Comm.alone(torch.device("cpu")))


class Linear(nn.Module):
    """y = x Wᵀ + b, in sharded parameters."""

    def __init__(self, inputs: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.weight = ShardedParameter.of(ShardSpec((outputs, inputs), 0), ALONE)
        self.bias = ShardedParameter.of(ShardSpec((outputs,)), ALONE)
        for name, parameter in self.named_parameters():
            cast(ShardedParameter, parameter).initialize(name, seed, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Started:
    """A pending call that completes in `wait`."""

    def __init__(self, complete: Callable[[], object]) -> None:
        self._complete = complete

    def wait(self) -> None:
        self._complete()


class TwoReplicas(Comm):
    """Rank 0 of two equal replicas: a sum is twice its own tensor. It records which reductions start."""

    def __init__(self) -> None:
        super().__init__(Mesh({"dp": 2}), 0, Recorder(), torch.device("cpu"), NoPeers(0))
        self.started: list[int] = []  # addresses

    def start_all_reduce(self, tensor: Tensor, group: str, reduction: str = "sum") -> Any:
        assert (group, reduction) == (ZERO_SHARDS, "sum")
        self.started.append(tensor.data_ptr())
        return Started(lambda: tensor.mul_(2))


def test_a_buckets_parameters_and_gradients_are_views_of_two_flat_tensors() -> None:
    layer = Linear(3, 5)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    bucket = Bucket(list(layer.parameters()), ALONE.comm, 0, torch.float32, masters=True)  # type: ignore[arg-type]
    assert bucket.size == 3 * 5 + 5
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, before[name]), "the values are those that were drawn"
        assert parameter.grad is not None
        for view, flat in ((parameter.data, bucket.values), (parameter.grad, bucket.gradients)):
            place = bucket.places[parameter]  # type: ignore[index]
            assert view.data_ptr() == flat[place].data_ptr()
            assert view.numel() == place.stop - place.start
    places = sorted((place.start, place.stop) for place in bucket.places.values())
    assert places[0][0] == 0
    assert places[-1][1] == bucket.size
    assert all(a[1] == b[0] for a, b in pairwise(places)), "no gap and no overlap"


def test_backward_adds_into_the_flat_gradients() -> None:
    layer, plain = Linear(3, 5), Linear(3, 5)
    bucket = Bucket(list(layer.parameters()), ALONE.comm, 0, torch.float32, masters=True)  # type: ignore[arg-type]
    at = bucket.gradients.data_ptr()
    for seed in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        layer(x).square().sum().backward()
        plain(x).square().sum().backward()
    assert bucket.gradients.data_ptr() == at
    for parameter, other in zip(layer.parameters(), plain.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(bucket.gradients[bucket.places[parameter]].view(parameter.shape), other.grad)  # type: ignore[index]


def two_layers(comm: Comm, microbatches: int) -> tuple[nn.Sequential, DataParallel]:
    model = nn.Sequential(Linear(3, 4), Linear(4, 2, seed=1))
    data = DataParallel(TensorParallel(comm), 0, torch.float32, microbatches)
    data.add_chunk(0, list(model))
    data.begin_step()
    return model, data


def test_a_buckets_reduction_starts_when_its_last_gradient_of_the_step_is_complete() -> None:
    comm = TwoReplicas()
    model, data = two_layers(comm, microbatches=3)
    x = torch.randn(5, 3)
    for _ in range(2):
        model(x).sum().backward()
        assert comm.started == []
    model(x).sum().backward()
    first, second = (data.buckets[layer].gradients for layer in model)
    assert comm.started == [second.data_ptr(), first.data_ptr()], "the layer that backward comes to first sets out first"
    alone = [g.clone() for g in (first, second)]
    data.finish_reductions(0)
    torch.testing.assert_close([first, second], [2 * g for g in alone])


def test_a_missing_gradient_is_an_error() -> None:
    model, data = two_layers(TwoReplicas(), microbatches=2)
    model(torch.randn(5, 3)).sum().backward()
    with pytest.raises(AssertionError, match="a gradient is missing"):
        data.finish_reductions(0)


def test_a_new_step_starts_from_zero() -> None:
    model, data = two_layers(TwoReplicas(), microbatches=1)
    x = torch.randn(5, 3)
    model(x).sum().backward()
    data.finish_reductions(0)
    summed = [bucket.gradients.clone() for bucket in data.buckets.values()]
    data.begin_step()
    assert all((bucket.gradients == 0).all() for bucket in data.buckets.values())
    model(x).sum().backward()
    data.finish_reductions(0)
    torch.testing.assert_close([bucket.gradients for bucket in data.buckets.values()], summed)


def test_one_replica_reduces_nothing() -> None:
    model, data = two_layers(Comm.alone(torch.device("cpu")), microbatches=1)
    model(torch.randn(5, 3)).sum().backward()
    data.finish_reductions(0)
    assert not data.buckets[model[0]].comm.recorder.traffic
