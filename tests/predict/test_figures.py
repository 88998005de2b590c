"""What papers printed comes out of our formulas, and what they measured out of our predictions, within what we say."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.predict.papers.figures import references
from engine.predict.papers.reference import UNITS, Reference
from engine.predict.speed.rates import Assumptions


@pytest.fixture(scope="module")
def found() -> list[Reference]:
    return references()


def test_formulas_of_papers_come_out_as_printed(found: list[Reference]) -> None:
    exact = [r for r in found if r.exact]
    assert len(exact) == 10
    for r in exact:
        if r.quantity == "memory":  # the shapes are given, so every digit is
            assert r.ours == pytest.approx(r.published, rel=1e-9), r
        else:  # to the digits that the paper prints
            assert float(f"{r.ours:.3g}") == float(f"{r.published:.3g}"), r


def test_measured_speeds_are_predicted_within_a_seventh(found: list[Reference]) -> None:
    errors = [r.error for r in found if r.quantity == "speed"]
    assert len(errors) == 9
    assert max(map(abs, errors)) < 1 / 7


def test_every_figure_has_a_source_and_known_names(found: list[Reference]) -> None:
    assert all(r.source and r.published > 0 and r.quantity in UNITS for r in found)
    assert {r.device for r in found} == {"", "a100-80gb", "h100-80gb"} <= {"", *DEVICES}
    assert {r.model for r in found} & set(catalog.MODELS) == {"gpt3-175b", "llama3-405b"}


def test_what_is_assumed_changes_predictions_and_no_formula(found: list[Reference]) -> None:
    slower = references(Assumptions(matmul_efficiency=0.36))
    for before, after in zip(found, slower, strict=True):
        if before.quantity == "speed":
            assert after.ours < 0.8 * before.ours
        elif before.quantity != "bubble":
            assert after == before
