"""Tensor parallelism: sharded layers equal unsharded ones, in values and gradients. Ranks are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.measure.recorder import Recorder
from engine.parallel.comm import Comm, Pending
from engine.parallel.tensor import (
    ColumnParallelLinear,
    RowParallelLinear,
    ShardedParameter,
    ShardSpec,
    TensorParallel,
)
from engine.parallel.transport import NoPeers, Reduction
from engine.parallel.vocabulary import VocabParallelEmbedding, vocab_parallel_cross_entropy
from engine.topology import Mesh
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("one_thread")

T = TypeVar("T")


class ThreadComm(Comm):
    """A rank of a tp group of threads. Its collectives reduce and gather in memory. A result is NaN until it was waited for."""

    def __init__(self, tp: int, index: int, barrier: threading.Barrier, table: list[Any]) -> None:
        super().__init__(Mesh({"tp": tp}), index, Recorder(), torch.device("cpu"), NoPeers(index))
        self._barrier, self._table = barrier, table

    def _exchange(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, along a new first dimension."""
        self._table[self.rank] = tensor.detach().clone()
        self._barrier.wait()
        all_of_them = torch.stack(self._table)
        self._barrier.wait()
        return all_of_them

    def start_all_reduce(self, tensor: Tensor, group: str, reduction: Reduction = "sum") -> Pending:
        parts = self._exchange(tensor)
        found = parts.sum(0) if reduction == "sum" else parts.amax(0)
        return self._later(tensor, found, super().start_all_reduce(tensor, group, reduction))

    def start_all_gather(self, out: Tensor, tensor: Tensor, group: str) -> Pending:
        return self._later(out, self._exchange(tensor), super().start_all_gather(out, tensor, group))

    def start_reduce_scatter(self, tensor: Tensor, group: str, out: Tensor | None = None, accumulate: bool = False) -> Pending:
        assert out is not None
        assert not accumulate
        return self._later(out, self._exchange(tensor).sum(0)[self.rank], super().start_reduce_scatter(tensor, group, out))

    @staticmethod
    def _later(out: Tensor, found: Tensor, pending: Pending) -> Pending:
        """`out` becomes `found` when the call is waited for."""
        finish = pending.afterwards or (lambda: None)

        def finish_and_write() -> None:
            finish()
            out.copy_(found)

        pending.afterwards = finish_and_write
        out.fill_(float("nan"))
        return pending


def on_slices(tp: int, body: Callable[[TensorParallel], T], sequence: bool = False) -> list[T]:
    """The results of `body` on each of `tp` ranks."""
    barrier, table = threading.Barrier(tp, timeout=PATIENCE_S), [None] * tp

    def be(index: int) -> T:
        try:
            return body(TensorParallel(ThreadComm(tp, index, barrier, table), sequence))
        except BaseException:
            barrier.abort()  # other ranks must not wait for this one
            raise

    with ThreadPoolExecutor(tp) as pool:
        return list(pool.map(be, range(tp)))


def drawn(module: torch.nn.Module, tp: TensorParallel, seed: int = 0) -> dict[str, ShardedParameter]:
    found = cast(dict[str, ShardedParameter], dict(module.named_parameters()))
    for name, parameter in found.items():
        if parameter.shard_spec.init == "zeros":  # so that a test sees that a bias is added exactly once
            parameter.shard_spec = ShardSpec(parameter.shard_spec.shape, parameter.shard_spec.dim, parameter.shard_spec.blocks)
        parameter.initialize(name, seed, tp.index, tp.degree)
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- shard specs


@st.composite
def shard_specs(draw: st.DrawFn) -> ShardSpec:
    dims = draw(st.integers(1, 3))
    dim = draw(st.none() | st.integers(0, dims - 1))
    shape = [draw(st.integers(1, 6)) for _ in range(dims)]
    blocks: tuple[int, ...] = ()
    if dim is not None:
        blocks = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
        shape[dim] = sum(blocks)
        blocks = blocks if len(blocks) > 1 or draw(st.booleans()) else ()
    return ShardSpec(tuple(shape), dim, blocks, multiple=draw(st.integers(1, 4)))


