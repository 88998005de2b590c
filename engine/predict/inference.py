"""What a model costs in inference, at any scale: parameters and the cache of keys and values of each rank, and what passes.

For serving as for the engine's own generation: `batch` sequences at a time through one replica of tp × pp ranks. Symbols as in
`engine.predict.traffic`; T tokens of a sequence, prompt and answer; G key heads of width D.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pandas as pd

from engine.families import FAMILIES
from engine.predict.messages.calls import wire_bytes
from engine.predict.messages.held import Part, buckets, parts
from engine.predict.terms import Factor, Term, total
from engine.predict.traffic import BYTES, going_on
from engine.spec import LayoutSpec, ModelSpec, Precision, RequestError, sentence
from engine.tables import LARGEST

_NAMES = {
    "table": sentence("token table"),
    "positions": sentence("positions"),
    "norm": sentence("norm of the embeddings"),
    "layer": sentence("layers"),
    "decoder": sentence("decoder layers"),
    "head": sentence("head"),
}


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
    """Bytes of the parameters that a rank of `stage` holds."""
    e = Factor("e", BYTES[precision])
    return tuple(
        Term(_NAMES[bucket.name], (Factor("L", bucket.alike), Factor(f"Ψ_{bucket.name}", bucket.size), e))
        for part in _held(model, layout, stage)
        for bucket in buckets(model, layout.tp, part)
    )


def cache(model: ModelSpec, layout: LayoutSpec, precision: Precision, stage: int, batch: int, length: int) -> tuple[Term, ...]:
    """Bytes of keys and values that a rank of `stage` keeps of `batch` sequences of `length` tokens.

    2 · L · B · T · G/tp · D · e. A decoder with an encoder also keeps the keys and values of the source, S tokens. Models that do
    not predict the next token keep nothing.
    """
    held = _held(model, layout, stage)
    wide = (Factor("G/tp", model.key_heads // layout.tp), Factor("D", model.head_width), Factor("e", BYTES[precision]))
    b, two = Factor("B", batch), Factor("2", 2)
    objective = model.parts.objective
    if objective == "causal":
        layers = Factor("L", sum(part.layers for part in held))
        return (Term("keys and values of every token", (two, layers, b, Factor("T", length), *wide)),)
    if objective == "seq2seq":
        layers = Factor("L", sum(part.crossing for part in held))
        own = Term("keys and values of every token", (two, layers, b, Factor("T", length), *wide))
        return (own, Term("keys and values of the source", (two, layers, b, Factor("S", model.seq), *wide)))
    return ()


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
    for stage in range(layout.pp):
        here: dict[tuple[str, str], tuple[int, int]] = {}
        for part in _held(model, layout, stage):
            for call in going_on(model, layout, precision, part, "decode", 1, tokens, batch):
                if call.calls and call.collective != "recv":
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


def _held(model: ModelSpec, layout: LayoutSpec, stage: int) -> list[Part]:
    return [part for part in parts(model, layout) if part.stage == stage]
