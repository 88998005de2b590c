"""Checks whether this machine can run a spec, before anything is started. Imports no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import psutil

from engine import files
from engine.launch.host.free_memory import memory_for_runs, usual_reserve
from engine.launch.recording.client import with_ledgers
from engine.optimizer import optimizer_of
from engine.planner import inference
from engine.predict import traffic
from engine.schedule import entries, in_flight_bound
from engine.spec import BYTES_OF, LayoutSpec, RequestError, RunSpec, joined, misfits, recomputes, sentence
from engine.store import OWN
from engine.tables import CATEGORIES
from engine.terms import total
from engine.text import load

MOST_RANKS = 16

_PROCESS = 60_000_000  # bytes of a rank's own; torch is shared with the host that it was forked from
# Resident memory was 1.2 to 1.9 times the live tensors in runs of gpt-small and gpt-medium: initialization needs some for a
# moment, and the C allocator does not return all memory.
_KEPT = 1.5
# At most, for a microbatch: of a layer for each rank along cp, and of a chunk of layers, or of tokens whose loss is taken.
_CALLS_OF_LAYER, _CALLS_OF_CHUNK = 64, 32
_POINTS = 2  # of each pass and message, the most that the curve of memory has: its start and its highest


def check(spec: RunSpec, active: Iterable[RunSpec] = ()) -> None:
    """Raise `RequestError` if this machine cannot run `spec`. `active`: what it runs now, which will have ended by then."""
    if spec.layout.ranks > MOST_RANKS:
        raise RequestError(_too_many_ranks(spec))
    _check_text(spec)
    _check_rows(spec)
    check_memory(spec, active)
    _check_disk(spec)


def check_memory(spec: RunSpec, active: Iterable[RunSpec] = ()) -> None:
    """Raise `RequestError` if all ranks of `spec` together need more memory than runs may take."""
    free = memory_for_runs() + sum(need(other).total for other in active)
    if need(spec).total > free:
        raise RequestError(_too_large(spec, free))


# ----------------------------------------------------------------------------------------------------------------- ranks


def _too_many_ranks(spec: RunSpec) -> str:
    layout, fewer = spec.layout, _fewer_ranks(spec)
    message = sentence(
        "{layout} is {ranks} ranks; this machine runs at most {most}", layout=layout.code, ranks=layout.ranks, most=MOST_RANKS
    )
    if fewer is None:
        return message
    if fewer.zero_replicas != layout.zero_replicas:
        return joined(message, sentence("{layout} with zero_replicas=1 fits", layout=fewer.code))
    return joined(message, sentence("{layout} fits", layout=fewer.code))


def _fewer_ranks(spec: RunSpec) -> LayoutSpec | None:
    """The nearest layout that fits: with the most ranks, then with the fewest changed degrees, dp changed first.

    Where the groups of hybrid sharding no longer divide the ranks, all of them shard.
    """
    asked = spec.layout
    fits = []
    for tp in range(1, min(asked.tp, MOST_RANKS) + 1):
        for pp in range(1, min(asked.pp, MOST_RANKS // tp) + 1):
            for cp in range(1, min(asked.cp, MOST_RANKS // (tp * pp)) + 1):
                dp = min(asked.dp, MOST_RANKS // (tp * cp * pp))
                groups, odd = divmod(dp * cp, asked.zero_replicas)
                copies = asked.zero_replicas if groups > 1 and not odd else 1
                degrees = {"dp": dp, "cp": cp, "tp": tp, "pp": pp}
                layout = asked.model_copy(update=degrees | {"split": (), "zero_replicas": copies})
                if not misfits(spec.model, layout, spec.workload):
                    fits.append(layout)

    def nearness(layout: LayoutSpec) -> tuple[int, ...]:
        kept = sum(degree == asked.mesh[axis] for axis, degree in layout.mesh.items())
        return layout.ranks, kept, layout.tp, layout.pp, layout.cp

    return max(fits, key=nearness, default=None)


# ------------------------------------------------------------------------------------------------------------------ rows


def _check_rows(spec: RunSpec) -> None:
    """Refuse a run that could be saved but not read. Actions that occur once in a step are not counted."""
    if spec.generate.skip_training:
        return
    layout = spec.layout
    ranks, actions = layout.mesh.stride("pp"), entries(layout, spec.workload.microbatches)
    if (rows := ranks * actions * _POINTS * len(CATEGORIES)) > OWN.rows:
        raise RequestError(
            sentence(
                "memory_curve could have {rows:,} rows (dp × tp = {ranks} times the {actions:,} passes and messages of a step, "
                "{points} instants of each, {categories} categories) and a saved run has up to {most:,}; fewer microbatches fit",
                rows=rows, ranks=ranks, actions=actions, points=_POINTS, categories=len(CATEGORIES), most=OWN.rows,
            )
        )  # fmt: skip
    if ranks * (actions + _most_calls(spec)) <= OWN.rows:
        return  # no ledger has to be read, or recorded
    # A caller who wants to say what is happening asks for a prediction first.
    calls = with_ledgers(lambda: sum(call.calls for stage in range(layout.pp) for call in traffic.calls(spec, stage)))
    if (rows := ranks * (actions + calls)) > OWN.rows:
        raise RequestError(
            sentence(
                "spans could have {rows:,} rows (dp × tp = {ranks} times the {actions:,} passes and messages and the {calls:,} "
                "calls of a step) and a saved run has up to {most:,}; fewer microbatches fit",
                rows=rows, ranks=ranks, actions=actions, calls=calls, most=OWN.rows,
            )
        )  # fmt: skip


def _most_calls(spec: RunSpec) -> int:
    """More calls than the ranks of a pipeline make in a step, whatever the parts of the layers are."""
    model, layout, workload = spec.model, spec.layout, spec.workload
    tokens = workload.loss_tokens(model, layout.tp)
    chunks = -(-model.rows * workload.microbatch_size // tokens) if tokens else 1
    return workload.microbatches * (
        model.layers * _CALLS_OF_LAYER * layout.cp + _CALLS_OF_CHUNK * (chunks + layout.pp * layout.chunks)
    )


# ---------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Need:
    """Estimated bytes that a run takes on this machine, all ranks together."""

    state: int  # weights, gradients, optimizer; the weights alone where nothing is trained
    activations: int  # or the cache of keys and values
    processes: int

    @property
    def total(self) -> int:
        return int((self.state + self.activations) * _KEPT) + self.processes


def need(spec: RunSpec) -> Need:
    """About how much memory a run takes."""
    model, layout = spec.model, spec.layout
    rows = model.padded_vocab(layout.tp)
    padding = (rows - model.vocab) * model.hidden * (1 if model.parts.tied else 2)
    more = padding + (rows * model.hidden if layout.pp > 1 else 0)  # the first and the last stage each hold the embedding
    if spec.generate.skip_training:
        weights = (model.parameters() + more) * BYTES_OF[spec.workload.precision] * layout.dp
        return Need(weights, _cached(spec), layout.ranks * _PROCESS)
    state = (model.parameters() + more) * _state_of_a_parameter(spec)
    activations = layout.dp * sum(_stage_activations(spec, stage) for stage in range(layout.pp))
    if spec.parity:  # the whole model in one process, fp32 with Adam, and every rank's gradients beside it
        state += model.parameters() * (16 + 4 * (1 + layout.mesh.replicas))
        again = sum(map(sum, layout.recomputed_whole(model.layers, model.encoder_layers)))
        activations += _microbatch_activations(spec, model.layers, again, head=True)
    return Need(state, activations, layout.ranks * _PROCESS)


def _cached(spec: RunSpec) -> int:
    """Keys and values of one sequence, prompt and new tokens, on all ranks."""
    layout, generate = spec.layout, spec.generate
    length = len(generate.prompt.encode()) + generate.new_tokens
    of_stages = (inference.cache(spec.model, layout, spec.workload.precision, stage, 1, length) for stage in range(layout.pp))
    return layout.mesh.stride("pp") * sum(map(total, of_stages))


def _state_of_a_parameter(spec: RunSpec) -> int:
    """Bytes that all replicas together keep for one parameter."""
    workload, layout = spec.workload, spec.layout
    weight = BYTES_OF[workload.precision]
    gradient = BYTES_OF[workload.gradient_precision]
    optimizer = optimizer_of(workload).bytes_of_a_parameter(workload) + workload.master_bytes
    copies, replicas = layout.zero_replicas, layout.mesh.replicas
    return sum(
        size * (copies if layout.zero >= stage else replicas) for stage, size in ((1, optimizer), (2, gradient), (3, weight))
    )


def _stage_activations(spec: RunSpec, stage: int) -> int:
    """Bytes that a stage's tp ranks together keep for backward, with the most microbatches in flight."""
    layout = spec.layout
    in_flight = in_flight_bound(layout.schedule, stage, layout.pp, spec.workload.microbatches, layout.chunks)
    layers = layout.stage_layers(spec.model.layers)[stage]
    # A pass through one of several chunks holds that much less.
    recomputed = zip(layout.placement, layout.recomputed_whole(spec.model.layers, spec.model.encoder_layers), strict=True)
    again = sum(sum(chunk) for place, chunk in recomputed if place == stage)
    kept = in_flight * _microbatch_activations(spec, layers, again, head=stage == layout.placement[-1]) // layout.chunks
    return kept + (in_flight + 1) * _bias(spec)  # of each microbatch, and the gradient of one