@given(spec=shard_specs(), of=st.integers(1, 8))
def test_unsharding_is_the_inverse_of_sharding(spec: ShardSpec, of: int) -> None:
    """With any padding, also if a slice has only padding."""
    whole = torch.arange(1, 1 + torch.Size(spec.shape).numel(), dtype=torch.float32).view(spec.shape)
    slices = [spec.shard(whole, index, of) for index in range(of)]
    assert torch.equal(spec.unshard(slices), whole)
    assert len({s.shape for s in slices}) == 1, "every rank holds as much"
    thread_comm = ThreadComm(of, 0, threading.Barrier(1), [])
    assert ShardedParameter.of(spec, TensorParallel(thread_comm)).shape == slices[0].shape
    if spec.dim is not None:
        kept = torch.cat([s.flatten() for s in slices])
        assert torch.equal(kept[kept != 0].sort().values, whole.flatten()), "each entry once, and the rest is zeros"


def test_a_fused_weight_is_sharded_block_by_block() -> None:
    """Each rank gets the part of its heads of q, of k and of v, and not contiguous rows of q, k and v together."""
    spec = ShardSpec((6, 1), 0, (2, 2, 2))
    qkv = torch.tensor([[10.0], [11], [20], [21], [30], [31]])
    assert spec.shard(qkv, 0, 2).flatten().tolist() == [10, 20, 30]
    assert spec.shard(qkv, 1, 2).flatten().tolist() == [11, 21, 31]


def test_ranks_have_copies_of_a_key_head_where_there_are_fewer_heads_than_ranks() -> None:
    """Of 4 query heads and 2 key heads of one number each: q is cut in four, k and v in two."""
    spec = ShardSpec((8, 1), 0, (4, 2, 2), (0, 1, 1))
    qkv = torch.tensor([[10.0], [11], [12], [13], [20], [21], [30], [31]])
    slices = [spec.shard(qkv, index, 4) for index in range(4)]
    assert [s.flatten().tolist() for s in slices] == [[10, 20, 30], [11, 20, 30], [12, 21, 31], [13, 21, 31]]
    assert (spec.copies(4), spec.copied(4)) == (2, 2)
    assert (spec.copies(2), spec.copied(2)) == (1, 0)
    assert all(torch.equal(spec.unshard(slices, copy), qkv) for copy in range(2))
    slices[1] = slices[1] + 1
    assert not torch.equal(spec.unshard(slices, 1), qkv), "the second copy is read from the second rank"


@given(spec=shard_specs(), of=st.integers(1, 8), seed=st.integers(0, 2**31 - 1))
def test_shards_initialized_separately_equal_those_of_the_whole(spec: ShardSpec, of: int, seed: int) -> None:
    def draw(index: int, ranks: int, name: str = "layers.0.weight") -> Tensor:
        parameter = ShardedParameter.of(spec, TensorParallel(ThreadComm(ranks, index, threading.Barrier(1), [])))
        parameter.initialize(name, seed, index, ranks)
        return parameter.detach()

    whole = draw(0, 1)
    assert torch.equal(spec.unshard([draw(index, of) for index in range(of)]), spec.unshard([whole]))
    assert not torch.equal(draw(0, 1, "layers.1.weight"), whole), "another name, another draw"


def test_biases_and_norms_are_not_random() -> None:
    tp = TensorParallel(Comm.alone(torch.device("cpu")))
    for draw, value in (("zeros", 0.0), ("ones", 1.0)):
        parameter = ShardedParameter.of(ShardSpec((3,), init=draw), tp)  # type: ignore[arg-type]
        parameter.initialize("bias", 0, 0, 1)
        assert parameter.tolist() == [value] * 3


def test_initial_values_have_the_requested_deviation() -> None:
    parameter = ShardedParameter.of(ShardSpec((400, 400), std=0.02), TensorParallel(Comm.alone(torch.device("cpu"))))
    parameter.initialize("weight", 0, 0, 1)
    assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert float(parameter.detach().mean()) == pytest.approx(0, abs=2e-4)


