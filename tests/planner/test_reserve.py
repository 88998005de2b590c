"""What a device must keep free beside tensors: by term, by layout, and against what runs on GPUs were seen to take."""

from __future__ import annotations

import numpy as np
import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.grid import Grid
from engine.planner.reserve import reserve, reserve_of, reserve_terms, tensors_that_fit
from engine.planner.search import search
from engine.spec import LayoutSpec, ModelSpec, RunSpec

H100 = DEVICES["h100-80gb"]
MIB = 2**20


TIED = ModelSpec(layers=16, heads=16, hidden=256)


def grid(*layouts: LayoutSpec, model: ModelSpec = TIED) -> Grid:
    return Grid.of([RunSpec(model=model, layout=layout) for layout in layouts])


def test_every_communicator_counts_once_and_messages_by_neighbour() -> None:
    """One GPU has a context and a workspace. A pipeline of 4 has a group of 4, two neighbours, and the pair that ties weights."""
    alone = 512 + 32
    for layout, mib in (
        (LayoutSpec(), alone),
        (LayoutSpec(tp=2), alone + 544),
        (LayoutSpec(dp=8), alone + 688),
        (LayoutSpec(dp=2, tp=4), alone + 544 + 688),
        (LayoutSpec(pp=2), alone + 544 + 544 + 544),
        (LayoutSpec(pp=4), alone + 688 + 2 * 544 + 544),
    ):
        assert reserve(H100, grid(layout), TIED, np.array([0])).tolist() == [mib * MIB], layout.code


def test_ranks_that_hold_the_same_key_head_have_a_communicator() -> None:
    model = ModelSpec(layers=16, heads=16, kv_heads=2, hidden=256)
    layouts = [LayoutSpec(tp=tp) for tp in (2, 4, 8)]
    more = (reserve(H100, grid(*layouts, model=model), model, np.zeros(3)) - (512 + 32) * MIB).tolist()
    assert more == [544 * MIB, (688 + 544) * MIB, (688 + 688) * MIB]
    terms = reserve_terms(H100, 1, 4, 1, True, 0, model.key_copies(4))
    assert [term.bytes for term in terms if term.axis == "tp"] == [688 * MIB, 544 * MIB]


@pytest.mark.parametrize("layout", [LayoutSpec(), LayoutSpec(dp=4, tp=2, pp=2), LayoutSpec(tp=8, pp=4)])
@pytest.mark.parametrize("tied", [True, False])
def test_terms_add_up(layout: LayoutSpec, tied: bool) -> None:
    degrees, memory = (layout.dp, layout.tp, layout.pp), 60 * 10**9
    terms = reserve_terms(H100, *degrees, tied, memory)
    assert sum(term.bytes for term in terms) == reserve_of(H100, *degrees, tied, memory)
    assert {term.axis for term in terms} == {"", *(axis for axis in ("dp", "tp", "pp") if layout.mesh[axis] > 1)}
    room = tensors_that_fit(H100, *degrees, tied)
    assert room + reserve_of(H100, *degrees, tied, room) <= H100.memory_bytes
    assert room + 2 + reserve_of(H100, *degrees, tied, room + 2) > H100.memory_bytes - 2


def test_a_number_of_the_users_own_is_taken_as_it_is() -> None:
    layouts = grid(LayoutSpec(), LayoutSpec(dp=2, tp=2))
    assert reserve(H100, layouts, TIED, np.array([1, 2]), 7).tolist() == [7, 7]
    assert tensors_that_fit(H100, 1, 1, 1, True, 10**9) == H100.memory_bytes - 10**9
    assert tensors_that_fit(H100, 1, 1, 1, True, H100.memory_bytes + 1) == 0


def test_the_processor_of_a_laptop_keeps_nothing_free() -> None:
    assert reserve_terms(DEVICES["laptop-cpu"], 2, 2, 2, True, 10**9) == []


def test_the_best_plans_leave_room_on_a_device() -> None:
    """As drivers show 79 GiB of 80: with 0.5 GiB of context and 4 communicators, tensors of more than 74 GiB would not start."""
    plan = search(catalog.model("gpt3-13b"), 32, H100, 64)
    fitting = plan.layouts[plan.layouts["fits"]]
    assert (fitting["memory_bytes"] <= 0.96 * H100.memory_bytes).all()
    assert (fitting["reserve_bytes"] >= 544 * MIB + (0.04 * fitting["memory_bytes"]).astype("int64")).all()
