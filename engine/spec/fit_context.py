"""The rules of context parallelism: what cp cuts, and what it is not built with."""

from __future__ import annotations

from engine.spec.misfit import Misfit
from engine.spec.model import MOST_SEQ, ModelSpec
from engine.spec.numbers import either, nearest, nearest_multiples
from engine.spec.parts import LayoutSpec
from engine.spec.sentence import Sentence, sentence


def sequence_parts(layout: LayoutSpec) -> int:
    """What must divide the tokens of a sequence, so that each rank has whole tokens."""
    cut = layout.cp if layout.context_parallel == "ulysses" or layout.cp == 1 else 2 * layout.cp
    return cut * (layout.tp if layout.sequence_parallel else 1)


def cut_by_context(model: ModelSpec) -> bool:
    """Whether context parallelism is built for all that a model has."""
    return _not_built(model) is None


def context_misfits(model: ModelSpec, layout: LayoutSpec) -> list[Misfit]:
    """All rules of context parallelism that the two break."""
    if layout.cp == 1:
        return []
    if reason := _not_built(model):
        return [Misfit("layout.cp", sentence("{reason}; cp=1 fits, not cp={cp}", reason=reason, cp=layout.cp), (1,))]
    found = []
    if model.seq % (parts := sequence_parts(layout)):
        near = tuple(nearest_multiples(model.seq, parts, MOST_SEQ))
        values = {"seq": model.seq, "parts": parts, "fits": either(near)}
        if layout.sequence_parallel:
            text = sentence(
                "cp={cp} and sequence_parallel over tp={tp} cut the sequence into {parts} equal parts, and seq={seq} is no "
                "multiple of that; seq={fits} fits",
                cp=layout.cp,
                tp=layout.tp,
                **values,
            )
        else:
            text = sentence(
                "cp={cp} cuts the sequence into {parts} equal parts, and seq={seq} is no multiple of that; seq={fits} fits",
                cp=layout.cp,
                **values,
            )
        found.append(Misfit("model.seq", text, near))
    if layout.context_parallel == "ulysses" and model.fits_tp(layout.tp):
        keys = model.keys_on_rank(layout.tp)
        if keys % layout.cp:
            fits = [cp for cp in range(1, max(1, keys) + 1) if keys and keys % cp == 0] or [1]
            text = sentence(
                "context_parallel=ulysses gives each cp rank a part of the {keys} key and value heads that a tp rank has, and "
                "cp={cp} does not divide them; cp={fits} fits, or ring",
                keys=keys,
                cp=layout.cp,
                fits=either(fits),
            )
            found.append(Misfit("layout.cp", text, nearest(fits, layout.cp)))
    return found


def _not_built(model: ModelSpec) -> Sentence | None:
    """What of a model is not built with context parallelism."""
    if model.parts.position == "relative":
        return sentence("two-stream attention, which {family} has, is not built with context parallelism", family=model.family)
    if model.parts.position in ("alibi", "buckets"):
        return sentence("position={position} is not built with context parallelism", position=model.parts.position)
    if not model.parts.scaled_scores:
        return sentence("scaled_scores=false is not built with context parallelism")
    if model.latent:
        return sentence("latent attention is not built with context parallelism")
    if model.experts:
        return sentence("a model with experts is not built with context parallelism")
    if "window" in model.sized_parts:
        return sentence("window={window} is not built with context parallelism", window=model.window)
    return None
