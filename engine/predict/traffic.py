"""Traffic predicted: which collective runs where, how often and with how many bytes, equal to what the door counts.

One function a purpose. All ranks of a stage do the same, so each says what a rank of one stage does:

    tensor_parallel     sums of partial results around every attention, MLP and the loss; with sequence parallelism, in two halves
    pipeline            activations to the next stage, their gradients back
    data_parallel       gradients added up over the replicas; ZeRO's shards of gradients and of values
    optimizer_step      what tied tables, the norm of the gradients and the loss need
    generation          the same roads when a text is continued, token by token

Symbols: m microbatches; B sequences of one; S tokens of a sequence (and queries, of two streams); H hidden; L layers of a chunk;
e bytes of a number, eᵍ of one in the sum of gradients; Ψ numbers of a layer's parameters on a tp rank, Ψ₁ those that tp does not
cut, each with the layer's kind; r reductions of a step; n passes and P tokens of each, in generation. Else, a number is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from engine.predict.messages.calls import WIRE, Call, wire_bytes
from engine.predict.messages.held import Bucket, Part, buckets, parts
from engine.predict.messages.reductions import reductions
from engine.predict.terms import Factor, Term
from engine.spec import LayoutSpec, ModelSpec, Precision, RequestError, RunSpec, sentence
from engine.tables import LARGEST, SCHEMAS, group_name
from engine.topology import Axis, Mesh

__all__ = ["WIRE", "calls", "terms", "traffic"]

BYTES = {"fp32": 4, "bf16": 2}
_FLOAT = Factor("4", 4)  # losses and norms are in fp32, whatever the precision
Factors = tuple[Factor, ...]


def traffic(spec: RunSpec, ranks: Sequence[int] | None = None) -> pd.DataFrame:
    """Table "traffic" of one steady step of every rank; of the whole generation, where there is no training.

    Of very many ranks, as `Mesh.listed` has it, and then the names of long groups are cut: the others of a stage pass the same.
    `ranks`: of these alone, their groups written out. Raises `RequestError` where numbers are too large for a table.
    """
    layout, mesh = spec.layout, spec.layout.mesh
    label = _Groups(mesh, whole=ranks is not None or mesh.all_listed)
    every = np.array(mesh.listed if ranks is None else ranks, np.int64)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMAS["traffic"]}
    by_stage = _parts_by_stage(spec)
    stages = mesh.index("pp", every)
    for stage in range(layout.pp):
        here = every[stages == stage] if ranks is not None or mesh.all_listed else every[stage : stage + 1]
        for (axis, collective, phase, between), amount in _rows(spec, by_stage[stage], stage).items() if len(here) else ():
            columns["rank"].append(here)
            columns["group"].append(label.of(axis, here, between))
            same = {"source": "formula", "axis": axis, "collective": collective, "phase": phase}
            for name, text in same.items():
                columns[name].append(np.full(len(here), text, dtype=object))
            for name, number in zip(("calls", "payload_bytes", "wire_bytes"), amount, strict=True):
                columns[name].append(np.full(len(here), _writable(number)))
    empty = [np.empty(0, dtype=object)]
    return pd.DataFrame(
        {name: pd.Series(np.concatenate(columns[name] or empty), dtype=dtype) for name, dtype in SCHEMAS["traffic"].items()}
    )


def _writable(number: int) -> int:
    if number > LARGEST:
        raise RequestError(
            sentence("a rank would pass {bytes:.3g} bytes in a step, and traffic is told up to 2^63 bytes", bytes=float(number))
        )
    return number


def terms(spec: RunSpec, rank: int) -> dict[tuple[Axis, str, str], tuple[Term, ...]]:
    """(axis, collective, phase) → what adds up to the payload bytes that the table has for this rank, over its groups."""
    stage = spec.layout.mesh.coordinate(rank).pp
    found: dict[tuple[Axis, str, str], list[Term]] = {}
    for call in calls(spec, stage):
        found.setdefault((call.axis, call.collective, call.phase), []).append(call.term)
    return {key: tuple(sums) for key, sums in found.items()}


def calls(spec: RunSpec, stage: int) -> list[Call]:
    """Everything that one rank of `stage` passes through the door in a step."""
    return _calls(spec, _parts_by_stage(spec)[stage], stage)


def _parts_by_stage(spec: RunSpec) -> list[list[Part]]:
    held: list[list[Part]] = [[] for _ in range(spec.layout.pp)]
    for part in parts(spec.model, spec.layout):
        held[part.stage].append(part)
    return held


def _calls(spec: RunSpec, held: list[Part], stage: int) -> list[Call]:
    purposes: tuple[Callable[[RunSpec, Part], Iterator[Call]], ...] = (tensor_parallel, pipeline, data_parallel)
    if spec.generate.skip_training:
        purposes = (generation,)
    found = chain.from_iterable(purpose(spec, part) for part in held for purpose in purposes)
    ends = () if spec.generate.skip_training else optimizer_step(spec, held, stage)
    return [call for call in chain(found, ends) if call.calls]


# ------------------------------------------------------------------------------------------------------- tensor parallel


def tensor_parallel(spec: RunSpec, part: Part) -> Iterator[Call]:
    """A column-parallel layer reads the whole stream, a row-parallel one leaves partial sums of it (`engine.parallel.tensor`).

    Without sequence parallelism a sum is one all-reduce: forward behind each row-parallel layer, backward (of the gradient)
    before each column-parallel one. With it, sums are reduce-scattered and what is read is gathered, in backward once more
    for the weights' gradient. Full recompute runs the layers' forward a second time, in backward.
    """
    if spec.layout.tp == 1:
        return
    m = Factor("m", spec.workload.microbatches)
    if part.first:
        streams = Factor("2", 2 if spec.model.parts.encoder else 1)
        x = (streams, *_stream(spec))
        yield from _leave(spec, "forward", "the token embedding's slices, added up", (m,), x)
        yield from _enter(spec, "backward", "the gradient of the token embedding", (m,), x)
    # Attention reads once (qkv), cross-attention twice (queries; keys and values), the MLP once; each leaves one sum.
    for layers, reads, sums in ((part.layers, 2, 2), (part.crossing, 4, 3)):
        into = (m, Factor("L", layers), Factor(str(reads), reads))
        out_of = (m, Factor("L", layers), Factor(str(sums), sums))
        yield from _layers(spec, into, out_of)
    if part.last:
        yield from _enter(spec, "forward", "what the output matrix reads", (m,), _stream(spec))
        yield from _leave(spec, "backward", "the gradient of what the output matrix read", (m,), _stream(spec))
        yield from _enter(spec, "backward", "what the output matrix read, for its own gradient", (m,), _stream(spec))
        yield from _loss(spec, m)


def _layers(spec: RunSpec, into: Factors, out_of: Factors) -> Iterator[Call]:
    x = _stream(spec)
    yield from _enter(spec, "forward", "what attention and MLP read", into, x)
    yield from _leave(spec, "forward", "what attention and MLP add, summed", out_of, x)
    if spec.layout.recompute == "full":
        yield from _enter(spec, "backward", "what attention and MLP read, to compute them again", into, x)
        yield from _leave(spec, "backward", "what attention and MLP add, computed again", out_of, x)
    yield from _enter(spec, "backward", "the gradient of what attention and MLP added", out_of, x)
    yield from _leave(spec, "backward", "the gradient of what attention and MLP read, summed", into, x)
    yield from _enter(spec, "backward", "what attention and MLP read, for the weights' gradient", into, x)


def _loss(spec: RunSpec, m: Factor) -> Iterator[Call]:
    """Cross-entropy over a vocabulary that is cut: two numbers of each token are combined (Shoeybi et al. 2019, section 3)."""
    model = spec.model
    predicting = model.rows - model.seq or model.seq  # of two streams, the queries alone
    each = (Factor("B", spec.workload.microbatch_size), Factor("S", predicting), _FLOAT)
    yield Call("tp", "all_reduce", "forward", "the largest logit of each token", (m,), each)
    both = (Factor("2", 2), *each)
    yield Call("tp", "all_reduce", "forward", "each token's sum of exponentials and its target's logit", (m,), both)


def _stream(spec: RunSpec) -> Factors:
    """The residual stream of one microbatch, in bytes: B · S · H · e."""
    rows, e = Factor("S", spec.model.rows), Factor("e", BYTES[spec.workload.precision])
    return Factor("B", spec.workload.microbatch_size), rows, Factor("H", spec.model.hidden), e


def _cut(spec: RunSpec, x: Factors) -> Factors:
    """The same as a tp rank holds it: under sequence parallelism, its part of the sequence."""
    if not spec.layout.sequence_parallel:
        return x
    return tuple(Factor("S/tp", f.value // spec.layout.tp) if f.symbol == "S" else f for f in x)


def _enter(spec: RunSpec, phase: str, name: str, times: Factors, x: Factors) -> Iterator[Call]:
    """What a column-parallel layer reads is whole already, unless the sequence is cut."""
    if spec.layout.sequence_parallel:
        yield Call("tp", "all_gather", phase, name, times, _cut(spec, x))


def _leave(spec: RunSpec, phase: str, name: str, times: Factors, x: Factors) -> Iterator[Call]:
    yield Call("tp", "reduce_scatter" if spec.layout.sequence_parallel else "all_reduce", phase, name, times, x)


# -------------------------------------------------------------------------------------------------------------- pipeline


def pipeline(spec: RunSpec, part: Part) -> Iterator[Call]:
    """Where the next chunk is on another stage: for each microbatch the activation there, and its gradient back.

    With encoder and decoder two tensors pass at every cut: see `TransformerChunk`.
    """
    placement, model = spec.layout.placement, spec.model
    m = Factor("m", spec.workload.microbatches)

    def cut(start: int, onward: str, back: str, other: int) -> Iterator[Call]:
        """The cut before layer `start`, seen from this side of it."""
        if other == part.stage:
            return
        times = (m, Factor("2", 2 if model.parts.encoder and start < model.layers else 1))
        between = (min(part.stage, other), max(part.stage, other))
        x = _cut(spec, _stream(spec))
        yield Call("pp", onward, "forward", "activations at the cut between two stages", times, x, between)
        yield Call("pp", back, "backward", "gradients at the cut between two stages", times, x, between)

    if not part.first:
        yield from cut(part.start, "recv", "send", placement[part.index - 1])
    if not part.last:
        yield from cut(part.start + part.layers + part.crossing, "send", "recv", placement[part.index + 1])


# --------------------------------------------------------------------------------------------------------- data parallel


def data_parallel(spec: RunSpec, part: Part) -> Iterator[Call]:
    """Gradients over dp by ZeRO stage, bucket by bucket, and the shards of the values (`engine.parallel.data`).

    Under sequence parallelism, what tp does not cut saw its own rows only: its gradients are first added up over tp.
    """
    layout, workload = spec.layout, spec.workload
    e = Factor("e", BYTES[workload.precision])
    # Gradients travel as they are added up; with ZeRO 2 and 3, as backward makes them.
    travels = e if layout.zero >= 2 else _added_up_in(spec)
    for bucket in buckets(spec.model, layout.tp, part):
        alike = Factor("L", bucket.alike)
        reduced = (_reduced(spec, part, bucket), alike)
        if layout.sequence_parallel and bucket.whole:
            whole = Factor(f"Ψ₁_{bucket.name}", bucket.whole)
            yield Call("tp", "all_reduce", "backward", "gradients of what tp does not cut", reduced, (whole, travels))
        if layout.dp > 1:
            psi = Factor(f"Ψ_{bucket.name}", bucket.padded(layout.dp if layout.zero else 1))
            how = "reduce_scatter" if layout.zero else "all_reduce"
            yield Call("dp", how, "backward", "gradients, added up over the replicas", reduced, (psi, travels))
        if layout.zero:
            yield from _values(spec, bucket, alike, e)


def _added_up_in(spec: RunSpec) -> Factor:
    """Bytes of a number in the sum of a step's gradients."""
    workload = spec.workload
    return Factor("eᵍ", BYTES[workload.accumulate if workload.precision == "bf16" else "fp32"])