def _bias(spec: RunSpec) -> int:
    """Bytes of the biases of T5's attention, (heads, S, S) on a stage's tp ranks together. All layers of a stack share them."""
    learned = spec.model.parts.position == "buckets"
    return BYTES_OF[spec.workload.precision] * spec.model.heads * spec.model.seq**2 if learned else 0


def _microbatch_activations(spec: RunSpec, layers: int, again: int, head: bool) -> int:
    """Bytes that a stage's tp ranks together keep of one microbatch in `layers` layers, of which `again` are recomputed whole.

    A layer's norms and residuals (4 h) are whole on each rank, unless the sequence is sharded. Sharded over tp are q, k, v and
    the attention's output (4 h), its weights (heads × seq) if it is written, and the MLP before and after its activation (2 f).
    The head keeps logits and softmax. Of layers that are recomputed whole only the inputs are kept, and all activations of one
    layer at a time.
    """
    model, layout = spec.model, spec.layout
    copies = 1 if layout.sequence_parallel else layout.tp
    written = spec.attention == "written" and not recomputes(layout.recompute, "core_attn")
    attention = model.heads * model.seq if written else 0
    layer = 4 * model.hidden * (copies + 1) + 2 * model.ffn_width + attention
    kept = again * copies * model.hidden + (layers - again + (again > 0)) * layer
    tokens = spec.workload.microbatch_size * model.seq
    with_logits = min(tokens, spec.workload.loss_tokens(model, layout.tp) or tokens) if head else 0
    return BYTES_OF[spec.workload.precision] * (tokens * kept + with_logits * 2 * model.padded_vocab(layout.tp))


