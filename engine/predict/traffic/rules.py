"""The calls that a chunk and a stage make in a step: for one layout or, with arrays in place of numbers, for very many.

    tensor_parallel     the calls of the layers, over tp and over cp, from the ledger
    messages            activations from stage to stage, and their gradients back
    data_parallel       reduction of gradients over dp; ZeRO's all-gathers of values
    tie, norm_and_loss  the calls that the optimizer's step needs

Symbols: m microbatches; L layers; e bytes of a number; g bytes of a number in which gradients are accumulated; Ψ the parameters
of a bucket on a tp rank, Ψ₁ those that tp does not shard, Ψ₂ those that make keys and values; z ranks over which hybrid sharding
shards; r reductions in a step; n a count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from engine.ledger.dimensions import factors, loss_chunks, middle_steps
from engine.ledger.form import LOSS_CHUNK, Part, Product
from engine.ledger.words import module_in_words
from engine.predict.memory.buckets import BucketSizes
from engine.predict.traffic.calls import PredictedCall
from engine.predict.traffic.chunk import BucketUse, ChunkTraffic
from engine.spec import sentence
from engine.terms import Factor
from engine.topology import EP, Axis, CallAxis

_FLOAT = Factor("4", 4)  # losses and norms are in fp32, whatever the precision
_ONE = (Factor("1", 1),)


class Setting(NamedTuple):
    """What the calls of layouts depend on. All layouts have the same `zero` and `sequence_parallel`. The rest may be arrays."""

    sizes: Mapping[str, Any]  # the values of the dimensions
    tp: Any
    dp: Any
    microbatches: Any
    zero: int
    sequence_parallel: bool
    e: Factor  # bytes of a parameter
    g: Factor  # bytes of a number in which gradients are accumulated
    copies: Any = 1  # how many tp ranks hold the same key heads
    ep: Any = 1  # ranks that share the experts of a layer; an array, if all are more than 1
    alone: bool = False  # ep is dp in all layouts of an array
    replicas: Any = 1  # groups over which ZeRO shards
    hybrid: bool = False  # whether there are several of these
    reductions: Factor = Factor("1", 1)  # of a chunk's deferred weight gradients in a step

    @property
    def m(self) -> Factor:
        """Microbatches of a step."""
        return Factor("m", self.microbatches)

    @property
    def parts(self) -> Any:
        """The number of shards of a bucket."""
        return self.dp // self.replicas if self.zero else 1

    @property
    def shared(self) -> bool:
        """Whether ranks share the experts of a layer."""
        return not isinstance(self.ep, int) or self.ep > 1

    @property
    def parts_of_experts(self) -> Any:
        """The number of shards of experts that ranks share; None if none do."""
        if not self.shared:
            return None
        return 1 if self.alone or not self.zero else self.parts // self.ep


def tensor_parallel(chunk: ChunkTraffic, setting: Setting) -> Iterator[PredictedCall]:
    """The calls of the layers, which `engine.model` and `engine.parallel.tensor` make."""
    for layer, phase, call, times in chunk.calls:
        name, payload = _recorded_name(call.name, call.axis, call.collective, phase), factors(call.payload, setting.sizes)
        axis: CallAxis = call.axis  # type: ignore[assignment]
        often: tuple[Factor, ...] = (setting.m, Factor("n", times))
        if call.step == "middle":
            often = (*often, Factor("cp − 2", middle_steps(setting.sizes)))
        one = PredictedCall(axis, call.collective, phase, name, often, payload, layer=layer)
        if axis == EP:
            yield replace(one, members=setting.ep)
        elif layer == LOSS_CHUNK:
            yield from _of_loss_chunks(one, setting)
        else:
            yield one


def _of_loss_chunks(call: PredictedCall, setting: Setting) -> Iterator[PredictedCall]:
    """The calls of all chunks of the loss. `call`: those of one. The last chunk may have fewer tokens than the others."""
    whole, left = loss_chunks(setting.sizes)
    yield replace(call, times=(*call.times, Factor("c", whole)), layer=-1)
    if not isinstance(left, int) or left:
        payload = tuple(Factor("C′", left) if factor.symbol == "C" else factor for factor in call.payload)
        yield replace(call, times=(*call.times, Factor("1", (left > 0) * 1)), payload=payload, layer=-1)


def _recorded_name(module: str, axis: str, collective: str, phase: str) -> str:
    where = module_in_words(module)
    if collective == "send_recv":
        return sentence("{module}: keys and values, or their gradients, passed to the next rank", module=where)
    if collective == "all_to_all" and axis == EP:
        return sentence("{module}: tokens to their experts, or back", module=where)
    if collective == "all_to_all":
        return sentence("{module}: heads exchanged for tokens", module=where)
    if collective == "all_gather":
        return sentence("{module}: shards of the ranks, gathered", module=where)
    if phase == "backward":
        return sentence("{module}: partial gradients, summed", module=where)
    return sentence("{module}: partial results, summed", module=where)


def messages(chunk: ChunkTraffic, setting: Setting, between: tuple[int, int], receives: bool) -> Iterator[PredictedCall]:
    """The transfers between a chunk and the chunk before it, which are on two stages.

    `chunk`: the later one, which receives the activations. `receives`: the calls are those of its stage; otherwise they are those
    of the sender's stage.
    """
    onward, back = ("recv", "send") if receives else ("send", "recv")
    activations, gradients = (
        sentence("activations at the cut between two stages"),
        sentence("gradients at the cut between two stages"),
    )
    for tensor in chunk.inputs:
        payload = factors(tensor, setting.sizes)
        yield PredictedCall("pp", onward, "forward", activations, (setting.m,), payload, between)
        yield PredictedCall("pp", back, "backward", gradients, (setting.m,), payload, between)


def data_parallel(chunk: ChunkTraffic, part: Part, setting: Setting) -> Iterator[PredictedCall]:
    """The reduction of gradients over dp, bucket by bucket, and ZeRO's all-gathers of values (`engine.parallel.data`).

    Under sequence parallelism a rank sees only its own rows. So gradients of parameters that tp does not shard are first reduced
    over tp.
    """
    # ZeRO 0 and 1 send accumulated gradients. ZeRO 2 and 3 send the gradients of one backward pass, before they are accumulated.
    every = setting
    for use in chunk.buckets:
        sizes = BucketSizes(use.bucket, part, every.sizes, every.parts, every.parts_of_experts, every.hybrid)
        bucket, layer = sizes, use.bucket.layer
        setting = every._replace(zero=0) if bucket.alone else every
        number_bytes = setting.e if setting.zero >= 2 else setting.g
        deferred = setting.zero >= 2 and use.deferred
        often = (setting.reductions if deferred else setting.m,) if setting.zero >= 2 else _ONE
        whole = sum((numbers for kept_whole, numbers in bucket.parameters if kept_whole), start=0)
        if setting.sequence_parallel and not (isinstance(whole, int) and whole == 0):
            name = sentence("gradients of parameters that tp does not shard")
            payload = (Factor("Ψ₁", whole), number_bytes)
            yield PredictedCall("tp", "all_reduce", "backward", name, often, payload, layer=layer, reduced=deferred)
        for keys in bucket.keys if np.any(np.asarray(setting.copies) > 1) else ():
            if not isinstance(keys, int) or keys:
                name = sentence("gradients of key heads that several tp ranks hold")
                payload = (Factor("Ψ₂", keys), number_bytes)
                one = PredictedCall("tp", "all_reduce", "backward", name, often, payload, layer=layer, reduced=deferred)
                yield replace(one, members=setting.copies)
        how, name = "reduce_scatter" if setting.zero else "all_reduce", sentence("gradients, summed over the replicas")
        over_dp = [PredictedCall("dp", how, "backward", name, often, (bucket.size, number_bytes), layer=layer, reduced=deferred)]
        if setting.zero:
            over_dp += _values(use, bucket, setting)
        if use.bucket.experts and setting.shared:
            over_dp = [replace(call, members=setting.dp // setting.ep, spread=setting.ep) for call in over_dp]
        if setting.hybrid:
            over_dp = [*(replace(call, members=setting.parts) for call in over_dp), _sum_of_replicas(bucket, layer, setting)]
        yield from over_dp


def _sum_of_replicas(bucket: BucketSizes, layer: int, setting: Setting) -> PredictedCall:
    """Once a step, the all-reduce of a share over the ranks that hold the same."""
    name, payload = sentence("a rank's share of the gradients, summed over the replicas of shards"), (bucket.share, setting.g)
    return PredictedCall(
        "dp", "all_reduce", "reduce", name, _ONE, payload, layer=layer, members=setting.replicas, spread=setting.parts
    )


def _values(use: BucketUse, bucket: BucketSizes, setting: Setting) -> Iterator[PredictedCall]:
    """ZeRO 1 and 2 all-gather the new values once a step. ZeRO 3 all-gathers them for each pass that uses them."""
    shard, layer = (bucket.share, setting.e), use.bucket.layer
    if setting.zero < 3:
        yield PredictedCall(
            "dp", "all_gather", "gather", sentence("updated parameters, for every replica"), _ONE, shard, layer=layer
        )
        return
    name = sentence("parameters, gathered for one use")
    for phase, uses in zip(("forward", "backward"), use.gathers, strict=True):
        if uses:
            yield PredictedCall("dp", "all_gather", phase, name, (setting.m, Factor("n", uses)), shard, layer=layer)


def tie(chunk: ChunkTraffic, part: Part, setting: Setting, ends: tuple[int, int]) -> Iterator[PredictedCall]:
    """The all-reduce of the tied token table's gradient between the two stages `ends`. `chunk` is the first or the last."""
    for use in chunk.buckets:
        if use.bucket.name.endswith("token"):
            bucket = BucketSizes(use.bucket, part, setting.sizes, setting.parts, hybrid=setting.hybrid)
            name = sentence("gradients of the tied token table")
            yield PredictedCall("pp", "all_reduce", "tie", name, _ONE, (bucket.share, setting.g), ends)


