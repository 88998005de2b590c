"""The order of forward and backward passes against torch.distributed.pipelining's own, as an oracle.

torch's schedules of one chunk a stage are executed with a stage that only records its calls, so the test compares what torch
really runs. torch's table `pipeline_order` is no oracle for 1F1B: in torch 2.13 it numbers the last stage's forward passes from
1, while torch runs them from 0. torch's other schedules execute that table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining import schedules as torchs

from engine.schedule import Action, Kind, compute_order
from engine.spec import ScheduleName
from tests.engine.test_schedule_chunks import fitting

ORACLES: dict[ScheduleName, type[Any]] = {  # of several chunks a stage, or of backward in two halves
    "interleaved": torchs.ScheduleInterleaved1F1B,
    "looped-bfs": torchs.ScheduleLoopedBFS,
    "zb-h1": torchs.ScheduleInterleavedZeroBubble,  # with one chunk a stage it is ZB-H1
    "zb-v": torchs.ScheduleZBVZeroBubble,
    "dualpipe-v": torchs.ScheduleDualPipeV,
}
KINDS: dict[str, Kind] = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


class NotingStage:
    """A stage that records its calls. It has no model and no peers."""

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
    """The passes that torch runs on the stage in one step."""

    class WithoutSetup(schedule):  # type: ignore[misc]
        def _initialize_stage(self, *args: Any, **options: Any) -> None:
            """torch's own makes buffers and connections, which the recording stage does not need."""

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
    """So the comparison above is complete."""
    with pytest.raises(ValueError, match="must be greater than or equal to the number of stages"):
        torchs_order(Schedule1F1B, 0, 3, 2)


# ------------------------------------------------------------------------------------------- several chunks, two halves


def torchs_orders(schedule: type[Any], pp: int, m: int, chunks: int) -> list[list[Action]]:
    """The passes of torch's schedule, a list for each stage. Its constructor makes them without using the stage."""

    class WithoutTransfers(schedule):  # type: ignore[misc]
        def _prepare_schedule_with_comms(self, *args: Any, **options: Any) -> None: ...

    stage = SimpleNamespace(
        group=None, group_size=pp, group_rank=0, num_stages=pp * chunks, stage_index=0, submod=None,
        is_first=True, is_last=False, has_backward=True, device="cpu",
    )  # fmt: skip
    options: dict[str, Any] = {"scale_grads": False}
    made = WithoutTransfers([stage] * chunks, m, lambda output, target: output, **options)
    return [[action for entry in made.pipeline_order[s] if entry for action in translated(entry)] for s in range(pp)]


def translated(entry: Any) -> Iterator[Action]:
    """An entry of torch as passes. A forward and a backward that overlap are a single entry."""
    for sub in entry.sub_actions or (entry,):
        yield Action(KINDS[sub.computation_type.name], sub.stage_index, sub.microbatch_index)


@pytest.mark.parametrize("name", ORACLES)
def test_passes_of_several_chunks_or_halves_run_in_torchs_order(name: ScheduleName) -> None:
    compared = 0
    for pp, m, chunks in fitting(name):
        if name == "zb-h1" and (pp == 1 or m % max(1, m // pp)):
            continue  # torch has rounds there too; with one chunk they have no effect
        assert compute_order(name, pp, m, chunks) == torchs_orders(ORACLES[name], pp, m, chunks), (pp, m, chunks)
        compared += 1
    assert compared > 30