def _too_large(spec: RunSpec, available: int) -> str:
    asked, ranks = need(spec), spec.layout.ranks
    processes = sentence("{ranks} processes", ranks=ranks) if ranks > 1 else sentence("1 process")
    state, activations, own = (_gb(size) for size in (asked.state, asked.activations, asked.processes))
    total, free, kept = _gb(asked.total), _gb(available), _gb(usual_reserve())
    if spec.generate.skip_training:
        message = sentence(
            "this run needs about {total} (weights {state}, cache of keys and values {cache}, half as much again for the "
            "allocator, {own} for {processes}) and {free} is free beyond a reserve of {kept}",
            total=total, state=state, cache=activations, own=own, processes=processes, free=free, kept=kept,
        )  # fmt: skip
    else:
        message = sentence(
            "this run needs about {total} (weights, gradients and optimizer {state}, activations {activations}, half as much "
            "again for the allocator, {own} for {processes}) and {free} is free beyond a reserve of {kept}",
            total=total, state=state, activations=activations, own=own, processes=processes, free=free, kept=kept,
        )  # fmt: skip
    fits = next((change for change, smaller in _smaller(spec) if need(smaller).total <= available), None)
    return joined(message, sentence("{change} would fit", change=fits)) if fits else message


def _smaller(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    """The same run with less of one size that takes memory, for each such size that fits the rest: largest first."""
    for change, smaller in _with_less(spec):
        if not misfits(smaller.model, smaller.layout, smaller.workload):
            yield change, smaller


def _with_less(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    model, layout, workload = spec.model, spec.layout, spec.workload
    for dp in range(layout.dp - 1, 0, -1):
        yield f"dp={dp}", _changed(spec, "layout", dp=dp)
    for size in range(workload.microbatch_size - 1, 0, -1):
        yield f"microbatch_size={size}", _changed(spec, "workload", microbatch_size=size)
    for layers in range(model.layers - 1, layout.pp - 1, -1):
        yield f"layers={layers}", _changed(_changed(spec, "layout", split=()), "model", layers=layers)


def _changed(spec: RunSpec, part: str, **changes: object) -> RunSpec:
    """`spec` with fields of one part changed to values that each field can have."""
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=changes)})


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"


# ------------------------------------------------------------------------------------------------------------------ disk


def _check_disk(spec: RunSpec) -> None:
    """For parity, all gradients are written in fp32 to the file of the ranks' store."""
    if not spec.parity or spec.generate.skip_training:
        return
    size = 4 * spec.model.parameters() * spec.layout.mesh.replicas
    try:
        folder = tempfile.gettempdir()
        free = psutil.disk_usage(folder).free
    except OSError as error:
        raise files.none_temporary(error) from error
    if size > free:
        message = sentence(
            "to compare gradients this run writes about {size} of them to {folder}, where {free} is free",
            size=_gb(size), folder=folder, free=_gb(free),
        )  # fmt: skip
        raise RequestError(message)


# ------------------------------------------------------------------------------------------------------------------ text


@cache
def _own_size() -> int:
    """Bytes of the built-in text. Cached, since it is needed at each move of a control."""
    return len(load(None))


def _check_text(spec: RunSpec) -> None:
    path, seq = spec.workload.text, spec.model.seq
    size = _own_size() if path is None else len(load(path))
    if size <= seq:
        raise RequestError(
            sentence(
                "{text} is {size:,} bytes long and seq={seq} needs at least {needed:,}",
                text=path or sentence("the built-in text"),
                size=size,
                seq=seq,
                needed=seq + 1,
            )
        )
