"""1F1B over several chunks a stage, which fills the pipeline faster (Narayanan et al. 2021, section 2.2).

A round of microbatches goes through all chunks of a stage before the next round begins. A round has p microbatches, or a few more
if p does not divide m.
"""

from typing import Any

import numpy as np

from engine.spec.numbers import either, nearest
from engine.spec.schedules.looped import fill_of_rounds, waits_each_chunk
from engine.spec.schedules.record import MicrobatchRule, ScheduleFacts, Script
from engine.spec.sentence import Sentence, sentence


def _round(p: Any, m: Any) -> Any:
    """Microbatches in a round."""
    return m // np.maximum(1, m // p)


def _warm_up(stage: Any, p: Any, m: Any, v: Any) -> Any:
    """Forwards before the first pair of forward and backward: a round of all chunks but one, and two for each later stage."""
    return np.minimum((v - 1) * _round(p, m) + 2 * (p - 1 - stage), m * v)


def _script(stage: Any, p: int, m: Any, v: int) -> Script:
    warm_up = _warm_up(stage, p, m, v)
    return [("F", warm_up), ("F B", m * v - warm_up), ("B", warm_up)]


def _chunk_and_microbatch(stage: Any, p: int, m: Any, v: int, forward: Any, number: Any) -> tuple[Any, Any]:
    """A round runs chunk after chunk."""
    each = _round(p, m)
    own = number // each % v  # the index among the stage's chunks, in the order of the direction
    return np.where(forward, own, v - 1 - own) * p + stage, number // (each * v) * each + number % each


def _whole_rounds(p: Any, m: Any) -> Any:
    return m % np.maximum(1, m // p) == 0


def _refusal(p: int, m: int, choices: tuple[int, ...]) -> Sentence:
    return sentence(
        "interleaved runs in equal rounds of pp={pp} microbatches or a few more, and {microbatches} do not make "
        "{microbatches} // {pp} = {rounds} equal rounds; microbatches={fits} fits",
        pp=p,
        microbatches=m,
        rounds=max(1, m // p),
        fits=either(sorted(choices)),
    )


INTERLEAVED = ScheduleFacts(
    title=sentence("Interleaved 1F1B"),
    summary=sentence("1F1B over several chunks a stage: a smaller bubble, for more traffic between stages."),
    script=_script,
    in_flight=lambda stage, p, m, v: np.minimum(_warm_up(stage, p, m, v) + 1, m * v),
    memory_repeats_after=lambda p, m: np.where(m % p, m, 3 * p),
    bubble="(p − 1) / (v · m + p − 1)",  # Narayanan et al. 2021, section 2.2, who quote it as a share of ideal time
    fill=fill_of_rounds,
    waits=waits_each_chunk,
    closed_from=lambda p: p,
    chunks=None,
    chunk_and_microbatch=_chunk_and_microbatch,
    # If a round has more microbatches than stages, its first ones have gone through all stages before stage 0 begins the last
    # one. They wait there. If the sender waited too, the stages would deadlock.
    messages_held=lambda p, m: np.maximum(1, _round(p, m) - p + 1),
    microbatch_rule=MicrobatchRule(
        _whole_rounds, lambda p, m: nearest((n for n in range(1, m + p + 1) if _whole_rounds(p, n)), m), _refusal
    ),
    elsewhere={"torchtitan": "Interleaved1F1B", "megatron": "interleaved 1F1B"},
)
