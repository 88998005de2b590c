"""The records of pipeline schedules, one in each module: the order of passes, and every other fact about a schedule.

The spec's rules, the plan, predictions, exports and pages use the record, `SCHEDULE_FACTS[name]`. They do not test for names.
"""

from __future__ import annotations

from typing import Literal

from engine.spec.schedules.dualpipe_v import DUALPIPE_V
from engine.spec.schedules.gpipe import GPIPE
from engine.spec.schedules.interleaved import INTERLEAVED
from engine.spec.schedules.looped_bfs import LOOPED_BFS
from engine.spec.schedules.naive import NAIVE
from engine.spec.schedules.one_f_one_b import ONE_F_ONE_B
from engine.spec.schedules.record import MicrobatchRule, PipelineWork, ScheduleFacts, Script
from engine.spec.schedules.zb_h1 import ZB_H1
from engine.spec.schedules.zb_v import ZB_V

ScheduleName = Literal["naive", "gpipe", "1f1b", "interleaved", "looped-bfs", "zb-h1", "zb-v", "dualpipe-v"]

SCHEDULE_FACTS: dict[ScheduleName, ScheduleFacts] = {
    "naive": NAIVE,
    "gpipe": GPIPE,
    "1f1b": ONE_F_ONE_B,
    "interleaved": INTERLEAVED,
    "looped-bfs": LOOPED_BFS,
    "zb-h1": ZB_H1,
    "zb-v": ZB_V,
    "dualpipe-v": DUALPIPE_V,
}

__all__ = ["SCHEDULE_FACTS", "MicrobatchRule", "PipelineWork", "ScheduleFacts", "ScheduleName", "Script"]
