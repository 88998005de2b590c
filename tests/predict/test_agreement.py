"""The three answers agree: formula, dry run and measurement, over specs that have every pair of families and levers."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from engine.launch.dry_tables import kinds, result
from engine.launch.textbook import textbook
from engine.predict.errors import memory_errors, traffic_differences
from engine.predict.run import predict
from engine.spec import RunSpec
from engine.tables import RunResult
from tests.launch.rehearsals import Asked, rehearse
from tests.predict.pairs import CHOICES, covering, name
from tests.runs import Runs

SPECS = covering()
FORMULA, FORMULA_MEDIAN, DRY = 0.01, 0.003, 0.001  # shares of the total at a rank's peak


@pytest.fixture(scope="module")
def rehearsed() -> dict[RunSpec, RunResult]:
    """What the dry run of each spec says, one rank of each stage standing for the others."""
    answers = rehearse([Asked(spec, tuple(kinds(spec))) for spec in SPECS])
    rows = ({rank: one.rows for rank, one in answer.items()} for answer in answers)
    return {spec: result(spec, of, True, textbook(spec), {}, 0.0) for spec, of in zip(SPECS, rows, strict=True)}


def errors(measured: RunResult, predicted: RunResult) -> list[float]:
    return memory_errors(measured, predicted).abs().tolist()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_memory_and_traffic_are_as_measured_on_every_rank(runs: Runs, rehearsed: dict[RunSpec, RunResult], spec: RunSpec) -> None:
    measured, formula, dry = runs.result(spec), predict(spec), rehearsed[spec]
    assert len(errors(measured, formula)) == spec.layout.ranks
    assert max(errors(measured, formula)) <= FORMULA
    assert max(errors(measured, dry)) <= DRY
    for answer in (formula, dry):
        assert traffic_differences(measured, answer).empty


def test_on_most_ranks_the_formula_is_nearer_still(runs: Runs) -> None:
    assert statistics.median(e for spec in SPECS for e in errors(runs.result(spec), predict(spec))) <= FORMULA_MEDIAN


def test_the_specs_have_every_pair_of_choices_that_go_together() -> None:
    """So many that a family, a schedule and a lever each meet all others."""

    def seen(one: str, other: str) -> set[tuple[Any, Any]]:
        return {(chosen(spec, one), chosen(spec, other)) for spec in SPECS}

    assert seen("family", "schedule") == {(f, s) for f in CHOICES["family"] for s in CHOICES["schedule"]}
    assert seen("family", "recompute") == {(f, r) for f in CHOICES["family"] for r in CHOICES["recompute"]}
    assert seen("schedule", "zero") == {(s, z) for s in CHOICES["schedule"] for z in CHOICES["zero"]}
    assert seen("zero", "sequence_parallel") == {(z, s) for z in CHOICES["zero"] for s in CHOICES["sequence_parallel"]}


def chosen(spec: RunSpec, choice: str) -> Any:
    return spec.model.family if choice == "family" else getattr(spec.layout, choice)
