"""Layouts for inference of a model on N devices: whether they fit, how many sequences at a time, and how fast a token is.

A rank holds only parameters and the KV cache. So memory limits a layout, and the time to read both limits a token (Pope et al.
2022, Efficiently Scaling Transformer Inference, section 2). Each replica has its own sequences. The stages of a pipeline work on
different sequences, each on 1/pp of them at a time.

Times are of decoding, token by token. The time of prefill is not counted, nor that of an encoder, which runs once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from engine.devices import DeviceSpec
from engine.grid import Grid
from engine.ledger.keep import Key
from engine.ledger.layout import Chunk, LayoutLedgers, needs_of
from engine.ledger.store import ledger_store
from engine.planner.candidates import MOST
from engine.planner.inference import cache, most_sequences, refuse_beyond_positions, refuse_no_text, refuse_too_large, weights
from engine.planner.reserve import reserve_of, tensors_that_fit
from engine.predict.memory.buckets import BucketSizes
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions
from engine.spec import LayoutSpec, ModelSpec, Precision, RequestError, RunSpec, WorkloadSpec, misfits, sentence
from engine.spec.numbers import divisors
from engine.terms import total
from engine.topology import AXES_AS_WRITTEN


@dataclass(frozen=True)
class _Question:
    model: ModelSpec
    device: DeviceSpec
    assumed: Assumptions
    precision: Precision
    length: int
    kept_free: int | None

    def room(self, layout: LayoutSpec) -> int:
        """Bytes that weights and caches may take. Replicas do not communicate."""
        return tensors_that_fit(self.device, 1, layout.tp, layout.pp, False, self.kept_free)


def serving(
    model: ModelSpec,
    ranks: int,
    device: DeviceSpec,
    length: int,
    sequences: int | None = None,
    precision: Precision = "bf16",
    assumed: Assumptions | None = None,
    kept_free: int | None = None,
) -> pd.DataFrame:
    """Every dp × tp × pp of `ranks` devices. Those that fit come first, the fastest at the top. Raises `RequestError`.

    `length`: tokens of a sequence, prompt and answer. `sequences`: how many at a time, on all replicas together; None means as
    many as fit. `kept_free`: bytes of a device that these must leave; None means what `engine.planner.reserve` says. Columns:

        layout, dp, tp, pp
        parameters_bytes, cache_bytes    the largest parameters of a rank; the largest KV cache of one sequence on a rank
        most_sequences, sequences        how many fit; how many there are; on all replicas together
        memory_bytes                     of the fullest rank, with these sequences
        reserve_bytes                    kept free beside it
        token_s, tokens_per_second       seconds between two tokens of one sequence; of all sequences together
        fits, reason                     whether both fit the device's memory; if not, by how much they are too large
    """
    if ranks < 1 or length < 1 or (sequences is not None and sequences < 1):
        values = {"ranks": ranks, "length": length, "sequences": str(sequences)}
        raise RequestError(sentence("ranks={ranks}, length={length} and sequences={sequences} must be 1 and more", **values))
    if ranks > MOST:
        raise RequestError(sentence("{numbers} must be from 1 to {most}", numbers=f"ranks={ranks:,}", most=f"{MOST:,}"))
    refuse_no_text(model)
    refuse_beyond_positions(model, length)
    asked = _Question(model, device, assumed or Assumptions(), precision, length, kept_free)
    layouts, workload = _layouts(model, ranks), WorkloadSpec(precision=precision)
    # One error for the ledgers of all layouts, so that they are recorded together.
    ledger_store().check(set[Key]().union(*(needs_of(model, layout, workload) for layout in layouts)))
    rows = [_row(asked, layout, sequences) for layout in layouts]
    if not rows:
        values = {"ranks": ranks, "layers": model.layers, "heads": model.key_heads}
        raise RequestError(sentence("no dp × tp × pp = {ranks} fits {layers} layers and {heads} key heads", **values))
    table = pd.DataFrame(rows)
    table["slower"] = -table["tokens_per_second"].where(table["fits"], -table["memory_bytes"])
    order = table.assign(too_large=~table["fits"]).sort_values(["too_large", "slower", "token_s"], kind="stable").index
    return table.loc[order].drop(columns="slower").reset_index(drop=True)


def _layouts(model: ModelSpec, ranks: int) -> list[LayoutSpec]:
    found = []
    for tp in divisors(ranks):
        for pp in divisors(ranks // tp):
            if tp <= model.heads and pp <= model.layers and ranks // (tp * pp) <= 65_536:
                layout = LayoutSpec(dp=ranks // (tp * pp), tp=tp, pp=pp)
                if not misfits(model, layout, WorkloadSpec()):
                    found.append(layout)
    return found


def _row(asked: _Question, layout: LayoutSpec, sequences: int | None) -> dict[str, Any]:
    model, device, precision = asked.model, asked.device, asked.precision
    held = [total(weights(model, layout, precision, stage)) for stage in range(layout.pp)]
    kept = [total(cache(model, layout, precision, stage, 1, asked.length)) for stage in range(layout.pp)]
    most = most_sequences(model, layout, precision, asked.length, asked.room(layout))
    each = max(1, most) if sequences is None else -(-sequences // layout.dp)
    need = max(parameters + each * one for parameters, one in zip(held, kept, strict=True))
    refuse_too_large(need, each, asked.length)
    free = reserve_of(device, 1, layout.tp, layout.pp, False, need, asked.kept_free)
    fits = need + free <= device.memory_bytes
    wait = _token(asked, layout, kept, each)
    under_way = each * layout.dp if sequences is None else sequences
    missing = "" if fits else _missing(need + free, each, device)
    return {
        "layout": layout.code, **{axis: layout.mesh[axis] for axis in AXES_AS_WRITTEN},
        "parameters_bytes": max(held), "cache_bytes": max(kept),
        "most_sequences": max(0, most) * layout.dp, "sequences": under_way, "memory_bytes": need, "reserve_bytes": free,
        "token_s": wait, "tokens_per_second": under_way / wait, "fits": fits, "reason": missing,
    }  # fmt: skip


def _missing(need: int, sequences: int, device: DeviceSpec) -> str:
    have = device.memory_bytes
    held = f"{sequences:,} sequence{'' if sequences == 1 else 's'} a replica"
    more = f"{(need - have) / 2**30:,.1f} GiB more than the device's {have / 2**30:,.1f} GiB"
    return f"needs {need / 2**30:,.1f} GiB with its reserve for {held}, {more}"


def _token(asked: _Question, layout: LayoutSpec, kept: list[int], sequences: int) -> float:
    """Seconds from one token of a sequence to its next: the sum of all stages, or groups × the slowest stage, if that is longer.

    The sequences are divided into a group for each stage, and a stage works on one group at a time. It takes the longer of two
    times. One is reading its parameters and the group's KV cache. The other is the FLOPs: for each sequence 2 a parameter, and 2
    · A/tp · (D + Dv) a layer for each token in the cache (Q·Kᵀ and P·V). With latents, keys and values of all tokens are made
    again: 2 · Lkv · A/tp · (Dn + Dv) a layer for each. Then there are two all-reduces over tp a layer, three with
    cross-attention or shared experts. Stages with only encoder layers have nothing to do and are left out.

    A replica has all experts, each cut over tp. Of these a stage reads those that the group's tokens go to, with a balanced
    router k · group of E if that is less than all, and each token is multiplied by k.
    """
    model = asked.model
    spec = RunSpec(model=model, layout=layout, workload=WorkloadSpec(precision=asked.precision))
    cost = Cost(spec.model, spec.workload, Grid.of([spec]), asked.device, asked.assumed)
    ledgers = LayoutLedgers(model, layout, WorkloadSpec(precision=asked.precision))
    chunks = [chunk for stage in range(layout.pp) for chunk in ledgers.on(stage)]
    decoding = [chunk for chunk in chunks if chunk.layers[1] or not model.parts.encoder]
    group = -(-sequences // len(decoding))
    activations = group * model.hidden * cost.bytes  # bytes; one token of each sequence
    reduction, message = float(cost.tp.all_reduce(activations)[0]), float(cost.pp.message(activations)[0])
    stages = []
    for chunk in decoding:
        all_experts = _parameters_read(ledgers, chunk, True)
        others = _parameters_read(ledgers, chunk, False)
        used = others + all_experts * model.expert_choices / max(1, model.experts)
        read = others + all_experts * min(1, group * model.expert_choices / max(1, model.experts))
        layers, attentions = (chunk.layers[1], 2) if model.parts.encoder else (sum(chunk.layers), 1)
        remembered = asked.length + (model.seq if model.parts.encoder else 0)
        heads = layers * model.heads // layout.tp
        scores = 2 * heads * remembered * (model.head_width + model.value_width)
        # `used` has those of the new token. Without latents their width is 0.
        again = 2 * heads * (remembered - 1) * model.kv_lora_rank * (model.unturned + model.value_width)
        moved = read * cost.bytes + group * kept[layout.placement[chunk.number]]
        work = max(moved / cost.rates.memory, group * (2 * used + scores + again) / cost.rates.products)
        reductions = layers * (attentions + 1) + (chunk.layers[1] if model.shared_ffn else 0)
        stages.append(work + reductions * reduction + message)
    return max(sum(stages), min(len(decoding), sequences) * max(stages))


def _parameters_read(ledgers: LayoutLedgers, chunk: Chunk, experts: bool) -> int:
    """The parameters of a chunk on one tp rank that the next token is multiplied by: those of its layers, and of the head.

    `experts`: those of experts, or of all else.

    Of the embedding tables a token needs only a row. With an encoder, only decoder layers count, without the projections of the
    encoder's output to keys and values: their results are in the KV cache since prefill.
    """
    model, read = ledgers.model, 0
    encoders = chunk.part.recorded[0] if model.parts.encoder else 0
    for recorded in chunk.ledger.buckets:
        if recorded.experts != experts:
            continue
        tied = chunk.part.last and model.parts.tied and recorded.name.endswith("token")
        if recorded.layer >= encoders or (chunk.part.last and recorded.name == "head") or tied:
            read += BucketSizes(recorded, chunk.part, ledgers.sizes, 1).size.value * chunk.times(recorded.layer)
    if model.parts.encoder and not experts:
        read -= chunk.layers[1] * 2 * model.keys_on_rank(ledgers.layout.tp) * model.head_width * model.hidden
    return read
