"""Records ledgers: what one chunk of the worker does with one microbatch, with sizes in named dimensions.

The worker's own chunk, data parallelism and executor run on the real tensors of a probe, under the profiler that measures a
run's memory. So nothing of torch is imitated. Autograd decides whether it adds a gradient in place or takes over its tensor, by
the other references to it. Under a dispatch mode, which fake tensors need, it decides differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import _get_sequence_nr

from engine.launch.recording.generation import generation
from engine.launch.recording.marks import MarkingRecorder, mark, mark_instant, mark_modules, path_without_numbers, traced
from engine.launch.recording.probe import Probe, probe
from engine.launch.recording.profiled import BUCKET, HANDS, LAYER, MODULE, Reading, SeenMicrobatch
from engine.ledger.form import (
    ACCUMULATES,
    ALLOCATES,
    CALLS,
    EXPECTS,
    FREES,
    GATHERS,
    RELEASES,
    RUNS,
    Call,
    Ledger,
    MicrobatchTrace,
    Operation,
    Parameter,
    Part,
    Product,
    RecordedBlock,
    RecordedBucket,
    Segment,
    Structure,
    case,
)  # fmt: skip
from engine.model.chunk import TransformerChunk, streams_before, to_tensors
from engine.model.layers import buckets_of
from engine.objective import feed
from engine.parallel.comm import Comm
from engine.parallel.context import own_tokens
from engine.parallel.data import Bucket, DataParallel, ParameterUse, Streams, of_bucket
from engine.parallel.pipeline import Executor
from engine.parallel.routing import Routing
from engine.parallel.tensor import DTYPES, ShardedParameter, TensorParallel
from engine.schedule import Action, Kind, Schedule
from engine.spec.context import kind_of
from engine.topology import Mesh, Subgroups

_DP = 2  # replicas: with one, data parallelism would do nothing


def record(structure: Structure, part: Part, primes: Sequence[int] = ()) -> Ledger:
    """The ledger of a part of a model of that structure. Takes some tenths of a second. `primes`: see `probe.py`.

    It sets torch to one thread. Raises `RecordingError` where a size has no name.
    """
    torch.set_num_threads(1)  # as a rank has
    made = probe(structure, part, primes)
    tables, traces, buckets = _Tables(made.name), dict[str, MicrobatchTrace](), tuple[RecordedBucket, ...]()
    if structure.generates:
        generator, passes = generation(structure, part, made)
        traces = {name: tables.trace(one) for name, one in passes.items()}
        return Ledger(tuple(tables.blocks), _buckets(generator, made.name), tuple(tables.calls), tuple(tables.operations), traces)
    for hooked in (False, True):
        chunk = _Chunk(structure, part, made, zero=3 if hooked else 0)
        buckets = _buckets(chunk.chunk, made.name)
        tree = traced(partial(chunk.executor.run, "the recorded step"), chunk.recorder)
        seen = Reading(chunk.data.before, {number: bucket.layer for number, bucket in enumerate(buckets)}).read(tree)
        traces |= {case(hooked, bool(microbatch)): tables.trace(one) for microbatch, one in sorted(seen.items())}
    return Ledger(tuple(tables.blocks), buckets, tuple(tables.calls), tuple(tables.operations), traces)


# --------------------------------------------------------------------------------------------- the worker, marking what it does


class _Data(DataParallel):
    """Marks which layer runs, and what happens to the buckets."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.numbers: dict[Bucket, int] = {}
        self.before: dict[int, int] = {}  # number of the first graph node after a layer → that layer, or −1

    def add_chunk(self, chunk: int, layers: Sequence[nn.Module]) -> None:
        super().add_chunk(chunk, layers)
        self.numbers = {self.buckets[layer]: number for number, layer in enumerate(layers)}

    def through(self, uses: Sequence[ParameterUse], streams: Streams) -> Streams:
        self.before.setdefault(_get_sequence_nr(), -1)  # nodes after the last layer belong to none
        return super().through([use._replace(run=partial(self._run, use)) for use in uses], streams)

    def _run(self, use: ParameterUse, streams: Streams) -> Streams:
        self._mark_layer(use)
        out = use.run(streams)
        hooks = int(self.zero >= 2)  # one more node: `BackwardHook`
        self.before[_get_sequence_nr() + hooks] = self._number(use)
        return out

    def _number(self, use: ParameterUse) -> int:
        return self.numbers[self.buckets[use.layers[0]]] if use.layers else -1

    def _mark_layer(self, use: ParameterUse) -> None:
        mark_instant(LAYER, self._number(use))

    def mark_layer_of(self, weight: Any) -> None:
        mark_instant(LAYER, self.numbers[weight.bucket])

    def _bucket_range(self, what: int, bucket: Bucket) -> Any:
        return mark(BUCKET, what, self.numbers[bucket])

    def _begin_backward(self, use: ParameterUse, before: ParameterUse | None) -> None:
        for layer in use.layers:
            bucket = self.buckets[layer]
            with self._bucket_range(EXPECTS, bucket):
                bucket.expect(1)
        if not use.lookup:
            self._gather(use, before)

    def _gather(self, use: ParameterUse, following: ParameterUse | None) -> None:
        self._mark_layer(use)
        super()._gather(use, following)

    def _start_gather(self, use: ParameterUse) -> None:
        for layer in (*use.layers, *use.borrowed):
            if not self.buckets[layer].resident:
                with self._bucket_range(GATHERS, self.buckets[layer]):
                    super()._start_gather(ParameterUse((layer,), use.run))

    def _release(self, use: ParameterUse) -> None:
        for layer in (*use.layers, *use.borrowed):
            if self.buckets[layer].resident:
                with self._bucket_range(RELEASES, self.buckets[layer]):
                    super()._release(ParameterUse((layer,), use.run))

    def _take_gradient(self, p: Any) -> None:
        with self._bucket_range(ACCUMULATES, p.bucket):
            super()._take_gradient(p)