def _reduced(spec: RunSpec, part: Part, bucket: Bucket) -> Factor:
    """How often in a step."""
    if spec.layout.zero < 2:
        return Factor("1", 1)
    m = spec.workload.microbatches
    if not bucket.deferred:
        return Factor("m", m)
    often = int(reductions(spec.layout.schedule, spec.layout.pp, m, part.stage, part.run))
    return Factor("m" if often == m else "r", often)


def _values(spec: RunSpec, bucket: Bucket, alike: Factor, e: Factor) -> Iterator[Call]:
    """ZeRO 1 and 2 hand out the new values once a step; ZeRO 3 gathers them for each pass that uses them.

    A look-up needs no values in backward, so what is only looked up is gathered in forward alone.
    """
    dp = spec.layout.dp
    shard = (Factor(f"Ψ_{bucket.name}/dp", bucket.padded(dp) // dp), e)
    if spec.layout.zero < 3:
        yield Call("dp", "all_gather", "gather", "new values, for every replica", (alike,), shard)
        return
    m = Factor("m", spec.workload.microbatches)
    for phase, uses in zip(("forward", "backward"), bucket.gathers, strict=True):
        yield Call("dp", "all_gather", phase, "values, gathered for one use", (m, alike, Factor(str(uses), uses)), shard)


# ------------------------------------------------------------------------------------------------------- optimizer's step


def optimizer_step(spec: RunSpec, held: list[Part], stage: int) -> Iterator[Call]:
    """The gradient of the table that both ends hold; then the norm of all gradients; and the loss, where it is known."""
    layout, one = spec.layout, (Factor("1", 1),)
    ends = layout.placement[0], layout.placement[-1]
    if spec.model.parts.tied and ends[0] != ends[1] and stage in ends:
        table = next(b for part in held for b in buckets(spec.model, layout.tp, part) if b.name == "table")
        share = layout.dp if layout.zero else 1
        size = Factor("Ψ_table" + ("/dp" if layout.zero else ""), table.padded(share) // share)
        each = (size, _added_up_in(spec))
        yield Call("pp", "all_reduce", "tie", "gradients of the tied token table", one, each, ends)
    axes: tuple[tuple[Axis, bool], ...] = (("dp", layout.zero > 0), ("tp", True), ("pp", True))
    for axis, needed in axes:  # without ZeRO every replica has all gradients
        if needed and layout.mesh[axis] > 1:
            yield Call(axis, "all_reduce", "step", "norm of the gradients", one, (_FLOAT,))
    if stage == ends[1] and layout.dp > 1:
        yield Call("dp", "all_reduce", "step", "loss", one, (_FLOAT,))


# ------------------------------------------------------------------------------------------------------------ generation


def generation(spec: RunSpec, part: Part) -> Iterator[Call]:
    """The prompt goes through all stages at once (prefill), then each new token but the last (decode), one sequence a replica."""
    asked, new = len(spec.generate.prompt.encode()), spec.generate.new_tokens
    for phase, passes, count in (("prefill", 1, asked), ("decode", new - 1, 1)):
        yield from going_on(spec.model, spec.layout, spec.workload.precision, part, phase, passes, count)


def going_on(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, part: Part, phase: str, passes: int, count: int, batch: int = 1
) -> Iterator[Call]:
    """What a chunk passes when `count` more tokens of each of `batch` sequences go through the model, `passes` times."""
    times, b = Factor("n", passes), Factor("B", batch)
    x = (b, Factor("P", count), Factor("H", model.hidden), Factor("e", BYTES[precision]))
    if layout.tp > 1:
        if part.first:
            yield Call("tp", "all_reduce", phase, "the token embedding's slices, added up", (times,), x)
        layers = (times, Factor("L", part.layers), Factor("2", 2))
        yield Call("tp", "all_reduce", phase, "what attention and MLP add, summed", layers, x)
        if part.last:
            best = (b, Factor("2", 2), Factor("8", 8))
            yield Call("tp", "all_gather", phase, "each slice's likeliest token", (times,), best)
    yield from _handed_on(layout.placement, part, phase, times, x, (b, Factor("8", 8)))


def _handed_on(placement: tuple[int, ...], part: Part, phase: str, times: Factor, x: Factors, token: Factors) -> Iterator[Call]:
    """Activations to the next chunk's stage, and the new token from the last chunk's stage back to the first's."""
    here = part.stage
    roads: list[tuple[str, int, str, Factors]] = []
    if not part.first:
        roads.append(("recv", placement[part.index - 1], "activations at the cut between two stages", x))
    if not part.last:
        roads.append(("send", placement[part.index + 1], "activations at the cut between two stages", x))
    if part.last:
        roads.append(("send", placement[0], "the new token", token))
    if part.first:
        roads.append(("recv", placement[-1], "the new token", token))
    for collective, other, name, payload in roads:
        if other != here:
            yield Call("pp", collective, phase, name, (times,), payload, (min(here, other), max(here, other)))


# ----------------------------------------------------------------------------------------------------------- to the table

Row = tuple[Axis, str, str, tuple[int, int] | None]


def _rows(spec: RunSpec, held: list[Part], stage: int) -> dict[Row, tuple[int, int, int]]:
    """The stage's calls added up as the table has them: calls, payload and wire bytes. A call sends whole bytes."""
    mesh, rows = spec.layout.mesh, dict[Row, tuple[int, int, int]]()
    for call in _calls(spec, held, stage):
        # Two stages are the whole axis where there are no others.
        between = call.between if mesh.pp > 2 else None
        key = (call.axis, call.collective, call.phase, between)
        n = 2 if call.between else mesh[call.axis]
        times, payload = call.calls, call.payload_bytes
        before = rows.get(key, (0, 0, 0))
        more = (times, times * payload, times * wire_bytes(call.collective, payload, n))
        rows[key] = (before[0] + more[0], before[1] + more[1], before[2] + more[2])
    return rows


class _Groups:
    """The table's name of each rank's group, for some ranks of a stage at once."""

    def __init__(self, mesh: Mesh, whole: bool) -> None:
        """`whole`: names are written out, however long."""
        self.mesh, self.whole = mesh, whole
        self._made: dict[tuple[Axis, tuple[int, int] | None, int], str] = {}  # made once for all ranks of a group
        self._known: dict[tuple[Axis, tuple[int, int] | None, int], np.ndarray] = {}

    def of(self, axis: Axis, ranks: np.ndarray, between: tuple[int, int] | None) -> np.ndarray:
        """`ranks`: those of a stage that have rows."""
        key = axis, between, int(ranks[0])
        if key not in self._known:
            self._known[key] = self._of(axis, ranks, between)
        return self._known[key]

    def _of(self, axis: Axis, ranks: np.ndarray, between: tuple[int, int] | None) -> np.ndarray:
        step, count = self.mesh.stride(axis), self.mesh[axis]
        firsts = ranks - self.mesh.index(axis, ranks) * step
        if between:
            low, high = between
            firsts, step, count = firsts + low * step, (high - low) * step, 2
        return np.array([self._name(axis, between, int(first), step, count) for first in firsts], dtype=object)

    def _name(self, axis: Axis, between: tuple[int, int] | None, first: int, step: int, count: int) -> str:
        key = axis, between, first
        if key not in self._made:
            members = range(first, first + step * count, step)
            self._made[key] = group_name(members, cut=not self.whole and axis != "pp")  # along pp a rank may be any of them
        return self._made[key]
