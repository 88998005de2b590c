"""Memory and traffic of inference, at any scale: the parameters and the KV cache of each rank, and its communication.

It holds for serving and for the engine's own generation. `batch` sequences at a time go through one replica of tp × pp ranks.
Symbols are as in `engine.predict.traffic.rules`; T tokens of a sequence, prompt and answer; G key heads of width D.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pandas as pd

from engine.families import FAMILIES
from engine.ledger.layout import LayoutLedgers
from engine.ledger.split import ChunkSplit
from engine.predict.memory.buckets import BucketSizes
from engine.predict.traffic.calls import wire_bytes
from engine.predict.traffic.step import TokenPass
from engine.spec import BYTES_OF, LayoutSpec, ModelSpec, Precision, RequestError, WorkloadSpec, sentence
from engine.tables import LARGEST
from engine.terms import Factor, Term, total


def refuse_no_text(model: ModelSpec) -> None:
    """Raises `RequestError` if the model's family does not generate text."""
    if model.parts.objective not in ("causal", "seq2seq"):
        others = ", ".join(name for name, family in FAMILIES.items() if family.objective in ("causal", "seq2seq"))
        raise RequestError(sentence("{family} does not predict the next token; {others} do", family=model.family, others=others))


def refuse_beyond_positions(model: ModelSpec, length: int) -> None:
    """Raises `RequestError` if sequences of `length` tokens go beyond the model's table of learned positions."""
    if model.parts.position == "learned" and length > model.seq:
        raise RequestError(
            sentence(
                "length={length} goes beyond the {seq} positions that the model has learned; length up to {seq} fits",
                length=length,
                seq=model.seq,
            )
        )


def refuse_too_large(size: int, sequences: int, length: int) -> None:
    """Raises `RequestError` if `size`, the bytes of a rank with these sequences, is more than a table can hold."""
    if size > LARGEST:
        raise RequestError(
            sentence(
                "sequences={sequences} of length={length} would take {bytes} bytes of a rank, and memory is shown only up to "
                "2^63 bytes",
                sequences=_short(sequences),
                length=_short(length),
                bytes=_short(size),
            )
        )


def _short(number: int) -> str:
    """The number with all digits, or in exponential form from 10¹² on. It may be too large for a float."""
    text = str(Decimal(number).normalize(Context(prec=3))).lower() if number >= 10**12 else f"{number:,}"
    return text.replace("e+", "e")


def weights(model: ModelSpec, layout: LayoutSpec, precision: Precision, stage: int) -> tuple[Term, ...]:
    """Bytes of the parameters that a rank of `stage` holds. Raises `NotRecordedError`."""
    ledgers = LayoutLedgers(model, layout, WorkloadSpec(precision=precision))
    found: dict[tuple[str, Factor], int] = {}
    for chunk in ledgers.on(stage):
        for recorded in chunk.ledger.buckets:
            bucket = BucketSizes(recorded, chunk.part, ledgers.sizes, 1)
            key = bucket.name, bucket.size
            found[key] = found.get(key, 0) + chunk.times(recorded.layer)
    return tuple(
        Term(sentence("weights of {bucket}", bucket=name), (Factor("L", count), size, ledgers.e))
        for (name, size), count in found.items()
        if count
    )


def cache(model: ModelSpec, layout: LayoutSpec, precision: Precision, stage: int, batch: int, length: int) -> tuple[Term, ...]:
    """Bytes of the KV cache on a rank of `stage`, for `batch` sequences of `length` tokens.

    2 · L · B · T · G/tp · D · e; of latent attention L · B · T · (Lkv + D′) · e. A decoder with an encoder also keeps the keys
    and values of the source's S tokens. Models that do not generate text have no cache.
    """
    split = ChunkSplit(model, layout, trains=False)
    e = Factor("e", BYTES_OF[precision])
    width = (Factor("G/tp", model.keys_on_rank(layout.tp)), Factor("D", model.head_width), e)
    b, two = Factor("B", batch), Factor("2", 2)
    objective = model.parts.objective
    if objective not in ("causal", "seq2seq"):
        return ()
    decoder = int(objective == "seq2seq")  # an encoder's layers, which come first in `Layers`, have no cache
    layers = Factor("L", sum(sum(split.chunks[chunk][1][decoder:]) for chunk in split.on(stage)))
    if model.latent:
        latent = Factor("Lkv + D′", model.kv_lora_rank + model.rotated)
        return (Term(sentence("latents of every token"), (layers, b, Factor("T", length), latent, e)),)
    own = Term(sentence("keys and values of every token"), (two, layers, b, Factor("T", length), *width))
    if not decoder:
        return (own,)
    return (own, Term(sentence("keys and values of the source"), (two, layers, b, Factor("S", model.seq), *width)))


