"""The rules that need more than one part of a spec, kept together so that the form can show all misfits at once."""

from __future__ import annotations

from math import gcd

from engine.families import FAMILIES
from engine.spec.fit_context import context_misfits
from engine.spec.misfit import Misfit
from engine.spec.model import MOST_SEQ, ModelSpec
from engine.spec.numbers import divisors, either, evenly, listed, nearest
from engine.spec.parts import GenerateSpec, LayoutSpec, WorkloadSpec, recomputes
from engine.spec.sentence import Sentence, joined, sentence
from engine.spec.trained import TRAINED, TRAINED_NAME

BYTE_VOCABULARY = 256  # the training text is read as bytes


def misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """All rules that the three break together. Empty if they fit."""
    found = _tp_misfits(model, layout) + context_misfits(model, layout) + _expert_misfits(model, layout, workload)
    found += _split_misfits(model, layout) + _schedule_misfits(model, layout, workload) + _lever_misfits(model, layout, workload)
    masks = model.parts.objective in ("masked", "permuted")
    needed = BYTE_VOCABULARY + masks
    if model.vocab < needed:
        small = {"vocab": model.vocab, "values": BYTE_VOCABULARY}
        text = sentence("vocab={vocab} is too small: text is read as bytes, which take {values} values", **small)
        if masks:
            text = sentence("{reason}, and the mask token takes one more", reason=text)
        found.append(Misfit("model.vocab", text, (needed,)))
    if workload.weights == "trained" and model != TRAINED:
        text = sentence("trained weights are those of {model}, and this is another model; weights=drawn fits", model=TRAINED_NAME)
        found.append(Misfit("workload.weights", text, ("drawn",)))
    return found


def generation_misfits(generate: GenerateSpec, model: ModelSpec, layout: LayoutSpec, parity: bool) -> list[Misfit]:
    """All rules that the request to generate text breaks. Empty if there is no such request, or if it fits."""
    if not generate.prompt:
        nothing = Misfit("generate.prompt", sentence("there is no prompt to continue; give one, or train"))
        return [nothing] if generate.skip_training else []
    found = []
    if model.parts.objective != "causal":
        decoders = [name for name, family in FAMILIES.items() if family.objective == "causal"]
        text = sentence("{family} does not predict the next token; {decoders} do", family=model.family, decoders=listed(decoders))
        found.append(Misfit("model.family", text))
    asked = len(generate.prompt.encode())
    if asked + generate.new_tokens > model.seq:
        room = model.seq - asked
        fits = sentence("seq={seq} fits", seq=asked + generate.new_tokens)
        if room > 0:
            fits = sentence("new_tokens up to {room} fits", room=room)
        text = sentence(
            "a prompt of {asked} bytes and {new_tokens} new tokens do not fit into seq={seq}; {fits}",
            asked=asked,
            new_tokens=generate.new_tokens,
            seq=model.seq,
            fits=fits,
        )
        found.append(Misfit("generate.new_tokens", text, (room,) if room > 0 else ()))
    if layout.sequence_parallel:
        text = sentence(
            "generation processes one token at a time, and one token cannot be sharded along the sequence; turn "
            "sequence_parallel off"
        )
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if layout.cp > 1:
        text = sentence("generation is not built with context parallelism; cp=1 fits, not cp={cp}", cp=layout.cp)
        found.append(Misfit("layout.cp", text, (1,)))
    if generate.skip_training and (layout.zero or parity):
        what = sentence("parity compares gradients")
        if layout.zero:
            what = sentence("zero={zero} shards the optimizer's states", zero=layout.zero)
        text = sentence("{reason}, which are not there without training; leave it out", reason=what)
        found.append(Misfit("layout.zero", text, (0,)))
    return found


