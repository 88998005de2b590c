"""The rules that need more than one part of a spec, kept together so that the form can show all misfits at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from engine.families import FAMILIES
from engine.spec.numbers import divisors, either, evenly, listed, nearest
from engine.spec.parts import MOST_SEQ, V_SHAPED, GenerateSpec, LayoutSpec, ModelSpec, WorkloadSpec

BYTE_VOCABULARY = 256  # the training text is read as bytes


@dataclass(frozen=True)
class Misfit:
    """One way in which the parts of a spec do not fit together."""

    field: str  # dotted name of the field to change first, such as "layout.tp"
    sentence: str  # with the arithmetic, and the nearest choices that fit
    choices: tuple[int, ...] = ()  # values of that field that would fit, nearest first


def misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """Everything in which the three do not fit together; empty when they do."""
    found = _tp_misfits(model, layout)
    found += _split_misfits(model, layout) + _schedule_misfits(model, layout, workload) + _lever_misfits(model, layout, workload)
    hides = model.parts.objective in ("masked", "permuted")
    needed = BYTE_VOCABULARY + hides
    if model.vocab < needed:
        more = ", and the token that hides another takes one more" if hides else ""
        text = f"vocab={model.vocab} is too small: text is read as bytes, which take {BYTE_VOCABULARY} values{more}"
        found.append(Misfit("model.vocab", text, (needed,)))
    return found


def generation_misfits(generate: GenerateSpec, model: ModelSpec, layout: LayoutSpec, parity: bool) -> list[Misfit]:
    """What stands in the way of generating the text that was asked for; empty when nothing was."""
    if not generate.prompt:
        return [Misfit("generate.prompt", "there is no prompt to continue; give one, or train")] if generate.skip_training else []
    found = []
    if model.parts.objective != "causal":
        decoders = [name for name, family in FAMILIES.items() if family.objective == "causal"]
        found.append(Misfit("model.family", f"{model.family} does not predict the next token; {' and '.join(decoders)} do"))
    asked = len(generate.prompt.encode())
    if asked + generate.new_tokens > model.seq:
        text = f"a prompt of {asked} bytes and {generate.new_tokens} new tokens do not fit into seq={model.seq}; "
        room = model.seq - asked
        text += f"new_tokens up to {room} fits" if room > 0 else f"seq={asked + generate.new_tokens} fits"
        found.append(Misfit("generate.new_tokens", text, (room,) if room > 0 else ()))
    if layout.sequence_parallel:
        text = "generating goes token by token, and one token cannot be cut along the sequence; turn sequence_parallel off"
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if generate.skip_training and (layout.zero or parity):
        what = f"zero={layout.zero} shards what training keeps" if layout.zero else "parity compares gradients"
        found.append(Misfit("layout.zero", f"{what}, and without training there is nothing of it; leave it out", (0,)))
    return found


def _tp_misfits(model: ModelSpec, layout: LayoutSpec) -> list[Misfit]:
    """tp cuts the heads, those of keys and values too, and the MLP's inner width; so what it may be divides all of them."""
    keys = model.key_heads  # which divide the heads
    both = gcd(keys, model.ffn_width)
    if both % layout.tp == 0:
        return []
    fits = divisors(both)
    heads = f"{keys} {'key and value ' if keys < model.heads else ''}head{'s' if keys > 1 else ''}"
    width = f"the MLP's width of {model.ffn_width}"
    do = "do" if len(fits) > 1 else "does"
    if both < keys:  # what divides the heads alone would not be enough
        do = f"{'divide' if len(fits) > 1 else 'divides'} both {heads} and {width}"
    text = f"tp={layout.tp} does not divide {heads if keys % layout.tp else width}; {listed(fits)} {do}"
    return [Misfit("layout.tp", text, nearest(fits, layout.tp))]


def _lever_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    found = []
    if layout.zero and layout.dp == 1:
        text = f"zero={layout.zero} shards over the dp replicas, and dp=1 leaves nothing to share; zero=0 fits, or dp from 2 on"
        found.append(Misfit("layout.zero", text, (0,)))
    if layout.sequence_parallel and layout.tp == 1:
        text = "sequence_parallel cuts the sequence over tp, and tp=1 leaves it whole; turn it off, or use tp from 2 on"
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if layout.sequence_parallel and model.rows % layout.tp:
        near = _cut_evenly(model, layout.tp)
        what = f"{model.seq} tokens" + (f" and {model.rows - model.seq} queries" if model.rows > model.seq else "")
        fits = f"; seq={' or '.join(map(str, near))} fits" if near else ""
        found.append(
            Misfit("model.seq", f"sequence_parallel cuts the {what} over tp={layout.tp}, which does not divide them{fits}", near)
        )
    if workload.precision == "fp32" and workload.accumulate == "bf16":
        found.append(Misfit("workload.accumulate", "accumulate=bf16 needs precision=bf16: fp32 gradients are added up in fp32"))
    if workload.momentum and workload.optimizer == "adamw":
        text = f"momentum={workload.momentum:g} is a setting of sgd; adamw has its own two moments"
        found.append(Misfit("workload.momentum", text))
    return found


