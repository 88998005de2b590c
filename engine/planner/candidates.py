"""Every layout of N ranks that fits a model and a batch, as one grid: the rules of `engine.spec.fit` for arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import RECOMPUTES, Grid
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, Recompute, RequestError, ScheduleName, WorkloadSpec, sentence
from engine.spec.context import CONTEXTS, Context
from engine.spec.fit_context import cut_by_context
from engine.spec.numbers import divisors, either, nearest

_ONE_STAGE: ScheduleName = "1f1b"  # with one stage all schedules are the same, so only this one is tried
MOST = 1_000_000  # ranks, and sequences of a batch
LEAST_TOKENS = 8192  # of a sequence on a rank, where it is cut over cp
# Of the kinds of context parallelism. all_gather sends the bytes of ring, which hides them, and keeps more memory.
_CONTEXTS: tuple[Context, ...] = ("ring", "ring of 2", "ulysses")
_LARGEST = {  # the largest value that each field of a spec takes
    (part, name): next(m.le for m in part.model_fields[name].metadata if hasattr(m, "le"))
    for part, names in (
        (LayoutSpec, ("dp", "cp", "tp", "pp", "chunks", "ep")),
        (WorkloadSpec, ("microbatches", "microbatch_size")),
    )
    for name in names
}


def planned_recomputes(model: ModelSpec, workload: WorkloadSpec) -> tuple[Recompute, ...]:
    """The kinds of recompute that are tried: none, the parts that free most memory for little time, and full."""
    return "none", cheap_recompute(model, workload), "full"


def cheap_recompute(model: ModelSpec, workload: WorkloadSpec) -> Recompute:
    """The parts of layers that take much memory and little time: written scores, or norms and the MLP's activation.

    Fused attention keeps nothing that is large. Norms behind attention and MLP are the input of the next, and are kept for that.
    """
    if workload.attention_of(model) == "written":
        return "core_attn"
    return "layernorm+mlp_act" if model.parts.placement in ("pre", "both") else "mlp_act"


def default_batch(ranks: int) -> int:
    """The global batch where none is given: 2 sequences for each device."""
    return min(max(1, 2 * ranks), MOST)


def candidates(model: ModelSpec, ranks: int, global_batch: int, workload: WorkloadSpec | None = None) -> Grid:
    """All layouts of `ranks` ranks that run `global_batch` sequences a step. Raises `RequestError` if there is none.

    `workload`: it decides which kinds of recompute are tried (`planned_recomputes`); None means the default.

    Some layouts are left out. With one stage, schedules do not differ, so there is one. If several numbers of chunks have
    equally large largest chunks, only the smallest number is tried: more chunks only send more messages. A sequence is cut over
    cp only if a rank then has `LEAST_TOKENS` of it or more; then a microbatch has one sequence. With cp, and in a model with
    experts, tp cuts the sequence too, as Megatron-LM wants it, and does not exceed the key heads.
    """
    wrong = [f"{n}={value:,}" for n, value in (("ranks", ranks), ("global_batch", global_batch)) if not 1 <= value <= MOST]
    if wrong:
        raise RequestError(sentence("{numbers} must be from 1 to {most}", numbers=", ".join(wrong), most=f"{MOST:,}"))
    meshes = [
        _of(model, ranks // (cp * tp * pp), cp, tp, pp, global_batch) for cp, tp, pp in _degrees(model, ranks, global_batch)
    ]
    if not meshes:
        raise RequestError(_nothing(model, ranks, global_batch))
    dp, cp, context, tp, pp, ep, schedule, chunks, size, count = np.array([row for mesh in meshes for row in mesh]).T.copy()
    none, never = np.zeros_like(dp), np.zeros(len(dp), np.bool_)
    bare = Grid(
        dp=dp, cp=cp, tp=tp, pp=pp, ep=ep, chunks=chunks, microbatch_size=size, microbatches=count, zero=none,
        sequence_parallel=never, recompute=none, schedule=schedule, context=context, recomputed=none,
        zero_replicas=np.ones_like(dp),
    )  # fmt: skip
    return _with_levers(model, bare.take(fits(model, bare)), planned_recomputes(model, workload or WorkloadSpec()))


def _with_levers(model: ModelSpec, bare: Grid, kinds: Sequence[Recompute]) -> Grid:
    """Each layout with every combination of ZeRO stage, sequence parallelism and one of these recomputes that fits it."""
    recomputes = np.array([RECOMPUTES.index(kind) for kind in kinds])
    zeros = np.where(fits(model, replace(bare, zero=np.ones_like(bare.zero))), 4, 1)
    cuts = fits(model, replace(bare, sequence_parallel=np.ones(len(bare), np.bool_)))
    always = cuts & ((bare.cp > 1) | (model.experts > 0))
    sequences = np.where(cuts & ~always, 2, 1)
    each = zeros * sequences * len(recomputes)
    of = np.repeat(np.arange(len(bare)), each)
    number = np.arange(len(of)) - np.repeat(each.cumsum() - each, each)  # of the combination, among those of its layout
    rest, recompute = np.divmod(number, len(recomputes))
    zero, sequence = np.divmod(rest, sequences[of])
    return replace(bare.take(of), zero=zero, sequence_parallel=(sequence > 0) | always[of], recompute=recomputes[recompute])


def _degrees(model: ModelSpec, ranks: int, global_batch: int) -> Iterator[tuple[int, int, int]]:
    """(cp, tp, pp) of the meshes that fit the model's sizes and the batch."""
    for tp in _tensor_degrees(model, ranks):
        for cp in _context_degrees(model, ranks // tp):
            if tp > model.key_heads and (cp > 1 or model.experts):
                continue
            for pp in divisors(ranks // (cp * tp)):
                if pp <= model.layers and global_batch % (ranks // (cp * tp * pp)) == 0:
                    yield cp, tp, pp


def _context_degrees(model: ModelSpec, ranks: int) -> list[int]:
    """The cp that divide the ranks and leave each of them enough of a sequence."""
    most = min(model.seq // LEAST_TOKENS, _LARGEST[LayoutSpec, "cp"]) if cut_by_context(model) else 1
    return [cp for cp in divisors(ranks) if cp <= max(1, most)]


def _tensor_degrees(model: ModelSpec, ranks: int) -> list[int]:
    """The tp that divide the ranks and fit the model's sizes."""
    return [tp for tp in divisors(gcd(ranks, gcd(model.heads, model.cut_width))) if model.fits_tp(tp)]


def _nothing(model: ModelSpec, ranks: int, global_batch: int) -> str:
    fitting = _tensor_degrees(model, ranks)
    least = min(ranks // (tp * pp) for tp in fitting for pp in divisors(ranks // tp) if pp <= model.layers)
    near = either(sorted(nearest((k * least for k in range(1, global_batch // least + 2)), global_batch)))
    return sentence(
        "no dp × tp × pp = {ranks} fits: tp must be {fitting}, pp be at most {layers} layers, and dp, which is then at least "
        "{least}, divide the global batch of {batch}; a global batch of {near} fits",
        ranks=ranks, fitting=either(fitting), layers=model.layers, least=least, batch=global_batch, near=near,
    )  # fmt: skip


def _of(model: ModelSpec, dp: int, cp: int, tp: int, pp: int, global_batch: int) -> list[tuple[int, ...]]:
    """All layouts of one mesh, without levers: dp, cp, context, tp, pp, ep, schedule, chunks, microbatch size, microbatches."""
    each = global_batch // dp
    orders = [(SCHEDULES.index(name), v) for name in SCHEDULES for v in _chunks(name, model.layers, pp)]
    sizes = [size for size in divisors(each) if size <= _LARGEST[WorkloadSpec, "microbatch_size"]]
    contexts = [CONTEXTS.index(kind) for kind in _CONTEXTS if (kind == "ring of 2") == (cp == 2) or kind == "ulysses"]
    degrees = [
        (dp, cp, context, tp, pp, ep)
        for context in (contexts if cp > 1 else [0])
        for ep in (divisors(gcd(dp, model.experts)) if model.experts else [1])
    ]
    sizes = sizes[:1] if cp > 1 else sizes
    return [
        (*of, schedule, v, size, each // size)
        for of, (schedule, v), size in itertools.product(degrees, orders, sizes)
        if of[5] <= _LARGEST[LayoutSpec, "ep"]
    ]


def _chunks(name: ScheduleName, layers: int, pp: int) -> list[int]:
    """The numbers of chunks of a stage that are tried for a schedule."""
    if pp == 1:
        return [1] if name == _ONE_STAGE else []
    if chunks := SCHEDULE_FACTS[name].chunks:
        return [chunks] if chunks * pp <= layers else []
    most = min(layers // pp, _LARGEST[LayoutSpec, "chunks"])
    fewest: dict[int, int] = {}  # layers of the largest chunk → chunks
    for v in range(2, most + 1):
        fewest.setdefault(-(-layers // (pp * v)), v)
    return list(fewest.values())


def _cut_evenly(model: ModelSpec, grid: Grid) -> Any:
    """Whether cp divides the sequence, and, with ulysses, the key heads of a tp rank: the rules of `context_misfits`. (n,)"""
    exchanges = grid.context == CONTEXTS.index("ulysses")
    parts = np.where(exchanges, 1, 2) * grid.cp * np.where(grid.sequence_parallel, grid.tp, 1)
    return (model.seq % parts == 0) & (~exchanges | (np.maximum(1, model.key_heads // grid.tp) % grid.cp == 0))


def fits(model: ModelSpec, grid: Grid) -> NDArray[np.bool_]:
    """Which layouts fit, by the rules of `misfits` that are about a layout and its microbatches. (n,)"""
    g, m = grid, grid.microbatches
    fine: Any = model.fits_tp(g.tp) & (g.pp * g.chunks <= model.layers)
    for facts, rows in g.schedules():
        fine[rows] &= facts.fits_chunks(g.chunks[rows]) & facts.fits_microbatches(g.pp[rows], m[rows])
    fine &= (g.zero == 0) | (g.replicas > 1)
    alike = (g.replicas % g.zero_replicas == 0) & (g.ep == 1)  # the groups that shard
    fine &= (g.zero_replicas == 1) | ((g.zero > 0) & (g.shards > 1) & alike)
    fine &= ~g.sequence_parallel | ((g.tp > 1) & ((g.cp > 1) | (model.rows % g.tp == 0)))
    fine &= (g.ep == 1) | ((g.dp % g.ep == 0) & (model.experts > 0) & (model.experts % g.ep == 0))
    fine &= (g.cp == 1) | (cut_by_context(model) & _cut_evenly(model, g))
    for (_, name), most in _LARGEST.items():
        fine &= getattr(g, name) <= most
    return fine
