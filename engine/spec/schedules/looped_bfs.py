"""GPipe over several chunks a stage: all microbatches through one chunk, then through the next (Lamy-Poirier 2023).

The pipeline fills as fast as an interleaved one and holds as much as GPipe's. Backward takes the latest microbatch first, as in
torch. The paper gathers a chunk's weights under ZeRO 3 once for all microbatches; here each pass does, whatever the schedule.
"""

from typing import Any

import numpy as np

from engine.spec.schedules.looped import fill_of_rounds, waits_each_chunk
from engine.spec.schedules.record import PipelineWork, ScheduleFacts, waits_twice_a_stage
from engine.spec.sentence import sentence


def _chunk_and_microbatch(stage: Any, p: int, m: Any, v: int, forward: Any, number: Any) -> tuple[Any, Any]:
    turn, at = number // m, number % m
    return np.where(forward, turn, v - 1 - turn) * p + stage, np.where(forward, at, m - 1 - at)


def _fill(work: PipelineWork) -> Any:
    """As of other rounds. All microbatches pass the chunk with one end of the model and later that with the other: of the two
    stages each waits for the other's end.
    """
    return fill_of_rounds(work) + work.m * work.other_end


def _waits(work: PipelineWork) -> Any:
    """With more microbatches than stages, those at the front of a round are there before the round before it ends."""
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
    # With more microbatches than stages the first come around the pipeline before stage 0 has begun the last, and wait there.
    messages_held=lambda p, m: np.maximum(1, m - p + 1),
    elsewhere={"torchtitan": "LoopedBFS"},
)
