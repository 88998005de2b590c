"""All forwards, then all backwards (Huang et al. 2019)."""

from engine.spec.schedules.record import ScheduleFacts
from engine.spec.sentence import sentence

GPIPE = ScheduleFacts(
    title="GPipe",
    summary=sentence("All forward passes, then all backward passes: every microbatch's activations are kept at once."),
    script=lambda stage, p, m, v: [("F", m), ("B", m)],
    in_flight=lambda stage, p, m, v: m,
    memory_repeats_after=None,
    bubble="(p − 1) / (m + p − 1)",  # Huang et al. 2019, section 2.3
    fill=lambda work: work.others,
    elsewhere={"torchtitan": "GPipe"},
)
