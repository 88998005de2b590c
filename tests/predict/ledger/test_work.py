"""A ledger tells what a pass computes and sends: the same that the formulas of the planner and of traffic say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.families import FamilyName
from engine.predict.ledger.dimensions import dimensions, slicing, structure
from engine.predict.ledger.form import Part
from engine.predict.ledger.keep import Ledgers
from engine.predict.ledger.work import sent, work
from engine.predict.messages.held import parts
from engine.predict.speed.cost import model_flops
from engine.predict.traffic import tensor_parallel
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec

WHOLE = Part(True, True, 2)


def model_of(family: FamilyName, layers: int = 6) -> ModelSpec:
    return ModelSpec(family=family, layers=layers, hidden=48, heads=4, vocab=260, seq=32)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_flops_are_the_models(ledgers: Ledgers, family: FamilyName) -> None:
    """Of several sizes of microbatch at once. Backward has two products for each of forward's, in B as in I and W."""
    model, batches = model_of(family), np.array([2, 3, 5])
    sizes = dimensions(model, "none", 1, batches)
    ledger = ledgers(structure(model, WorkloadSpec(), "none", "none", sizes), WHOLE)
    repeats = WHOLE.repeats(model.layers, 0)
    forward, whole, inputs, weights = (
        work(ledger, ledger.trace(False, split), action, repeats, sizes)
        for split, action in ((True, "F"), (False, "B"), (True, "I"), (True, "W"))
    )
    assert (3 * forward.flops == model_flops(model) * batches).all()
    assert (whole.flops == 2 * forward.flops).all()
    assert (inputs.flops + weights.flops == whole.flops).all()
    assert forward.kernels < whole.kernels
    assert (forward.written > 0).all()
    assert (forward.written < forward.read).all()


@pytest.mark.parametrize("sequence", [False, True])
def test_calls_over_tp_are_those_of_the_traffic_formula(ledgers: Ledgers, sequence: bool) -> None:
    layout = LayoutSpec(tp=4, sequence_parallel=sequence, recompute="full")
    spec = RunSpec(model=model_of("gpt"), layout=layout, workload=WorkloadSpec(microbatches=1))
    cut = slicing(layout.tp, sequence)
    sizes = dimensions(spec.model, cut, layout.tp, spec.workload.microbatch_size)
    ledger = ledgers(structure(spec.model, spec.workload, layout.recompute, cut, sizes), WHOLE)
    expected: Counter[tuple[str, str, int]] = Counter()
    for call in tensor_parallel(spec, parts(spec.model, layout)[0]):
        expected[call.phase, call.collective, call.payload_bytes] += call.calls
    totals: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for (phase, collective, payload), count in expected.items():
        totals[phase, collective] += count * payload
        calls[phase, collective] += count
    for phase, action in (("forward", "F"), ("backward", "B")):
        for (axis, collective), (times, payload) in sent(
            ledger, ledger.trace(False, False), action, WHOLE.repeats(spec.model.layers, 0), sizes
        ).items():
            assert axis == "tp"
            assert (times, payload) == (calls.pop((phase, collective)), totals.pop((phase, collective)))
    assert not calls
