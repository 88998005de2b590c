"""The papers' closed forms equal the planner's account, and the checklist keeps its order."""

from __future__ import annotations

import numpy as np
import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.grid import Grid
from engine.papers.accounting import activations_of_a_layer, zero_states
from engine.papers.closed_forms import layer_activations, states
from engine.planner.advice import advice, advise
from engine.spec import LayoutSpec, Recompute, RunSpec, WorkloadSpec
from engine.terms import total


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_are_those_of_the_planners_account(zero: int):
    assert total(states(7_500_000_000, zero, 64).values()) == pytest.approx(float(zero_states(7.5e9, 64, zero)), rel=1e-9)


@pytest.mark.parametrize("recompute", ["none", "core_attn", "full"])
def test_activations_of_a_layer_are_those_of_the_planners_account(recompute: Recompute):
    model = catalog.model("gpt3-175b")
    spec = RunSpec(model=model, layout=LayoutSpec(recompute=recompute), workload=WorkloadSpec(microbatch_size=2))
    np.testing.assert_allclose(activations_of_a_layer(model, Grid.of([spec]))[0], total(layer_activations(model, 2, recompute)))


@pytest.mark.parametrize("devices", [1, 64, 512, 1024])
@pytest.mark.parametrize("name", ["gpt2-1.5b", "gpt3-175b", "llama3-70b"])
def test_the_checklist_stops_at_the_first_of_each_way_that_fits_and_takes_the_faster(name: str, devices: int):
    device = DEVICES["h100-80gb"]
    tried = advise(catalog.model(name), devices, device, sequences=512)
    states = ("replicas", "zero", "recompute", "fsdp", "fsdp_full")
    for way in ([t for t in tried if t.lever in states], [t for t in tried if t.lever not in states]):
        assert not any(entry.fits for entry in way[:-1])
    assert all(entry.fits == (entry.needs <= device.memory_bytes) for entry in tried)
    assert {entry.spec.layout.ranks for entry in tried} == {devices}
    assert {entry.spec.workload.microbatches * entry.spec.layout.dp for entry in tried} == {512}, "all of the global batch"
    assert all(entry.spec.layout.tp <= device.node_size for entry in tried)
    levers = [entry.lever for entry in tried]
    assert levers == sorted(levers, key=[*states, "tensor", "pipeline", "full"].index)
    taken, times = advice(tried), [entry.step_s for entry in tried if entry.step_s is not None]
    assert (taken.step_s if taken else None) == min(times, default=None)