class _NoUpdate:
    """A recorded step has no update. Making an optimizer of torch would import `torch._dynamo`, which takes half a second."""

    def reduce_tied_gradients(self) -> None: ...

    def step(self, loss: Tensor | None) -> None: ...


class _Executor(Executor):
    """Sends nothing: tensors to be sent are freed at once. Marks the layer of each deferred weight."""

    data: _Data
    paths: dict[nn.Parameter, str]  # of each weight's module

    def _send(self, action: Action) -> None:
        tensors = self._to_send.pop((action.flow, action.chunk, action.microbatch))
        where = [t.untyped_storage().data_ptr() for t in tensors]
        del tensors
        mark_instant(HANDS, *where)

    @torch.no_grad()
    def _backward_of_weights(self, action: Action) -> None:
        deferred = self._deferred.pop((action.chunk, action.microbatch))
        for weight in list(deferred):
            self.data.mark_layer_of(weight)
            with mark(MODULE, self.paths[weight]):
                deferred.pop(weight)()


class _Chunk:
    """A probe's chunk, built as the worker does it, at one ZeRO stage. Its neighbour stages exist in the mesh only."""

    def __init__(self, structure: Structure, part: Part, made: Probe, zero: int) -> None:
        model, sequence = made.model, structure.slicing == "sequence"
        pp, at = 3 - part.first - part.last, int(not part.first)
        mesh = Mesh({"dp": _DP * made.ep, "cp": made.cp, "tp": made.tp, "pp": pp})
        recorder, device = MarkingRecorder(), torch.device("cpu")
        self.recorder = recorder
        comm = Comm.without_others(mesh, mesh.rank({"pp": at}), recorder, device, Subgroups(ep=made.ep))
        kind, routing = kind_of(structure.context), Routing(balanced=True, received=made.received)
        own = own_tokens(kind, model.seq, made.cp, 0)
        tp = TensorParallel(comm, sequence, DTYPES[structure.precision], kind, routing=routing)
        layers = range(made.start, made.start + sum(part.recorded))
        text = bytes(2 * model.seq + 1)

        def batch(number: int) -> Any:
            whole = feed(model, text, made.batch, 0, 1, number)
            return to_tensors(whole.part(own) if made.cp > 1 else whole, device)

        self.data = _Data(tp, zero, torch.float32, 2)
        self.chunk = TransformerChunk(
            model, layers, part.first, part.last, batch, tp, structure.recompute, self.data.through,
            structure.attention, made.loss_chunk,
        )  # fmt: skip
        with torch.no_grad():
            for p in self.chunk.parameters():
                p.zero_()
        self.data.add_chunk(at, self.chunk.parts())
        mark_modules(self.chunk)
        inputs = [streams_before(model, layers.start if c == at else layers.stop, made.batch, tp) for c in range(pp)]
        stages = tuple(_actions(at, pp) if stage == at else () for stage in range(pp))
        schedule = Schedule("1f1b", 2, tuple(range(pp)), stages)
        self.executor = _Executor(schedule, {at: self.chunk}, inputs, self.data, _NoUpdate(), lambda status: None)
        named = self.chunk.named_parameters()
        self.executor.paths = {p: path_without_numbers(path.rpartition(".")[0]) for path, p in named}


