"""1F1B: fill the pipeline, then alternate F and B, then drain (Narayanan et al. 2021). At most p − stage are in flight."""

from typing import Any

import numpy as np

from engine.spec.schedules.record import ScheduleFacts, Script, waits_each_round
from engine.spec.sentence import sentence


def _script(stage: Any, p: int, m: Any, v: int) -> Script:
    warm_up = np.minimum(p - stage, m)
    return [("F", warm_up), ("B F", m - warm_up), ("B", warm_up)]


ONE_F_ONE_B = ScheduleFacts(
    title="1F1B",
    summary=sentence("Fill the pipeline, then one forward for one backward: the same bubble as GPipe, fewer activations kept."),
    script=_script,
    in_flight=lambda stage, p, m, v: np.minimum(p - stage, m),
    memory_repeats_after=lambda p, m: p + 1,
    bubble="(p − 1) / (m + p − 1)",  # Narayanan et al. 2021, section 2.2, who give it as a share of ideal time
    fill=lambda work: work.others,
    waits=waits_each_round,
    elsewhere={"torchtitan": "1F1B", "megatron": "1F1B", "deepspeed": "1F1B"},
)