def _tp_misfits(model: ModelSpec, layout: LayoutSpec) -> list[Misfit]:
    """tp cuts the heads and the MLP's inner width, so it must divide both.

    It cuts the key heads too. If there are fewer of them than ranks, each is held by as many ranks as any other.
    """
    if model.fits_tp(layout.tp):
        return []
    heads, keys = model.heads, model.key_heads
    both = gcd(heads, model.cut_width)
    fits = [tp for tp in divisors(both) if model.fits_tp(tp)]
    what, width = _heads(heads), sentence("the MLP's width of {width}", width=model.cut_width)
    values = {"tp": layout.tp, "heads": what, "width": width, "fits": listed(fits), "keys": _key_heads(keys)}
    if both % layout.tp == 0:
        text = sentence("tp={tp} neither divides {keys} nor is a multiple of them; {fits} fit", **values)
        return [Misfit("layout.tp", text, nearest(fits, layout.tp))]
    values["what"] = what if heads % layout.tp else width
    if both < heads:  # a divisor of the heads may not divide the width
        if len(fits) > 1:
            text = sentence("tp={tp} does not divide {what}; {fits} divide both {heads} and {width}", **values)
        else:
            text = sentence("tp={tp} does not divide {what}; {fits} divides both {heads} and {width}", **values)
    elif len(fits) > 1:
        text = sentence("tp={tp} does not divide {what}; {fits} do", **values)
    else:
        text = sentence("tp={tp} does not divide {what}; {fits} does", **values)
    return [Misfit("layout.tp", text, nearest(fits, layout.tp))]


def _expert_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """ep cuts the experts, over neighbours along dp."""
    found = []
    if layout.ep > 1:
        fits = divisors(gcd(model.experts, layout.dp)) if model.experts else [1]
        values = {"ep": layout.ep, "dp": layout.dp, "experts": model.experts, "fits": listed(fits)}
        if not model.experts:
            text = sentence("ep={ep} shards experts, and this model has none; ep=1 fits", **values)
            found.append(Misfit("layout.ep", text, (1,)))
        elif layout.ep not in fits:
            if len(fits) > 1:
                text = sentence("ep={ep} must divide dp={dp} and experts={experts}; {fits} fit", **values)
            else:
                text = sentence("ep={ep} must divide dp={dp} and experts={experts}; {fits} fits", **values)
            found.append(Misfit("layout.ep", text, nearest(fits, layout.ep)))
    if workload.balanced_router:
        rows = workload.microbatch_size * model.rows * model.expert_choices
        values = {"rows": rows, "experts": model.experts}
        if not model.experts:
            text = sentence("balanced_router deals tokens out to experts, and this model has none; turn it off")
            found.append(Misfit("workload.balanced_router", text, (0,)))
        elif rows % model.experts:
            text = sentence(
                "balanced_router deals {rows} choices of a microbatch out to experts={experts}, which does not divide them",
                **values,
            )
            found.append(Misfit("workload.balanced_router", text, (0,)))
        elif 0 < model.capacity_factor < 1:
            text = sentence(
                "balanced_router gives all experts as many tokens, and capacity_factor={factor:g} drops some; 1 and more fits",
                factor=model.capacity_factor,
            )
            found.append(Misfit("model.capacity_factor", text))
    return found


def _heads(count: int) -> Sentence:
    """The number of heads in words."""
    return sentence("{count} heads", count=count) if count > 1 else sentence("1 head")


def _key_heads(count: int) -> Sentence:
    """The number of heads of keys and values in words."""
    return sentence("{count} key and value heads", count=count) if count > 1 else sentence("1 key and value head")


