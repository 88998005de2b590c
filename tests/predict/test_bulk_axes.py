"""Very many layouts with context parallelism and with experts at once are those of each one by itself: memory, traffic, time."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.grid import Grid
from engine.launch.recording.client import with_ledgers
from engine.papers.closed_forms import model_flops
from engine.planner.candidates import LEAST_TOKENS, candidates
from engine.predict.bulk.memory import fullest
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.memory import memory
from engine.predict.speed.cost import Cost
from engine.predict.speed.rates import Assumptions, link
from engine.predict.speed.step_time import StepTime, estimate, simulated_all
from engine.spec import LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from tests.predict.test_bulk_traffic import busiest

H100 = DEVICES["h100-80gb"]
EXPERTS = catalog.model("gpt-tiny-moe")
LONG = ModelSpec(layers=8, hidden=64, heads=8, vocab=264, seq=64)
LAYOUTS = {  # all of one model have few structures, whose ledgers are recorded here
    "experts": (EXPERTS, [f"dp{dp}.tp2.pp2.ep{ep}" for dp, ep in ((2, 2), (4, 2), (6, 2))]),
    "context": (LONG, ["dp1.cp8.tp2.pp2", "dp2.cp4.tp2.pp2"]),
}


def specs_of(model: ModelSpec, codes: list[str]) -> list[RunSpec]:
    found = []
    for code, zero in itertools.product(codes, range(4)):
        layout = {"zero": zero, "sequence_parallel": True}
        try:
            found.append(
                RunSpec(
                    model=model,
                    layout=LayoutSpec(**LayoutSpec.degrees(code), **layout),
                    workload=WorkloadSpec(microbatches=5, microbatch_size=1),
                )
            )
        except RequestError:
            continue
    return found


def cost_of(what: str) -> StepTime:
    specs = specs_of(*LAYOUTS[what])
    return estimate(Cost(specs[0].model, specs[0].workload, Grid.of(specs), H100, Assumptions()))


@pytest.mark.parametrize("what", LAYOUTS)
def test_many_layouts_are_predicted_as_each(what: str) -> None:
    specs = specs_of(*LAYOUTS[what])
    assert len(specs) >= 8
    model, workload, grid = specs[0].model, specs[0].workload, Grid.of(specs)
    found, stages = with_ledgers(lambda: fullest(model, workload, grid))
    wire = with_ledgers(lambda: bulk_traffic(model, workload, grid))
    for i, spec in enumerate(specs):
        peaks = [peak.total for peak in with_ledgers(partial(memory, spec)).peaks]
        assert (found[i], stages[i]) == (max(peaks), peaks.index(max(peaks))), spec.layout
        assert {name: numbers[i] for name, numbers in wire.items()} == busiest(spec), spec.layout
    closed = with_ledgers(partial(cost_of, what))
    steps = np.array([step for step, _ in simulated_all(specs, H100, Assumptions())])
    assert abs(closed.step / steps - 1).max() < 0.25
    waits = closed.ep if what == "experts" else closed.cp
    assert (waits >= 0).all()
    assert what == "context" or (waits > 0).all()


def test_an_all_to_all_inside_a_node_takes_its_links_and_across_nodes_each_ranks_own_port() -> None:
    def seconds(code: str) -> float:
        spec = RunSpec(model=EXPERTS.model_copy(update={"experts": 64}), layout=LayoutSpec(**LayoutSpec.degrees(code)))
        return float(link(Grid.of([spec]), "ep", H100, Assumptions()).call("all_to_all", 1e9)[0])

    assumed = Assumptions()
    inside = H100.intra_latency + 7 / 8 * 1e9 / (H100.intra_bandwidth * assumed.intra_efficiency)
    across = H100.inter_latency + 8 / 16 * 1e9 / (H100.inter_bandwidth * assumed.inter_efficiency)
    assert seconds("dp8.ep8") == pytest.approx(inside)
    assert seconds("dp16.ep16") == pytest.approx(across)


def test_flops_count_the_experts_that_a_token_goes_to() -> None:
    """6 × active parameters × tokens, beside the scores and the table of tokens, which is read and not multiplied."""
    for name in ("mixtral-8x7b", "qwen3-235b-a22b"):
        model = catalog.model(name)
        multiplied = model.active_parameters() - model.vocab * model.hidden
        scores = 12 * model.layers * model.seq**2 * model.heads * model.head_width
        assert model_flops(model) == pytest.approx(6 * multiplied * model.seq + scores, rel=1e-3)


def test_a_search_offers_cp_for_long_sequences_and_ep_for_experts() -> None:
    short = catalog.model("llama3-8b")
    assert set(candidates(short, 16, 16).cp.tolist()) == {1}
    long = candidates(short.model_copy(update={"seq": 8 * LEAST_TOKENS}), 16, 16)
    assert set(long.cp.tolist()) == {1, 2, 4, 8}
    assert set(long.microbatch_size[long.cp > 1].tolist()) == {1}
    assert set(candidates(catalog.model("mixtral-8x7b"), 16, 16).ep.tolist()) == {1, 2, 4, 8}
