"""Formula, dry run and real run agree, for specs that cover every pair of families and levers."""

from __future__ import annotations

import pandas as pd
import pytest

from engine.launch.dry_tables import first_of_each_stage, result
from engine.launch.textbook import textbook
from engine.predict.run import predict
from engine.spec import RunSpec
from engine.tables import RunResult, memory_errors, traffic_differences
from tests.covering import covering, title
from tests.launch.dry_runs import DryRunRequest, dry_run_all
from tests.runs import Runs

DRY = 0.001  # relative error of the total at a rank's peak: one rank of a stage is used for all of them


@pytest.fixture(scope="module")
def dry_runs() -> dict[RunSpec, RunResult]:
    """The dry run of each spec. One rank of each stage is used for the others."""
    answers = dry_run_all([DryRunRequest(spec, tuple(first_of_each_stage(spec))) for spec in covering()])
    rows = ({rank: one.rows for rank, one in answer.items()} for answer in answers)
    return {spec: result(spec, of, True, textbook(spec), {}, 0.0) for spec, of in zip(covering(), rows, strict=True)}


def errors(measured: RunResult, predicted: RunResult) -> list[float]:
    return memory_errors(measured, predicted).abs().tolist()


def standing(result: RunResult) -> pd.Series:
    """What each rank holds between steps, by category."""
    kept = result.tables["memory_peak"].set_index(["rank", "category"])["bytes"]
    return kept[kept.index.get_level_values("category").isin(["parameters", "gradients", "optimizer"])]


@pytest.mark.parametrize("spec", covering(), ids=title)
def test_memory_and_traffic_are_as_measured_on_every_rank(runs: Runs, dry_runs: dict[RunSpec, RunResult], spec: RunSpec) -> None:
    measured, formula, dry = runs.result(spec), predict(spec), dry_runs[spec]
    assert errors(measured, formula) == [0.0] * spec.layout.ranks
    assert max(errors(measured, dry)) <= DRY
    for answer in (formula, dry):
        assert traffic_differences(measured, answer).empty
        pd.testing.assert_series_equal(standing(answer), standing(measured))
