"""What a model costs in inference, at any scale: parameters and the cache of keys and values of each rank, and what passes.

For serving as for the engine's own generation: `batch` sequences at a time through one replica of tp × pp ranks. Symbols as in
`engine.predict.traffic`; T tokens of a sequence, prompt and answer; G key heads of width D.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pandas as pd

from engine.families import FAMILIES
from engine.predict.ledger.layout import LayoutLedgers
from engine.predict.ledger.split import ChunkSplit
from engine.predict.memory.buckets import BucketSizes
from engine.predict.terms import Factor, Term, total
from engine.predict.traffic.calls import wire_bytes
from engine.predict.traffic.step import TokenPass
from engine.spec import BYTES_OF, LayoutSpec, ModelSpec, Precision, RequestError, WorkloadSpec, sentence
from engine.tables import LARGEST


def must_write(model: ModelSpec) -> None:
    """Raises `RequestError` where the model's family does not generate text."""
    if model.parts.objective not in ("causal", "seq2seq"):
        writers = [name for name, family in FAMILIES.items() if family.objective in ("causal", "seq2seq")]
        told = sentence("{family} does not predict the next token; {others} do", family=model.family, others=", ".join(writers))
        raise RequestError(told)


def must_be_told(size: int, sequences: int, length: int) -> None:
    """Raises `RequestError` where so many bytes, of a rank with those sequences, are more than a table can hold."""
    if size > LARGEST:
        raise RequestError(
            sentence(
                "sequences={sequences} of length={length} would take {bytes} bytes of a rank, and memory is told up to 2^63 "
                "bytes",
                sequences=_short(sequences),
                length=_short(length),
                bytes=_short(size),
            )
        )


def _short(number: int) -> str:
    """As it is, or as a power of ten: it may be too large for a float."""
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
    """Bytes of keys and values that a rank of `stage` keeps of `batch` sequences of `length` tokens.

    2 · L · B · T · G/tp · D · e. A decoder with an encoder also keeps the keys and values of the source, S tokens. Models that do
    not predict the next token keep nothing.
    """
    split = ChunkSplit(model, layout)
    wide = (Factor("G/tp", model.key_heads // layout.tp), Factor("D", model.head_width), Factor("e", BYTES_OF[precision]))
    b, two = Factor("B", batch), Factor("2", 2)
    objective = model.parts.objective
    if objective not in ("causal", "seq2seq"):
        return ()
    decodes = int(objective == "seq2seq")  # which kind of layers
    layers = Factor("L", sum(split.chunks[chunk][1][decodes] for chunk in split.on(stage)))
    own = Term(sentence("keys and values of every token"), (two, layers, b, Factor("T", length), *wide))
    if not decodes:
        return (own,)
    return (own, Term(sentence("keys and values of the source"), (two, layers, b, Factor("S", model.seq), *wide)))


def inference_table(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batches: list[int], lengths: list[int]
) -> pd.DataFrame:
    """stage, sequences, length, parameters, kv_cache: bytes of one rank of each stage, for every batch and length.

    Raises `RequestError` where that is more than a table can hold.
    """
    rows = []
    for stage in range(layout.pp):
        parameters = total(weights(model, layout, precision, stage))
        each = [total(cache(model, layout, precision, stage, 1, length)) for length in lengths]
        must_be_told(parameters + max(batches) * max(each), max(batches), max(lengths))
        one = np.array(each, np.int64)
        for batch in batches:
            rows.append(
                pd.DataFrame(
                    {"stage": stage, "sequences": batch, "length": lengths, "parameters": parameters, "kv_cache": batch * one}
                )
            )
    return pd.concat(rows, ignore_index=True)


def most_sequences(model: ModelSpec, layout: LayoutSpec, precision: Precision, length: int, memory: int) -> int:
    """How many sequences of `length` tokens fit beside the parameters into `memory` bytes of every rank; −1 if those do not fit.

    Activations of the tokens under way are left out: in decoding they are one token's.
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


def passed(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batch: int, tokens: int
) -> dict[tuple[str, str], tuple[int, int]]:
    """(axis, collective) → calls and wire bytes of the busiest stage's rank, for one pass of `tokens` of each sequence.

    The prompt's length for prefill, 1 for a step of decoding. Receives are left out: they send nothing. For models of one stack:
    where there is an encoder, it runs once and the decoder alone goes on.
    """
    assert not model.parts.encoder
    mesh = layout.mesh
    most: dict[tuple[str, str], tuple[int, int]] = {}
    one = TokenPass(model, layout, precision, tokens, batch)
    for stage in range(layout.pp):
        here: dict[tuple[str, str], tuple[int, int]] = {}
        for call in one.calls(stage, "decode"):
            if call.collective != "recv":
                n = 2 if call.between else mesh[call.axis]
                calls, wire = here.get((call.axis, call.collective), (0, 0))
                more = call.calls * wire_bytes(call.collective, call.payload_bytes, n)
                here[call.axis, call.collective] = (calls + call.calls, wire + more)
        for key, amount in here.items():
            most[key] = max(most.get(key, (0, 0)), amount, key=lambda a: a[1])
    return most


def passed_table(
    model: ModelSpec, layout: LayoutSpec, precision: Precision, batches: list[int], lengths: list[int]
) -> pd.DataFrame:
    """phase, sequences, tokens, axis, collective, calls, wire_bytes: `passed` for prompts of every length, and for one token."""
    rows = [
        (phase, batch, tokens, axis, collective, calls, wire)
        for batch in batches
        for phase, tokens in [*(("prefill", length) for length in lengths), ("decode", 1)]
        for (axis, collective), (calls, wire) in passed(model, layout, precision, batch, tokens).items()
    ]
    return pd.DataFrame(rows, columns=["phase", "sequences", "tokens", "axis", "collective", "calls", "wire_bytes"])