def inference_table(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batches: list[int], lengths: list[int]
) -> pd.DataFrame:
    """Bytes of one rank of each stage, for every batch and length.

    Columns: stage, sequences, length, parameters, kv_cache. Raises `RequestError` if a number is more than a table can hold.
    """
    rows = []
    for stage in range(layout.pp):
        parameters = total(weights(model, layout, precision, stage))
        each = [total(cache(model, layout, precision, stage, 1, length)) for length in lengths]
        refuse_too_large(parameters + max(batches) * max(each), max(batches), max(lengths))
        one = np.array(each, np.int64)
        for batch in batches:
            rows.append(
                pd.DataFrame(
                    {"stage": stage, "sequences": batch, "length": lengths, "parameters": parameters, "kv_cache": batch * one}
                )
            )
    return pd.concat(rows, ignore_index=True)


def most_sequences(model: ModelSpec, layout: LayoutSpec, precision: Precision, length: int, memory: int) -> int:
    """How many sequences of `length` tokens fit into `memory` bytes of each rank, with the parameters. −1 if these do not fit.

    Activations are not counted. In decoding they are those of one token of each sequence.
    """
    room = []
    for stage in range(layout.pp):
        free = memory - total(weights(model, layout, precision, stage))
        if free < 0:
            return -1
        each = total(cache(model, layout, precision, stage, 1, length))
        if each:
            room.append(free // each)
    return min(room, default=0)


def inference_traffic(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batch: int, tokens: int
) -> dict[tuple[str, str], tuple[int, int]]:
    """(axis, collective) → calls and wire bytes of a rank of the busiest stage, for one pass of `tokens` of each sequence.

    `tokens`: the prompt's length for prefill, 1 for a step of decoding. Receives are left out, since they send nothing. Only for
    models without an encoder: an encoder takes part in the first pass only.
    """
    assert not model.parts.encoder
    mesh = layout.mesh
    most: dict[tuple[str, str], tuple[int, int]] = {}
    one = TokenPass(model, layout, precision, tokens, batch)
    for stage in range(layout.pp):
        here: dict[tuple[str, str], tuple[int, int]] = {}
        for call in one.calls(stage, "decode"):
            if call.collective != "recv":
                n = 2 if call.between else mesh.degree(call.axis)
                calls, wire = here.get((call.axis, call.collective), (0, 0))
                more = call.calls * wire_bytes(call.collective, call.payload_bytes, n)
                here[call.axis, call.collective] = (calls + call.calls, wire + more)
        for key, amount in here.items():
            most[key] = max(most.get(key, (0, 0)), amount, key=lambda a: a[1])
    return most


def inference_traffic_table(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batches: list[int], lengths: list[int]
) -> pd.DataFrame:
    """`inference_traffic` for prompts of every length, and for one token.

    Columns: phase, sequences, tokens, axis, collective, calls, wire_bytes.
    """
    rows = [
        (phase, batch, tokens, axis, collective, calls, wire)
        for batch in batches
        for phase, tokens in [*(("prefill", length) for length in lengths), ("decode", 1)]
        for (axis, collective), (calls, wire) in inference_traffic(model, layout, precision, batch, tokens).items()
    ]
    return pd.DataFrame(rows, columns=["phase", "sequences", "tokens", "axis", "collective", "calls", "wire_bytes"])