def _buckets(chunk: TransformerChunk, name: Callable[[int], Product]) -> tuple[RecordedBucket, ...]:
    layers = {bucket: number for number, layer in enumerate(chunk.layers.values()) for bucket in buckets_of(layer)}
    paths = {module: path_without_numbers(path) for path, module in chunk.named_modules()}
    found = []
    for module in chunk.parts():
        sharded = (p for p in of_bucket(module) if isinstance(p, ShardedParameter))
        shapes = [_parameter(p, chunk.tp.degree, name) for p in sharded]
        found.append(RecordedBucket(paths[module], layers.get(module, -1), tuple(sorted(shapes, key=lambda p: not p.whole))))
    return tuple(found)


def _parameter(p: ShardedParameter, tp: int, name: Callable[[int], Product]) -> Parameter:
    spec = p.shard_spec
    keys = sum(size for (size, _), least in zip(spec.shards(tp), spec.least, strict=True) if least) if spec.least else 0
    return Parameter(tuple(map(name, p.shape)), spec.dim is None, tuple(map(name, (keys, *p.shape[1:]))) if keys else ())


def _actions(at: int, pp: int) -> tuple[Action, ...]:
    """A microbatch whose backward is B, and one whose backward is I and W."""
    found = []
    halves: tuple[tuple[Kind, ...], ...] = (("B",), ("I", "W"))
    for microbatch, (backward, *later) in enumerate(halves):
        entries: list[tuple[Kind, Any, int]] = [
            ("recv", "activation", at - 1), ("F", "", -1), ("send", "activation", at + 1), ("recv", "gradient", at + 1),
            (backward, "", -1), ("send", "gradient", at - 1), *((kind, "", -1) for kind in later),
        ]  # fmt: skip
        found += [Action(kind, at, microbatch, flow, peer) for kind, flow, peer in entries if not flow or 0 <= peer < pp]
    return *found, Action("reduce", at)


# ------------------------------------------------------------------------------------------------------------- the tables


class _Tables:
    """The tables of a ledger: equal blocks, calls and operations are stored once."""

    def __init__(self, name: Callable[[int], Product]) -> None:
        self._name = name
        self.blocks: dict[RecordedBlock, int] = {}
        self.calls: dict[Call, int] = {}
        self.operations: dict[Operation, int] = {}

    def trace(self, seen: SeenMicrobatch) -> MicrobatchTrace:
        actions = {action: self._segments(several) for action, several in seen.actions.items()}
        lent = seen.lent
        of_lent = None if lent is None else (seen.given.index(lent) if lent in seen.given else -1, lent.died)
        return MicrobatchTrace(actions, tuple(block.died for block in seen.given), seen.shared, of_lent)

    def _segments(self, seen: list[tuple[int, str, Any]]) -> tuple[Segment, ...]:
        found: list[tuple[int, list[int]]] = []
        for layer, kind, what in seen:
            if kind in ("born", "gone") and what.inside:
                continue
            if not found or found[-1][0] != layer:
                found.append((layer, []))
            found[-1][1].extend(self._event(kind, what))
        return tuple(Segment(layer, tuple(codes)) for layer, codes in found)

    def _event(self, kind: str, what: Any) -> tuple[int, int]:
        if kind == "bucket":
            return what
        if kind == "call":
            module, axis, collective, payload, step = what
            call = Call(module, axis, collective, self._name(payload), step)
            return CALLS, self.calls.setdefault(call, len(self.calls))
        if kind == "run":
            flops, read, written = (tuple(self._name(n) for n in some if n) for some in (what.flops, what.read, what.written))
            one = Operation(what.name, flops, read, written, what.step)
            return RUNS, self.operations.setdefault(one, len(self.operations))
        block = RecordedBlock(what.name, self._name(what.size), what.category, what.layered, what.lent)
        return ALLOCATES if kind == "born" else FREES, self.blocks.setdefault(block, len(self.blocks))