# --------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("sequence", [False, True], ids=["whole sequence", "sequence sharded"])
@pytest.mark.parametrize("again", [False, True], ids=["input kept", "input computed again"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_column_and_a_row_parallel_layer_equal_two_unsharded_ones(tp: int, again: bool, sequence: bool) -> None:
    b, s, h, f = 2, 8, 4, 12
    x, seen = random(b, s, h), random(b, s, h, seed=1)

    def body(at: TensorParallel) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, ShardSpec]]:
        torch.set_grad_enabled(True)
        both = torch.nn.ModuleDict({"inner": ColumnParallelLinear(h, (f,), at), "out": RowParallelLinear(f, h, at, std=0.02)})
        parameters = drawn(both, at)
        rows = s // at.degree if sequence else s
        here = slice(rows * at.index, rows * (at.index + 1)) if sequence else slice(None)
        mine = x[:, here].clone().requires_grad_()
        y = both["out"](both["inner"](mine), torch.tanh) if again else both["out"](both["inner"](mine).tanh())
        (y * seen[:, here]).sum().backward()
        assert mine.grad is not None
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        return y.detach(), mine.grad, gradients, {name: p.shard_spec for name, p in parameters.items()}

    (whole,) = on_slices(1, body)
    slices = on_slices(tp, body, sequence)
    for found, expected in (([y for y, _, _, _ in slices], whole[0]), ([gradient for _, gradient, _, _ in slices], whole[1])):
        for one in [torch.cat(found, 1)] if sequence else found:
            torch.testing.assert_close(one, expected)
    for name, gradient in whole[2].items():
        parts = [rank[2][name] for rank in slices]
        spec = whole[3][name]
        if spec.dim is None and sequence:  # each rank saw a part of the sequence; the bucket sums gradients
            parts = [cast(Tensor, sum(parts))]
        torch.testing.assert_close(spec.unshard(parts), gradient)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_sharded_embedding_equals_an_unsharded_one(tp: int) -> None:
    """Ten rows over four ranks: three each; the last has one row and two of padding."""
    vocab, hidden = 10, 3
    tokens = torch.tensor([[0, 9, 3, 2], [5, 6, 9, 8]])
    seen = random(2, 4, hidden)

    def body(at: TensorParallel) -> tuple[Tensor, Tensor, Tensor]:
        torch.set_grad_enabled(True)
        table = VocabParallelEmbedding(vocab, hidden, at)
        drawn(table, at)
        x = table(tokens)
        (x * seen).sum().backward()
        assert table.weight.grad is not None
        return x.detach(), table.weight.grad, table.weight.detach()

    spec = ShardSpec((vocab, hidden), 0)
    ranks = on_slices(tp, body)
    whole = spec.unshard([weight for _, _, weight in ranks]).requires_grad_()
    expected = F.embedding(tokens, whole)
    (expected * seen).sum().backward()
    for x, _, _ in ranks:
        torch.testing.assert_close(x, expected.detach())
    torch.testing.assert_close(spec.unshard([gradient for _, gradient, _ in ranks]), whole.grad)
    padding = torch.cat([gradient for _, gradient, _ in ranks])[vocab:]
    assert not padding.any()


# ----------------------------------------------------------------------------------------------------------------- loss