def norm_and_loss(setting: Setting, last: bool) -> Iterator[PredictedCall]:
    """The all-reduces of the gradient norm and of the loss. `last`: the stage has the last chunk, which knows the loss.

    Without ZeRO every replica has all gradients, so their norm is not reduced over dp. With hybrid sharding it is over the ranks
    that shard, so that each share counts once.
    """
    name = sentence("norm of the gradients")
    if setting.shared and not setting.zero:
        yield PredictedCall(EP, "all_reduce", "step", name, _ONE, (_FLOAT,), members=setting.ep)
    axes: Sequence[Axis] = ("dp", "tp", "pp") if setting.zero else ("tp", "pp")
    for axis in axes:
        members = setting.parts if axis == "dp" and setting.hybrid else None
        yield PredictedCall(axis, "all_reduce", "step", name, _ONE, (_FLOAT,), members=members)
    if last:
        yield PredictedCall("dp", "all_reduce", "step", sentence("loss"), _ONE, (_FLOAT,))


def router_biases(setting: Setting, layers: int) -> Iterator[PredictedCall]:
    """The all-reduce of the loads of a stage's experts, where a bias keeps them alike. `layers`: those with experts."""
    if layers:
        payload = (Factor("L", layers), *factors(Product(8, ("E/ep", "ep")), setting.sizes))
        yield PredictedCall("dp", "all_reduce", "step", sentence("loads of the experts"), _ONE, payload)
