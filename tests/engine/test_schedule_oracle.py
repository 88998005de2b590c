"""The order of forward and backward passes against torch.distributed.pipelining's own, as an oracle.

Its schedules are driven with a stage that only takes notes, so what is compared is what torch would really do. The table
`pipeline_order`, which torch builds beside that, is no oracle for 1F1B: in torch 2.13 it numbers the last stage's forward
passes from 1, while torch itself runs them from 0.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

from engine.schedule import Action, compute_order
from engine.spec import ScheduleName


class NotingStage:
    """Stands for one stage of a pipeline; has no model, and nobody to talk to."""

    def __init__(self, stage_index: int, num_stages: int) -> None:
        self.stage_index, self.num_stages = stage_index, num_stages
        self.is_first, self.is_last = stage_index == 0, stage_index == num_stages - 1
        self.has_backward = True
        self.notes: list[Action] = []

    def forward_one_chunk(self, microbatch: int, *args: Any, **options: Any) -> None:
        self.notes.append(Action("F", self.stage_index, microbatch))

    def backward_one_chunk(self, microbatch: int, **options: Any) -> None:
        self.notes.append(Action("B", self.stage_index, microbatch))

    def no_transfers(self, microbatch: int) -> list[Any]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = no_transfers

    def clear_runtime_states(self) -> None: ...

    def perform_reduce_grad(self, scale: int) -> None:
        self.notes.append(Action("reduce", self.stage_index))


def torchs_order(schedule: type[Any], stage: int, pp: int, microbatches: int) -> list[Action]:
    """What torch has the stage do in one step."""

    class WithoutSetup(schedule):  # type: ignore[misc]
        def _initialize_stage(self, *args: Any, **options: Any) -> None:
            """Would make buffers and connections, of which a stage that takes notes has no need."""

    noting = NotingStage(stage, pp)
    WithoutSetup(noting, microbatches).step(return_outputs=False)
    return noting.notes


@pytest.mark.parametrize(("name", "schedule"), [("gpipe", ScheduleGPipe), ("1f1b", Schedule1F1B)])
def test_passes_run_in_the_order_of_torchs_own_schedule(name: ScheduleName, schedule: type[Any]) -> None:
    for pp, m in product(range(1, 9), range(1, 17)):
        if name == "1f1b" and m < pp:
            continue  # torch does not take fewer microbatches than stages
        ours = compute_order(name, pp, m)
        for stage in range(pp):
            *passes, reduction = torchs_order(schedule, stage, pp, m)
            assert passes == ours[stage]
            assert reduction.kind == "reduce", "torch too averages gradients after the last backward"


def test_torch_takes_no_1f1b_with_fewer_microbatches_than_stages() -> None:
    """So the comparison above left nothing out that there is."""
    with pytest.raises(ValueError, match="must be greater than or equal to the number of stages"):
        torchs_order(Schedule1F1B, 0, 3, 2)