def _schedule_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """What each schedule asks of the chunks on a stage and of the microbatches."""
    found = []
    name, pp, chunks, microbatches = layout.schedule, layout.pp, layout.chunks, workload.microbatches
    if name in V_SHAPED and chunks != 2:
        text = f"{name} runs down the stages and back up, so a stage has two chunks and not chunks={chunks}; chunks=2 fits"
        found.append(Misfit("layout.chunks", text, (2,)))
    elif name == "interleaved" and chunks == 1:
        fits = tuple(range(2, max(2, min(4, model.layers // pp)) + 1))
        text = f"interleaved goes from chunk to chunk of a stage, and chunks=1 leaves no other; chunks={either(fits)} fits"
        found.append(Misfit("layout.chunks", text, fits))
    elif name not in ("interleaved", *V_SHAPED) and chunks != 1:
        text = f"{name} runs one chunk a stage and not chunks={chunks}; chunks=1 fits, or schedule=interleaved"
        found.append(Misfit("layout.chunks", text, (1,)))
    if name == "interleaved" and microbatches % (rounds := max(1, microbatches // pp)):
        fits = nearest((m for m in range(1, microbatches + pp + 1) if m % max(1, m // pp) == 0), microbatches)
        text = (
            f"interleaved runs in equal rounds of pp={pp} microbatches or a few more, and {microbatches} do not make "
            f"{microbatches} // {pp} = {rounds} equal rounds; microbatches={either(sorted(fits))} fits"
        )
        found.append(Misfit("workload.microbatches", text, fits))
    if name == "dualpipe-v" and microbatches < 2 * pp:
        text = f"dualpipe-v needs a microbatch for each of its 2 × {pp} chunks and has {microbatches}; {2 * pp} and more fit"
        found.append(Misfit("workload.microbatches", text, (2 * pp,)))
    return found


def _cut_evenly(model: ModelSpec, tp: int) -> tuple[int, ...]:
    """The next shorter and the next longer sequence whose rows tp divides, where there are such."""
    found = []
    for direction in (-1, 1):
        for seq in range(model.seq, model.seq + direction * 48 * tp, direction):
            if 2 <= seq <= MOST_SEQ and model.model_copy(update={"seq": seq}).rows % tp == 0:
                found.append(seq)
                break
    return tuple(found)


def _split_misfits(model: ModelSpec, layout: LayoutSpec) -> list[Misfit]:
    chunks = layout.pp * layout.chunks
    product = f"pp={layout.pp}" + (f" × chunks={layout.chunks} = {chunks}" if layout.chunks > 1 else "")
    most = model.layers // layout.chunks  # stages that the model has layers for
    place = "chunk" if layout.chunks > 1 else "stage"
    if not layout.split:
        if chunks <= model.layers:
            return []
        needs = f"{product} needs at least {chunks} layers, one a {place}, and the model has {model.layers}; "
        if most == 0:
            return [Misfit("model.layers", needs + f"layers={chunks} and more fits", (chunks,))]
        return [Misfit("layout.pp", needs + f"pp up to {most} fits", nearest(range(1, most + 1), layout.pp))]
    text = ",".join(map(str, layout.split))
    pp = min(layout.pp, max(1, most))
    even = ",".join(map(str, evenly(model.layers, pp * layout.chunks)))
    near = f"{even} would fit" + (f" with pp={pp}" if pp != layout.pp else "")
    if len(layout.split) != chunks:
        return [Misfit("layout.split", f"split {text} names {len(layout.split)} {place}s and {product}; {near}")]
    if sum(layout.split) != model.layers:
        total = f"adds up to {sum(layout.split)} layers and the model has {model.layers}"
        return [Misfit("layout.split", f"split {text} {total}; {near}")]
    if min(layout.split) < 0:
        return [Misfit("layout.split", f"split {text} has a negative number of layers; {near}")]
    # The first has the embedding and the last the head; one between them without a layer would do nothing.
    if 0 in layout.split[1:-1]:
        return [Misfit("layout.split", f"split {text} leaves a middle {place} without a layer, so with nothing to do; {near}")]
    return []
