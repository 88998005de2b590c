"""GPipe over several chunks a stage: all microbatches through one chunk, then through the next (Lamy-Poirier 2023).

The pipeline fills as fast as with interleaved 1F1B, and holds as many activations as GPipe. Backward takes the latest microbatch
first, as in torch. Under ZeRO 3, the paper gathers a chunk's weights once for all microbatches. Here every pass gathers them, as
with all schedules.
"""

from typing import Any

import numpy as np

from engine.spec.schedules.looped import fill_of_rounds, waits_each_chunk
from engine.spec.schedules.record import PipelineWork, ScheduleFacts, waits_twice_a_stage
from engine.spec.sentence import sentence


def _chunk_and_microbatch(stage: Any, p: int, m: Any, v: int, forward: Any, number: Any) -> tuple[Any, Any]:
    round_, at = number // m, number % m
    return np.where(forward, round_, v - 1 - round_) * p + stage, np.where(forward, at, m - 1 - at)


def _fill(work: PipelineWork) -> Any:
    """As `fill_of_rounds`, and the other end for each microbatch: in the rounds of the first and of the last chunk, all stages
    wait for the stage with the embedding or the head.
    """
    return fill_of_rounds(work) + work.m * work.other_end


def _waits(work: PipelineWork) -> Any:
    """With more microbatches than stages, the first microbatches of a round arrive before the round before it has ended."""
    return np.where(work.m > work.p, waits_twice_a_stage(work), waits_each_chunk(work))


LOOPED_BFS = ScheduleFacts(
    title=sentence("Breadth-first (looped BFS)"),
    summary=sentence("GPipe over several chunks a stage: a smaller bubble, and every microbatch's activations are kept at once."),
    script=lambda stage, p, m, v: [("F", m * v), ("B", m * v)],
    in_flight=lambda stage, p, m, v: m * v,
    memory_repeats_after=None,
    bubble="(p − 1) / (v · m + p − 1)",  # the interleaved one's, as Lamy-Poirier 2023 has it
    fill=_fill,
    waits=_waits,
    closed_from=lambda p: p,
    chunks=None,
    chunk_and_microbatch=_chunk_and_microbatch,
    # With more microbatches than stages, the first ones have gone through all stages before stage 0 begins the last one. They
    # wait there.
    messages_held=lambda p, m: np.maximum(1, m - p + 1),
    elsewhere={"torchtitan": "LoopedBFS"},
    nearest={"megatron": "interleaved 1F1B"},
)
