"""Which layouts hold a model for inference on N devices, how many sequences at a time, and how fast they answer.

Nothing but parameters and the cache of keys and values is kept, so what limits a layout is memory, and what limits a token is how
fast both are read (Pope et al. 2022, Efficiently Scaling Transformer Inference, section 2). Each replica has its own sequences; a
pipeline's stages work at different ones, a pp-th of them at a time.

Times are those of the answer's tokens. The prompt is read once, before the first of them, and by the encoder where there is one:
its time is not counted here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from engine.devices import DeviceSpec
from engine.predict.grid import Grid
from engine.predict.inference import cache, most_sequences, must_be_told, must_write, weights
from engine.predict.ledger.layout import Chunk, LayoutLedgers
from engine.predict.memory.buckets import BucketSizes
from engine.predict.planner.candidates import MOST
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions
from engine.predict.terms import total
from engine.spec import LayoutSpec, ModelSpec, Precision, RequestError, RunSpec, WorkloadSpec, misfits
from engine.spec.numbers import divisors
from engine.topology import AXES_AS_WRITTEN


@dataclass(frozen=True)
class _Question:
    model: ModelSpec
    device: DeviceSpec
    assumed: Assumptions
    precision: Precision
    length: int


def serving(
    model: ModelSpec,
    ranks: int,
    device: DeviceSpec,
    length: int,
    sequences: int | None = None,
    precision: Precision = "bf16",
    assumed: Assumptions | None = None,
) -> pd.DataFrame:
    """Every dp × tp × pp of `ranks` devices, those that fit first and of these the fastest. Raises `RequestError`.

    `length`: tokens of a sequence, prompt and answer. `sequences`: at a time on all replicas together; None means as many as fit.
    Columns:

        layout, dp, tp, pp
        parameters_bytes, cache_bytes    of the fullest rank; of one sequence there
        most_sequences, sequences        that fit, and that are assumed under way, on all replicas together
        memory_bytes                     of the fullest rank, with those sequences
        token_s, tokens_per_second       between two tokens of one sequence; of all sequences together
        fits, reason                     whether the device's memory holds it; if not, by how much
    """
    if ranks < 1 or length < 1 or (sequences is not None and sequences < 1):
        raise RequestError(f"ranks={ranks}, length={length} and sequences={sequences} must be 1 and more")
    if ranks > MOST:
        raise RequestError(f"ranks={ranks:,} must be from 1 to {MOST:,}")
    must_write(model)
    asked = _Question(model, device, assumed or Assumptions(), precision, length)
    rows = [_row(asked, layout, sequences) for layout in _layouts(model, ranks)]
    if not rows:
        raise RequestError(f"no dp × tp × pp = {ranks} fits {model.layers} layers and {model.key_heads} key heads")
    table = pd.DataFrame(rows)
    table["slower"] = -table["tokens_per_second"].where(table["fits"], -table["memory_bytes"])
    order = table.assign(too_large=~table["fits"]).sort_values(["too_large", "slower", "token_s"], kind="stable").index
    return table.loc[order].drop(columns="slower").reset_index(drop=True)


def _layouts(model: ModelSpec, ranks: int) -> list[LayoutSpec]:
    found = []
    for tp in divisors(ranks):
        for pp in divisors(ranks // tp):
            if tp <= model.key_heads and pp <= model.layers and ranks // (tp * pp) <= 65_536:
                layout = LayoutSpec(dp=ranks // (tp * pp), tp=tp, pp=pp)
                if not misfits(model, layout, WorkloadSpec()):
                    found.append(layout)
    return found


def _row(asked: _Question, layout: LayoutSpec, sequences: int | None) -> dict[str, Any]:
    model, device, precision = asked.model, asked.device, asked.precision
    held = [total(weights(model, layout, precision, stage)) for stage in range(layout.pp)]
    kept = [total(cache(model, layout, precision, stage, 1, asked.length)) for stage in range(layout.pp)]
    most = most_sequences(model, layout, precision, asked.length, device.memory_bytes)
    each = max(1, most) if sequences is None else -(-sequences // layout.dp)
    need = max(parameters + each * one for parameters, one in zip(held, kept, strict=True))
    must_be_told(need, each, asked.length)
    fits = need <= device.memory_bytes
    wait = _token(asked, layout, kept, each)
    under_way = each * layout.dp if sequences is None else sequences
    missing = "" if fits else _missing(need, each, device)
    return {
        "layout": layout.code, **{axis: layout.mesh[axis] for axis in AXES_AS_WRITTEN},
        "parameters_bytes": max(held), "cache_bytes": max(kept),
        "most_sequences": max(0, most) * layout.dp, "sequences": under_way, "memory_bytes": need,
        "token_s": wait, "tokens_per_second": under_way / wait, "fits": fits, "reason": missing,
    }  # fmt: skip


def _missing(need: int, sequences: int, device: DeviceSpec) -> str:
    have = device.memory_bytes
    held = f"{sequences:,} sequence{'' if sequences == 1 else 's'} a replica"
    more = f"{(need - have) / 2**30:,.1f} GiB more than the device's {have / 2**30:,.1f} GiB"
    return f"needs {need / 2**30:,.1f} GiB for {held}, {more}"


def _token(asked: _Question, layout: LayoutSpec, kept: list[int], sequences: int) -> float:
    """Seconds from one token of a sequence to its next: through every stage, or until the others' turns are over.

    A stage reads its parameters once for the sequences at hand, and their cache; or multiplies, if that takes longer: 2 FLOPs a
    parameter, and for each token of the cache 4 · A/tp · D a layer, Q·Kᵀ and P·V. Over tp there are two all-reduces a layer,
    three with cross-attention. The stages of an encoder have nothing to do, and those of the decoder take turns without them.
    """
    model = asked.model
    spec = RunSpec(model=model, layout=layout, workload=WorkloadSpec(precision=asked.precision))
    cost = Cost(spec.model, spec.workload, Grid.of([spec]), asked.device, asked.assumed)
    ledgers = LayoutLedgers(model, layout, WorkloadSpec(precision=asked.precision))
    chunks = [chunk for stage in range(layout.pp) for chunk in ledgers.on(stage)]
    decoding = [chunk for chunk in chunks if chunk.layers[1] or not model.parts.encoder]
    at_hand = -(-sequences // len(decoding))
    one = at_hand * model.hidden * cost.bytes  # bytes of one token's activations
    sums, message = float(cost.tp.all_reduce(one)[0]), float(cost.pp.message(one)[0])
    stages = []
    for chunk in decoding:
        read = _parameters_read(ledgers, chunk)
        layers, attentions = (chunk.layers[1], 2) if model.parts.encoder else (chunk.layers[0], 1)
        remembered = asked.length + (model.seq if model.parts.encoder else 0)
        scores = 4 * layers * remembered * model.heads // layout.tp * model.head_width
        moved = read * cost.bytes + at_hand * kept[layout.placement[chunk.number]]
        work = max(moved / cost.bandwidth, at_hand * (2 * read + scores) / cost.flops)
        stages.append(work + layers * (attentions + 1) * sums + message)
    return max(sum(stages), min(len(decoding), sequences) * max(stages))


def _parameters_read(ledgers: LayoutLedgers, chunk: Chunk) -> int:
    """Those on one tp rank that the next token is multiplied by: of the decoder's layers, if there is an encoder, and the head's.

    Of the table that embeds, and of positions, it takes a row; and the encoder's output was turned into keys and values when the
    prompt was read.
    """
    model, read = ledgers.model, 0
    encoders = chunk.part.recorded[0] if model.parts.encoder else 0
    for recorded in chunk.ledger.buckets:
        tied = chunk.part.last and model.parts.tied and recorded.name.endswith("token")
        if recorded.layer >= encoders or (chunk.part.last and recorded.name == "head") or tied:
            read += BucketSizes(recorded, chunk.part, ledgers.sizes, 1).size.value * chunk.times(recorded.layer)
    if model.parts.encoder:
        read -= chunk.layers[1] * 2 * (model.key_heads // ledgers.layout.tp) * model.head_width * model.hidden
    return read
