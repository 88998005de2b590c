"""One microbatch at a time: forward through all stages, backward through all stages, then the next microbatch."""

from engine.spec.schedules.record import ScheduleFacts, waits_twice_a_stage
from engine.spec.sentence import sentence

NAIVE = ScheduleFacts(
    title=sentence("Naive"),
    summary=sentence("One microbatch in the whole pipeline: all other stages wait."),
    script=lambda stage, p, m, v: [("F B", m)],
    in_flight=lambda stage, p, m, v: 1 + 0 * p,
    memory_repeats_after=lambda p, m: 3 + 0 * p,
    bubble="(p − 1) / p",
    fill=lambda work: work.m * work.others,
    waits=lambda work: work.m * waits_twice_a_stage(work),
    nearest={"torchtitan": "GPipe"},
)