def _lever_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    found = []
    if layout.zero and layout.mesh.replicas == 1:
        text = sentence(
            "zero={zero} shards over dp replicas, and dp=1 has only one; zero=0 fits, or dp of at least 2",
            zero=layout.zero,
        )
        found.append(Misfit("layout.zero", text, (0,)))
    found += _hybrid_misfits(layout)
    if layout.sequence_parallel and layout.tp == 1:
        text = sentence(
            "sequence_parallel shards the sequence over tp, which needs tp of at least 2, not tp=1; turn it off, or increase tp"
        )
        found.append(Misfit("layout.sequence_parallel", text, (0,)))
    if layout.sequence_parallel and layout.cp == 1 and model.rows % layout.tp:
        near = _cut_evenly(model, layout.tp)
        what = sentence("{tokens} tokens", tokens=model.seq)
        if model.rows > model.seq:
            what = sentence("{tokens} tokens and {queries} queries", tokens=model.seq, queries=model.rows - model.seq)
        text = sentence("sequence_parallel cuts the {what} over tp={tp}, which does not divide them", what=what, tp=layout.tp)
        if near:
            text = joined(text, sentence("seq={seq} fits", seq=either(near)))
        found.append(Misfit("model.seq", text, near))
    if recomputes(layout.recompute, "layernorm") and model.parts.placement in ("post", "output"):
        text = sentence(
            "recompute={recompute} computes the norms before attention and MLP again, and placement={placement} has its norms "
            "behind them; leave out layernorm",
            recompute=layout.recompute,
            placement=model.parts.placement,
        )
        found.append(Misfit("layout.recompute", text))
    found += _partial_misfits(model, layout, workload)
    if workload.precision == "fp32" and workload.accumulate == "bf16":
        text = sentence("accumulate=bf16 needs precision=bf16: fp32 gradients are added up in fp32")
        found.append(Misfit("workload.accumulate", text))
    if workload.precision == "fp32" and workload.bf16_optimizer:
        text = sentence("bf16_optimizer needs precision=bf16: the optimizer of fp32 values keeps its states in fp32")
        found.append(Misfit("workload.bf16_optimizer", text, (0,)))
    if workload.momentum and workload.optimizer != "sgd":
        text = sentence(
            "momentum={momentum:g} is a setting of sgd; {optimizer} has no momentum",
            momentum=workload.momentum,
            optimizer=workload.optimizer,
        )
        found.append(Misfit("workload.momentum", text))
    return found


def _hybrid_misfits(layout: LayoutSpec) -> list[Misfit]:
    """zero_replicas cuts the ranks over which ZeRO would shard into equal groups, of two ranks at least."""
    copies, ranks = layout.zero_replicas, layout.mesh.replicas
    if copies == 1:
        return []
    equal = [copies for copies in divisors(ranks) if copies < ranks]
    fits = equal if equal and layout.zero and layout.ep == 1 else [1]
    values = {"copies": copies, "ranks": ranks, "fits": listed(fits), "ep": layout.ep}
    if copies not in equal:
        text = sentence(
            "zero_replicas={copies} must cut dp × cp = {ranks} into equal groups of at least 2 ranks; {fits} fits", **values
        )
        return [Misfit("layout.zero_replicas", text, nearest(fits, copies))]
    if layout.ep > 1:
        text = sentence(
            "zero_replicas={copies} is not built with expert parallelism, whose experts have replicas of their own; "
            "zero_replicas=1 fits, or ep=1 instead of ep={ep}",
            **values,
        )
        return [Misfit("layout.zero_replicas", text, (1,))]
    if not layout.zero:
        text = sentence(
            "zero_replicas={copies} makes groups that shard, and zero=0 shards nothing; zero=1, 2 or 3 fits, or zero_replicas=1",
            **values,
        )
        return [Misfit("layout.zero", text, (1, 2, 3))]
    return []


def _partial_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """The rules of recompute of some layers. More `recompute_layers` than a chunk has mean all, as in Megatron-LM."""
    found = []
    for name, unset in (("recompute_layers", 0), ("recompute_every", 1)):
        value = getattr(layout, name)
        if value != unset and layout.recompute != "full":
            text = sentence(
                "{name}={value} says which whole layers are recomputed, which recompute={recompute} does not do; "
                "{name}={unset} fits, or recompute=full",
                name=name,
                value=value,
                recompute=layout.recompute,
                unset=unset,
            )
            found.append(Misfit(f"layout.{name}", text, (unset,)))
    if layout.recomputes_some and workload.adds_biases(model):
        name, unset = ("recompute_layers", 0) if layout.recompute_layers else ("recompute_every", 1)
        text = sentence(
            "recompute of some layers is not predicted to the byte where written attention adds biases, as with "
            "position={position}; {name}={unset} fits",
            position=model.parts.position,
            name=name,
            unset=unset,
        )
        found.append(Misfit(f"layout.{name}", text, (unset,)))
    if layout.recompute_layers and layout.recompute_every > 1:
        text = sentence(
            "recompute_layers={layers} and recompute_every={every} are two ways to choose layers; recompute_every=1 fits, or "
            "recompute_layers=0",
            layers=layout.recompute_layers,
            every=layout.recompute_every,
        )
        found.append(Misfit("layout.recompute_every", text, (1,)))
    elif layout.recomputes_some and not _split_misfits(model, layout):
        longest, every = max(layout.stage_layers(model.layers)), layout.recompute_every
        if every > longest:
            text = sentence(
                "recompute_every={every} recomputes no layer of a stage, of which the longest has {layers}; "
                "recompute_every up to {layers} fits",
                every=every,
                layers=longest,
            )
            found.append(Misfit("layout.recompute_every", text, nearest(range(1, longest + 1), every)))
    return found