@given(
    tp=st.sampled_from([1, 2, 3, 4]),
    vocab=st.integers(1, 12),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    shift=st.sampled_from([0.0, 1e4, -1e4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_cross_entropy_of_sharded_logits_equals_that_of_unsharded_ones(
    tp: int, vocab: int, shape: tuple[int, int], shift: float, seed: int
) -> None:
    """Forward and gradient; with a padded vocabulary, with slices of only padding, and with logits far from zero."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, vocab, generator=generator) * 3 + shift
    targets = torch.randint(vocab, shape, generator=generator)
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole.flatten(0, 1), targets.flatten())
    (expected * 0.5).backward()  # the executor divides the loss
    spec = ShardSpec((*shape, vocab), 2)

    def body(at: TensorParallel) -> tuple[Tensor, Tensor]:
        torch.set_grad_enabled(True)
        leaf = spec.shard(logits, at.index, at.degree).clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(leaf * 1.0, targets, vocab, at)  # it overwrites its logits
        (loss * 0.5).backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    ranks = on_slices(tp, body)
    for loss, _ in ranks:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5 + abs(shift) * 1e-6)
    torch.testing.assert_close(
        spec.unshard([gradient for _, gradient in ranks]), whole.grad, rtol=1e-4, atol=1e-6 + abs(shift) * 1e-7
    )


@pytest.mark.parametrize("chunk", [1, 5, 8], ids=["a token at a time", "a smaller last chunk", "equal chunks"])
@pytest.mark.parametrize(("tp", "sequence", "first"), [(1, False, 0), (4, False, 4), (2, True, 0), (2, True, 4)])
def test_a_loss_in_chunks_equals_the_loss_of_whole_logits(tp: int, sequence: bool, first: int, chunk: int) -> None:
    """Loss and gradients of input, table and bias; with padded vocabulary, and tokens and rows without target."""
    vocab, hidden, rows = 10, 3, 12
    x, targets = random(2, rows, hidden), torch.randint(vocab, (2, rows - first), generator=torch.Generator().manual_seed(1))
    targets[0, ::3] = -1
    counted = int((targets >= 0).sum())

    def body(at: TensorParallel) -> list[Tensor]:
        torch.set_grad_enabled(True)
        table, bias = VocabParallelEmbedding(vocab, hidden, at), ShardedParameter.of(ShardSpec((vocab,), 0), at)
        own = rows // tp if sequence else rows
        found = []
        for in_chunks in (True, False):
            drawn(table, at)
            bias.initialize("bias", 0, at.index, tp)
            leaf = x[:, own * at.index :][:, :own].clone().requires_grad_() if sequence else x.clone().requires_grad_()
            table.weight.grad = bias.grad = None
            if in_chunks:
                loss = table.chunked_loss(leaf, bias, first, targets, counted, chunk)
            else:
                loss = vocab_parallel_cross_entropy(table.logits(leaf, bias, first), targets, vocab, at, counted)
            (loss * 0.5).backward()  # the executor divides the loss
            gradients = [t.grad for t in (leaf, table.weight, bias) if t.grad is not None]
            assert len(gradients) == 3
            found.append([loss.detach(), *gradients])
        return [torch.cat([one.flatten() for one in several]) for several in found]

    for ours, whole in on_slices(tp, body, sequence):
        torch.testing.assert_close(ours, whole)


# --------------------------------------------------------------------------------------------------------------- order


class ListingComm(Comm):
    """A rank without peers that lists when its calls start and when they are waited for."""

    def __init__(self, tp: int) -> None:
        super().__init__(Mesh({"tp": tp}), 0, Recorder(), torch.device("cpu"), NoPeers(0))
        self.seen: list[str] = []

    def start_all_reduce(self, tensor: Tensor, group: str, reduction: Reduction = "sum") -> Pending:
        return self._listed("all-reduce", super().start_all_reduce(tensor, group, reduction))

    def start_all_gather(self, out: Tensor, tensor: Tensor, group: str) -> Pending:
        return self._listed("gather", super().start_all_gather(out, tensor, group))

    def start_reduce_scatter(self, tensor: Tensor, group: str, out: Tensor | None = None, accumulate: bool = False) -> Pending:
        return self._listed("reduce-scatter", super().start_reduce_scatter(tensor, group, out, accumulate))

    def _listed(self, name: str, pending: Pending) -> Pending:
        self.seen.append(name)
        finish = pending.afterwards or (lambda: None)

        def finish_and_list() -> None:
            finish()
            self.seen.append(f"end of {name}")

        pending.afterwards = finish_and_list
        return pending


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (True, ["gather", "reduce-scatter", "end of gather", "weight", "end of reduce-scatter"]),
        (False, ["all-reduce", "weight", "end of all-reduce"]),
    ],
)
def test_backward_communicates_beside_the_weights_gradient(sequence: bool, expected: list[str]) -> None:
    comm = ListingComm(2)
    tp = TensorParallel(comm, sequence)
    tp.gradients.added = lambda parameter: comm.seen.append("weight")
    layer = ColumnParallelLinear(4, (6,), tp, bias=False)
    drawn(layer, tp)
    y = layer(random(2, 8, 4).requires_grad_())
    comm.seen.clear()
    y.sum().backward()
    assert comm.seen == expected


def test_a_row_parallel_layer_computes_its_input_again_while_the_gradient_is_gathered() -> None:
    comm = ListingComm(2)
    tp = TensorParallel(comm, sequence=True)
    tp.gradients.added = lambda parameter: comm.seen.append("weight")
    layer = RowParallelLinear(4, 6, tp, std=0.02, bias=False)
    drawn(layer, tp)

    def between(x: Tensor) -> Tensor:
        comm.seen.append("input")
        return x.tanh()

    y = layer(random(2, 8, 2).requires_grad_(), between)
    comm.seen.clear()
    y.sum().backward()
    assert comm.seen == ["gather", "input", "end of gather", "weight"]


def test_a_deferred_weight_gradient_gathers_when_it_is_computed() -> None:
    comm = ListingComm(2)
    tp = TensorParallel(comm, sequence=True)
    layer = ColumnParallelLinear(4, (6,), tp, bias=False)
    drawn(layer, tp)
    y = layer(random(2, 8, 4).requires_grad_())
    comm.seen.clear()
    with tp.gradients.collect() as deferred:
        y.sum().backward()
    assert comm.seen == ["reduce-scatter", "end of reduce-scatter"]
    deferred[layer.weight]()
    assert comm.seen[2:] == ["gather", "end of gather"]
