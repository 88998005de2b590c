"""The operations in a ledger equal the planner's formulas."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from engine.families import FamilyName
from engine.predict.ledger.dimensions import dimensions, structure
from engine.predict.ledger.form import Part
from engine.predict.ledger.keep import Ledgers
from engine.predict.ledger.work import work
from engine.predict.speed.cost import model_flops
from engine.spec import AttentionName, ModelSpec, WorkloadSpec

WHOLE = Part(True, True, 2)


def model_of(family: FamilyName, layers: int = 6) -> ModelSpec:
    return ModelSpec(family=family, layers=layers, hidden=48, heads=4, vocab=260, seq=32)


@pytest.mark.parametrize("attention", get_args(AttentionName))
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_flops_of_a_ledger_equal_the_models_formula(ledgers: Ledgers, family: FamilyName, attention: AttentionName) -> None:
    """Of several sizes of microbatch at once. Backward has two products for each of forward's, in B as in I and W.

    The backward of fused attention computes the scores again.
    """
    model, batches = model_of(family), np.array([2, 3, 5])
    sizes = dimensions(model, "none", 1, batches)
    ledger = ledgers(structure(model, WorkloadSpec(attention=attention), "none", "none", sizes), WHOLE)
    repeats = WHOLE.repeats(model.layers, 0)
    forward, whole, inputs, weights = (
        work(ledger, ledger.trace(False, split), action, repeats, sizes)
        for split, action in ((True, "F"), (False, "B"), (True, "I"), (True, "W"))
    )
    assert (3 * forward.flops == model_flops(model) * batches).all()
    again = 2 * model.layers * batches * model.seq**2 * model.hidden if attention == "fused" else 0
    assert (whole.flops == 2 * forward.flops + again).all()
    assert (inputs.flops + weights.flops == whole.flops).all()
    assert forward.kernels < whole.kernels
    assert (forward.written > 0).all()
    assert (forward.written < forward.read).all()