def _schedule_misfits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> list[Misfit]:
    """The schedule's rules on the chunks of a stage and on microbatches."""
    found = []
    facts, pp, chunks, microbatches = layout.facts, layout.pp, layout.chunks, workload.microbatches
    if not facts.fits_chunks(chunks):
        fits: tuple[int, ...] = (facts.least_chunks,)
        if facts.v_shaped:
            text = sentence(
                "{schedule} is V-shaped: each stage has two chunks, not chunks={chunks}; chunks=2 fits",
                schedule=layout.schedule,
                chunks=chunks,
            )
        elif facts.chunks is None:
            fits = tuple(range(2, max(2, min(4, model.layers // pp)) + 1))
            text = sentence(
                "{schedule} needs at least two chunks per stage, not chunks=1; chunks={fits} fits",
                schedule=layout.schedule,
                fits=either(fits),
            )
        else:
            text = sentence(
                "{schedule} runs one chunk per stage, not chunks={chunks}; chunks=1 fits, or schedule=interleaved",
                schedule=layout.schedule,
                chunks=chunks,
            )
        found.append(Misfit("layout.chunks", text, fits))
    if (rule := facts.microbatch_rule) and not rule.holds(pp, microbatches):
        fits = rule.choices(pp, microbatches)
        found.append(Misfit("workload.microbatches", rule.refusal(pp, microbatches, fits), fits))
    return found


def _cut_evenly(model: ModelSpec, tp: int) -> tuple[int, ...]:
    """The next shorter and the next longer sequence length whose rows tp divides, if there are such."""
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
    if not layout.split:
        if chunks <= model.layers:
            return []
        values = {"product": product, "chunks": chunks, "layers": model.layers}
        if layout.chunks > 1:
            needs = sentence("{product} needs at least {chunks} layers, one a chunk, and the model has {layers}", **values)
        else:
            needs = sentence("{product} needs at least {chunks} layers, one a stage, and the model has {layers}", **values)
        if most == 0:
            return [Misfit("model.layers", joined(needs, sentence("layers={layers} and more fits", layers=chunks)), (chunks,))]
        fits = sentence("pp up to {most} fits", most=most)
        if chunks == layout.pp == model.layers + 1:
            even = ",".join(map(str, evenly(model.layers, chunks)))
            fits = sentence("pp up to {most} fits, or split={split}: the last stage has the head alone", most=most, split=even)
        return [Misfit("layout.pp", joined(needs, fits), nearest(range(1, most + 1), layout.pp))]
    pp = min(layout.pp, max(1, most))
    even = ",".join(map(str, evenly(model.layers, pp * layout.chunks)))
    near = sentence("{split} would fit", split=even)
    if pp != layout.pp:
        near = sentence("{split} would fit with pp={pp}", split=even, pp=pp)
    wrong = _wrong_split(layout, chunks, product, model.layers)
    return [Misfit("layout.split", joined(wrong, near))] if wrong else []


def _wrong_split(layout: LayoutSpec, chunks: int, product: str, layers: int) -> Sentence | None:
    """What is wrong with the layout's split. None if it is valid."""
    split, chunked = layout.split, layout.chunks > 1
    values = {"split": ",".join(map(str, split)), "count": len(split), "product": product, "total": sum(split), "layers": layers}
    if len(split) != chunks:
        if chunked:
            return sentence("split {split} names {count} chunks and {product}", **values)
        return sentence("split {split} names {count} stages and {product}", **values)
    if sum(split) != layers:
        return sentence("split {split} adds up to {total} layers and the model has {layers}", **values)
    if min(split) < 0:
        return sentence("split {split} has a negative number of layers", **values)
    # The first chunk has the embedding, and the last the head. A middle chunk without layers would do nothing.
    if 0 in split[1:-1]:
        if chunked:
            return sentence("split {split} leaves a middle chunk without layers", **values)
        return sentence("split {split} leaves a middle stage without layers", **values)
    return None
